//! Calls, jumps and returns with the mitigations that were asked for.

use crate::emit::EmitError;
use crate::emit::mitigation::{HardeningError, Mitigations};
use crate::encode::CodeBuffer;
use crate::encode::aarch64::{Reg, WORD, autiasp, b, bl, blr, br, dsb_sy, isb, paciasp, ret};

use super::check::{Check, TARGET};

/// Mitigations and what they need, found to fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hardening {
    mitigations: Mitigations,
    check: Check,
}

/// What arm64 has.
const HERE: Mitigations =
    Mitigations::SLS.union(Mitigations::CFI).union(Mitigations::SIGNED_RETURNS);

impl Hardening {
    /// No mitigation: plain branches.
    pub const NONE: Self = Self { mitigations: Mitigations::empty(), check: Check::None };

    /// Bytes that the longest of these operations can take: a jump with a check.
    pub const MAX_SIZE: usize = Check::MAX_SIZE + 3 * WORD;

    /// These `mitigations`; with [`Mitigations::CFI`], indirect calls do `check`.
    ///
    /// # Errors
    /// [`HardeningError`] names what is missing or does not belong here.
    pub const fn new(mitigations: Mitigations, check: Check) -> Result<Self, HardeningError> {
        let others = mitigations.difference(HERE);
        if !others.is_empty() {
            return Err(HardeningError::OtherArchitecture { mitigations: others });
        }
        if mitigations.contains(Mitigations::CFI) && matches!(check, Check::None) {
            return Err(HardeningError::Untold { mitigations: Mitigations::CFI });
        }
        Ok(Self { mitigations, check })
    }

    /// The mitigations.
    #[must_use]
    pub const fn mitigations(&self) -> Mitigations {
        self.mitigations
    }

    /// Emits what a frame begins with, before `x30` is stored: with
    /// [`Mitigations::SIGNED_RETURNS`] `paciasp`. It must be undone by
    /// [`emit_return`](Self::emit_return) with the same stack pointer.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left.
    pub fn emit_sign(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        if self.has(Mitigations::SIGNED_RETURNS) {
            paciasp(code)?;
        }
        Ok(())
    }

    /// Emits the return of a frame that began with [`emit_sign`](Self::emit_sign).
    ///
    /// ```text
    /// autiasp           with SIGNED_RETURNS
    /// ret
    /// dsb sy; isb       with SLS
    /// ```
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left.
    pub fn emit_return(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        if self.has(Mitigations::SIGNED_RETURNS) {
            autiasp(code)?;
        }
        ret(code, Reg::LR)?;
        self.emit_stop(code)
    }

    /// Emits a jump to `target`. `SLS` adds nothing to direct branches, as in gcc and clang
    /// (`-mharden-sls`).
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or `target` is 128 MiB or more
    /// away.
    pub fn emit_jump(&self, code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EmitError> {
        Ok(b(code, target)?)
    }

    /// Emits a call of `target`.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or `target` is 128 MiB or more
    /// away.
    pub fn emit_call(&self, code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EmitError> {
        Ok(bl(code, target)?)
    }

    /// Emits a jump to the function whose entry is in [`TARGET`], behind its check: a call that
    /// does not come back here. What the check changes is said at [`Check`].
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left.
    pub fn emit_indirect_jump(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.check(code)?;
        br(code, TARGET)?;
        self.emit_stop(code)
    }

    /// Emits a call of the function whose entry is in [`TARGET`], behind its check. What the
    /// check changes is said at [`Check`]. `SLS` does nothing here: what is behind a call is
    /// executed in the end.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left.
    pub fn emit_indirect_call(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.check(code)?;
        Ok(blr(code, TARGET)?)
    }

    const fn has(&self, mitigation: Mitigations) -> bool {
        self.mitigations.contains(mitigation)
    }

    fn check(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        if self.has(Mitigations::CFI) {
            self.check.emit(code)?;
        }
        Ok(())
    }

    /// What speculation stops at (`-mharden-sls=retbr` of gcc and clang).
    pub(super) fn emit_stop(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        if self.has(Mitigations::SLS) {
            dsb_sy(code)?;
            isb(code)?;
        }
        Ok(())
    }
}
