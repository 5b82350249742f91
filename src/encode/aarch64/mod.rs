//! The arm64 instructions that the emitters need.
//!
//! Each function appends one instruction, a little-endian word of 32 bits. Its page names the
//! instruction and the variant as the Arm Architecture Reference Manual for A-profile (DDI
//! 0487), chapter C6, does. Offsets are in bytes; what an encoding cannot hold is an error.
//!
//! ```
//! use fentry::encode::{CodeBuffer, EncodeError, aarch64::{self, Reg}};
//!
//! const fn thunk(at: u64, index: u16, target: u64) -> Result<[u8; 8], EncodeError> {
//!     let mut bytes = [0; 8];
//!     let mut code = CodeBuffer::new(&mut bytes, at);
//!     if let Err(error) = aarch64::movz(&mut code, Reg::X17, index, 0) {
//!         return Err(error);
//!     }
//!     match aarch64::b(&mut code, target) {
//!         Ok(()) => Ok(bytes),
//!         Err(error) => Err(error),
//!     }
//! }
//!
//! // movz x17, #7; b #0xffc
//! const THUNK: Result<[u8; 8], EncodeError> = thunk(0x1000, 7, 0x2000);
//! assert_eq!(THUNK, Ok([0xf1, 0x00, 0x80, 0xd2, 0xff, 0x03, 0x00, 0x14]));
//! ```

mod arithmetic;
mod branch;
mod memory;
mod operand;
mod system;

pub use arithmetic::{
    add_imm, add_reg, cmp_imm, cmp_reg, cmp_reg32, mov_imm64, mov_reg, mov_sp, movk, movk32, movz,
    sub_imm, sub_reg,
};
pub use branch::{adr, adrp, b, b_bytes, b_cond, bl, bl_bytes, blr, br, cbnz, cbz, ret};
pub use memory::{
    Index, ldp, ldp_vectors, ldr, ldr_index, ldr_indexed, ldr_literal, ldr32, ldur, ldur32, stp,
    stp_vectors, str, str_index, str32, stur, stur32,
};
pub use operand::{Base, Condition, Reg, Vector};
pub use system::{
    BTI_C, Bti, NOP, autiasp, brk, bti, dsb_sy, hint, isb, mrs_tpidr_el0, nop, paciasp, udf,
};

use super::{CodeBuffer, EncodeError};

/// Bytes of every instruction.
pub const WORD: usize = 4;

/// Appends one instruction.
const fn word(code: &mut CodeBuffer<'_>, word: u32) -> Result<(), EncodeError> {
    code.little_endian(word as u128, WORD)
}

/// `value / step` in the lowest `bits` bits, as a two's complement number.
const fn signed(value: i64, step: i64, bits: u32) -> Result<u32, EncodeError> {
    let most = 1 << (bits - 1);
    let (min, max) = (-most * step, (most - 1) * step);
    if value < min || value > max || value % step != 0 {
        return Err(EncodeError::Immediate { value, min, max, step });
    }
    Ok((value / step).cast_unsigned() as u32 & ((1 << bits) - 1))
}

/// `value / step` in the lowest `bits` bits.
const fn unsigned(value: u32, step: u32, bits: u32) -> Result<u32, EncodeError> {
    let max = ((1 << bits) - 1) * step;
    if value > max || !value.is_multiple_of(step) {
        let (value, max, step) = (value as i64, max as i64, step as i64);
        return Err(EncodeError::Immediate { value, min: 0, max, step });
    }
    Ok(value / step)
}
