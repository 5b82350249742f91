//! The caller's half of a checked indirect call.

use crate::emit::EmitError;
use crate::encode::CodeBuffer;
use crate::encode::aarch64::{Base, Condition, Reg, WORD, b_cond, brk, cmp_reg32, ldur32, movk32};

/// The register that indirect branches are made through: one of the two from which `br` may land
/// where `blr` may.
pub const TARGET: Reg = Reg::X16;

/// What a caller does between having a function's entry in [`TARGET`] and branching there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// Nothing.
    None,
    /// It compares the hash before the entry with its own, and traps where they differ, with
    /// the registers' numbers in the trap (`LowerKCFI_CHECK`, LLVM 16). Changes `x9`, `x17` and
    /// the flags. 24 bytes:
    ///
    /// ```text
    /// ldur w9, [x16, #-4 - 4 * nops]
    /// movk w17, #low half of the hash
    /// movk w17, #high half, lsl #16
    /// cmp  w9, w17
    /// b.eq .+8
    /// brk  #0x8230
    /// ```
    Kcfi {
        /// The hash of the type that is called with.
        hash: u32,
        /// Instructions between the callee's hash and its entry, 63 at the most.
        nops: u8,
    },
}

impl Check {
    /// Bytes that a check can take at the most.
    pub const MAX_SIZE: usize = 6 * WORD;

    /// Emits the check. Expects the callee's entry in [`TARGET`], and leaves it there.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left, or the hash is out of reach.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        const FOUND: Reg = Reg::X9;
        const EXPECTED: Reg = Reg::X17;
        let Self::Kcfi { hash, nops } = *self else { return Ok(()) };
        let (low, high) = ((hash & 0xffff) as u16, (hash >> 16) as u16);
        ldur32(code, FOUND, Base::Reg(TARGET), -4 - 4 * i32::from(nops))?;
        movk32(code, EXPECTED, low, 0)?;
        movk32(code, EXPECTED, high, 1)?;
        cmp_reg32(code, FOUND, EXPECTED)?;
        let branch = code.here().wrapping_add(2 * WORD as u64);
        b_cond(code, Condition::Equal, branch)?;
        brk(code, trap(TARGET, EXPECTED))?;
        Ok(())
    }
}

/// The number by which a handler finds the two registers (`CFI_BRK_IMM_BASE`,
/// arch/arm64/include/asm/brk-imm.h): that of the hash in bits 5 to 9, of the target in 0 to 4.
const fn trap(target: Reg, expected: Reg) -> u16 {
    0x8000 | (expected.number() as u16) << 5 | target.number() as u16
}
