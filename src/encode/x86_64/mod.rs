//! The x86-64 instructions that the emitters need.
//!
//! Each function appends one instruction. Its page names the opcode as the Intel SDM,
//! volume 2, writes it, and its size in bytes. Where the SDM offers several encodings of
//! the same operation, the shortest is taken, so a size depends only on the operands.
//!
//! Sizes of a memory operand are given as `M`, the bytes of ModRM, SIB and displacement:
//! ModRM 1, SIB 1 where there is an index or the base is `rsp` or `r12`, displacement 0
//! (zero, base other than `rbp` and `r13`), 1 or 4. "REX" counts 1 where an operand is one
//! of the registers 8 to 15.
//!
//! A thunk, made by the compiler:
//!
//! ```
//! use fentry::encode::{CodeBuffer, EncodeError, x86_64::{self, Reg}};
//!
//! const fn thunk(at: u64, index: u32, target: u64) -> Result<[u8; 11], EncodeError> {
//!     let mut bytes = [0; 11];
//!     let mut code = CodeBuffer::new(&mut bytes, at);
//!     if let Err(error) = x86_64::mov_imm32(&mut code, Reg::R11, index) {
//!         return Err(error);
//!     }
//!     match x86_64::jmp(&mut code, target) {
//!         Ok(()) => Ok(bytes),
//!         Err(error) => Err(error),
//!     }
//! }
//!
//! const THUNK: Result<[u8; 11], EncodeError> = thunk(0x1000, 7, 0x2000);
//! assert_eq!(THUNK, Ok([0x41, 0xbb, 7, 0, 0, 0, 0xe9, 0xf5, 0x0f, 0, 0]));
//! ```

mod arithmetic;
mod branch;
mod data;
mod form;
mod guard;
mod nop;
mod operand;
mod vector;

pub use arithmetic::{
    add_imm, add_load32, add_reg, and_imm, cmp_imm, cmp_imm32, cmp_load32, cmp_load64, cmpxchg64,
    dec_mem64, inc_mem64, sub_imm, sub_imm32, test_reg, xor_reg32,
};
pub use branch::{
    call, call_bytes, call_mem, call_reg, endbr64, int3, jcc, jcc_short, jmp, jmp_bytes, jmp_mem,
    jmp_reg, jmp_short, ret,
};
pub use data::{
    cmov, lea, lea_rip, mov_imm32, mov_imm32_sign, mov_imm64, mov_load32, mov_load64,
    mov_load64_fs, mov_reg_reg, mov_store_imm32, mov_store_imm64, mov_store32, mov_store64, pop,
    push,
};
pub use guard::{NOP4_OSP, NOP4_UDB, cs, lfence, sar_gs_absolute, sar_gs_rip, ud2, udb};
pub use nop::{NOP_MAX, NOP1X5, NOP5, NOP5_CLANG, NOP5_PREFIXED, nop};
pub use operand::{Condition, Mem, Reg, Scale, Vector};
pub use vector::{
    movups_load, movups_store, vmovups256_load, vmovups256_store, vmovups512_load,
    vmovups512_store, vzeroupper,
};
