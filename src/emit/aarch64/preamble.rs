//! What stands before, and at, an entry that indirect calls may reach; and what their callers do.

use crate::emit::EmitError;
use crate::encode::CodeBuffer;
use crate::encode::aarch64::{
    Base, Bti, Condition, Reg, WORD, b_cond, brk, bti, cmp_reg32, ldur32, movk32, nop, paciasp,
};

use super::branch::TARGET;

/// What stands at an entry that indirect calls may reach, where branches are tracked (BTI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LandingPad {
    /// Nothing.
    None,
    /// `bti c`.
    Bti,
    /// `paciasp`, which is one, too: for code that signs its return address first of all.
    Paciasp,
}

/// A preamble: the hash of the function's type in front of what the compiler was told to leave
/// before the entry, and the landing pad at it. The *caller* compares hashes.
///
/// ```text
/// -4-4*nops   hash          not an instruction; nobody executes it
/// -4*nops     d503201f ...  nop for each of the prefix
/// entry       d503245f      bti c, or d503233f: paciasp
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Preamble {
    /// The hash of the function's type ([`kcfi::type_hash`](crate::emit::kcfi::type_hash));
    /// `None` where callers check none.
    pub hash: Option<u32>,
    /// Instructions between the hash and the entry: the `M` of the callers'
    /// `-fpatchable-function-entry=N,M`. Their check reaches 63.
    pub nops: u8,
    /// What stands at the entry.
    pub landing_pad: LandingPad,
}

impl Preamble {
    /// Bytes of the preamble that are before the entry.
    #[must_use]
    pub const fn before_entry(&self) -> u16 {
        WORD as u16 * (self.nops as u16 + self.hash.is_some() as u16)
    }

    /// All bytes of the preamble, those at the entry included.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.before_entry()
            + match self.landing_pad {
                LandingPad::None => 0,
                LandingPad::Bti | LandingPad::Paciasp => WORD as u16,
            }
    }

    /// Emits the preamble and returns the entry, which is [`before_entry`](Self::before_entry)
    /// bytes behind where `code` was.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has less than [`size`](Self::size) bytes left.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<u64, EmitError> {
        let entry = code.here().wrapping_add(u64::from(self.before_entry()));
        if let Some(hash) = self.hash {
            code.bytes(&hash.to_le_bytes())?;
        }
        for _ in 0..self.nops {
            nop(code)?;
        }
        match self.landing_pad {
            LandingPad::None => {}
            LandingPad::Bti => bti(code, Bti::Call)?,
            LandingPad::Paciasp => paciasp(code)?,
        }
        Ok(entry)
    }

    /// What a caller does before it calls a function with this preamble.
    #[must_use]
    pub const fn check(&self) -> Check {
        match self.hash {
            Some(hash) => Check::Kcfi { hash, nops: self.nops },
            None => Check::None,
        }
    }
}

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
