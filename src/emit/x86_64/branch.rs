//! Calls, jumps and returns with the mitigations that were asked for.

use crate::emit::EmitError;
use crate::emit::mitigation::{HardeningError, Mitigations};
use crate::encode::x86_64::{
    NOP_MAX, call, call_reg, int3, jmp, jmp_reg, lfence, mov_imm64, nop, ret, sar_gs_absolute,
    sar_gs_rip,
};
use crate::encode::{CodeBuffer, EncodeError};

use super::check::{Check, TARGET};

/// How the count of calls is kept, for the processor at hand: each call shifts it five bits to
/// the right (`INCREMENT_CALL_DEPTH`, arch/x86/include/asm/nospec-branch.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallDepth {
    /// `sar qword gs:[rip + ...], 5`, 9 bytes: the variable's offset from the base of `gs`.
    RipRelative(u64),
    /// `sar qword gs:[...], 5`, 10 bytes: the same as a number of 32 bits.
    Absolute(i32),
}

/// What the embedder has that mitigations need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Symbols {
    /// For `RETPOLINE`: the thunk that goes on at the address in `r11`
    /// (`__x86_indirect_thunk_r11`).
    pub indirect_thunk: Option<u64>,
    /// For `RETURN_THUNK`: the thunk that returns (`x86_return_thunk`).
    pub return_thunk: Option<u64>,
    /// For `CALL_DEPTH`: the count.
    pub call_depth: Option<CallDepth>,
    /// For `CFI`: what indirect calls check.
    pub check: Check,
}

impl Symbols {
    /// None of it.
    pub const NONE: Self =
        Self { indirect_thunk: None, return_thunk: None, call_depth: None, check: Check::None };
}

/// Mitigations and what they need, found to fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hardening {
    mitigations: Mitigations,
    symbols: Symbols,
}

/// Bytes of a cache line, whose upper half [`Mitigations::ITS`] wants branches in.
pub(super) const LINE: u64 = 64;

impl Hardening {
    /// No mitigation: plain branches.
    pub const NONE: Self = Self { mitigations: Mitigations::empty(), symbols: Symbols::NONE };

    /// Bytes that the longest of these operations can take: a call with a count and a
    /// check, moved to the other half of a cache line.
    pub const MAX_SIZE: usize = Check::MAX_SIZE + 10 + 3 + LINE as usize / 2 + 3;

    /// These `mitigations`, with what they need of `symbols`.
    ///
    /// # Errors
    /// [`HardeningError`] names what is missing or does not belong together.
    pub const fn new(mitigations: Mitigations, symbols: Symbols) -> Result<Self, HardeningError> {
        if mitigations.contains(Mitigations::SIGNED_RETURNS) {
            let mitigations = Mitigations::SIGNED_RETURNS;
            return Err(HardeningError::OtherArchitecture { mitigations });
        }
        if mitigations.contains(Mitigations::RETPOLINE.union(Mitigations::LFENCE)) {
            return Err(HardeningError::RetpolineAndLfence);
        }
        let mut told = Mitigations::all();
        if symbols.indirect_thunk.is_none() {
            told = told.difference(Mitigations::RETPOLINE);
        }
        if symbols.return_thunk.is_none() {
            told = told.difference(Mitigations::RETURN_THUNK);
        }
        if symbols.call_depth.is_none() {
            told = told.difference(Mitigations::CALL_DEPTH);
        }
        if matches!(symbols.check, Check::None) {
            told = told.difference(Mitigations::CFI);
        }
        let untold = mitigations.difference(told);
        if !untold.is_empty() {
            return Err(HardeningError::Untold { mitigations: untold });
        }
        Ok(Self { mitigations, symbols })
    }

    /// The mitigations.
    #[must_use]
    pub const fn mitigations(&self) -> Mitigations {
        self.mitigations
    }

    /// Where returns go, if not straight back.
    #[must_use]
    pub const fn return_thunk(&self) -> Option<u64> {
        if self.has(Mitigations::RETURN_THUNK) { self.symbols.return_thunk } else { None }
    }

    /// Whether who has called a body sees the flags that it returns with: a return thunk may
    /// change them.
    pub(super) const fn returns_flags(&self) -> bool {
        self.return_thunk().is_none()
    }

    /// Where indirect calls and jumps go, if not straight on.
    #[must_use]
    pub const fn indirect_thunk(&self) -> Option<u64> {
        if self.has(Mitigations::RETPOLINE) { self.symbols.indirect_thunk } else { None }
    }

    /// Emits a return.
    ///
    /// ```text
    /// c3           ret              or: e9 rel32     jmp return_thunk
    /// cc           int3, with SLS
    /// ```
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or the thunk is 2 GiB or more away.
    pub fn emit_return(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.back(code)?;
        Ok(self.stop(code)?)
    }

    /// Emits the return at the end of a body: behind it there is an `int3` in any case.
    pub(super) fn body_end(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        self.back(code)?;
        int3(code)
    }

    /// Fills up before the last `len` bytes before the end of a body, where the return would have
    /// to be moved.
    pub(super) fn prepare_body_end(
        &self,
        code: &mut CodeBuffer<'_>,
        len: u64,
    ) -> Result<(), EncodeError> {
        if self.return_thunk().is_some() { Ok(()) } else { self.place(code, len + 1) }
    }

    /// Bytes of the end of a body, if nothing had to be filled up.
    pub(super) const fn body_end_size(&self) -> usize {
        if self.return_thunk().is_some() { 5 + 1 } else { 1 + 1 }
    }

    /// A return, and nothing behind it.
    pub(super) fn back(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        match self.return_thunk() {
            Some(thunk) => jmp(code, thunk),
            _ => {
                self.place(code, 1)?;
                ret(code)
            }
        }
    }

    /// Emits a jump to `target`.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or `target` is 2 GiB or more away.
    pub fn emit_jump(&self, code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EmitError> {
        Ok(self.jump(code, target)?)
    }

    pub(super) fn jump(&self, code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
        jmp(code, target)?;
        self.stop(code)
    }

    /// Bytes of a jump.
    pub(super) const fn jump_size(&self) -> u64 {
        5 + self.has(Mitigations::SLS) as u64
    }

    /// Emits a call of `target`, behind the count where calls are counted.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left, or `target` or the count is 2 GiB or
    /// more away.
    pub fn emit_call(&self, code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EmitError> {
        self.count(code)?;
        call(code, target)?;
        Ok(())
    }

    /// Emits a call of `target`: directly, or where it is in another module, out of a direct
    /// call's reach, through `r11`. With a check, that changes what [`Check`] says.
    pub(super) fn call_anywhere(
        &self,
        code: &mut CodeBuffer<'_>,
        target: u64,
        check: bool,
    ) -> Result<(), EncodeError> {
        self.count(code)?;
        match call(code, target) {
            Err(EncodeError::OutOfRange { .. }) => {
                mov_imm64(code, TARGET, target)?;
                if check {
                    self.check(code)?;
                }
                self.call_target(code)
            }
            called => called,
        }
    }

    /// Emits a jump to the address in [`TARGET`], `r11`, in code that is emitted by the same
    /// hand: there is no type to check.
    ///
    /// ```text
    ///              RETPOLINE           LFENCE              neither
    ///                                  0f ae e8  lfence
    ///              e9 rel32 jmp thunk  41 ff e3  jmp r11   41 ff e3  jmp r11
    /// with SLS     cc       int3       cc        int3      cc        int3
    /// ```
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or the thunk is 2 GiB or more away.
    pub fn emit_computed_jump(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        Ok(self.jump_target(code)?)
    }

    fn jump_target(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        match self.indirect_thunk() {
            Some(thunk) => jmp(code, thunk)?,
            _ => {
                self.fence(code)?;
                jmp_reg(code, TARGET)?;
            }
        }
        self.stop(code)
    }

    /// Emits a jump to the function whose entry is in [`TARGET`], `r11`, behind its check: a
    /// call that does not come back here. What the check changes is said at [`Check`].
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or the thunk is 2 GiB or more away.
    pub fn emit_indirect_jump(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.check(code)?;
        self.emit_computed_jump(code)
    }

    /// Emits a call of the function whose entry is in [`TARGET`], `r11`, behind its check.
    /// What the check changes is said at [`Check`].
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left, or the thunk or the count is 2 GiB or
    /// more away.
    pub fn emit_indirect_call(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.check(code)?;
        self.count(code)?;
        Ok(self.call_target(code)?)
    }

    fn call_target(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        match self.indirect_thunk() {
            Some(thunk) => call(code, thunk),
            _ => {
                self.fence(code)?;
                call_reg(code, TARGET)
            }
        }
    }

    pub(super) const fn has(&self, mitigation: Mitigations) -> bool {
        self.mitigations.contains(mitigation)
    }

    fn check(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        if self.has(Mitigations::CFI) {
            self.symbols.check.encode(code)?;
        }
        Ok(())
    }

    /// What speculation stops at, behind an instruction that does not go on.
    fn stop(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        if self.has(Mitigations::SLS) {
            int3(code)?;
        }
        Ok(())
    }

    fn count(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        // `RET_DEPTH_SHIFT`, in the same file.
        const SHIFT: u8 = 5;
        match self.symbols.call_depth {
            Some(depth) if self.has(Mitigations::CALL_DEPTH) => match depth {
                CallDepth::RipRelative(variable) => sar_gs_rip(code, variable, SHIFT),
                CallDepth::Absolute(offset) => sar_gs_absolute(code, offset, SHIFT),
            },
            _ => Ok(()),
        }
    }

    /// What stands before a branch through [`TARGET`], of which the opcode is the second byte.
    fn fence(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        const OPCODE_END: u64 = 3;
        if !self.has(Mitigations::LFENCE) {
            return self.place(code, OPCODE_END);
        }
        // The fence right before the branch: nothing may come between them.
        self.place(code, 3 + OPCODE_END)?;
        lfence(code)
    }

    /// Fills up with nops until the last of the next `len` bytes is in the upper half of a
    /// cache line.
    fn place(&self, code: &mut CodeBuffer<'_>, len: u64) -> Result<(), EncodeError> {
        if !self.has(Mitigations::ITS) {
            return Ok(());
        }
        let in_line = code.here().wrapping_add(len - 1) % LINE;
        let mut missing = (LINE / 2).saturating_sub(in_line) as usize;
        while missing > 0 {
            let len = missing.min(NOP_MAX);
            nop(code, len)?;
            missing -= len;
        }
        Ok(())
    }
}
