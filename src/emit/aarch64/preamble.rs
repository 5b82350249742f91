//! What stands before, and at, an entry that indirect calls may reach.

use crate::emit::EmitError;
use crate::encode::CodeBuffer;
use crate::encode::aarch64::{Bti, WORD, bti, nop, paciasp};

use super::check::Check;

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
