//! What runs when a hooked function returns.

use super::branch::{Hardening, LINE};
use super::call_frame::{Programs, field, unless};
use super::side_stack::{FRAME, FRAME_SIZE, FRAME_SLOT, SLOT_ABOVE, control};
use crate::emit::{ProgramCall, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, Reg, add_imm, cmp_load64, cmpxchg64, inc_mem64, int3, jcc, jcc_short, jmp_reg,
    lea, mov_load64, mov_load64_fs, mov_reg_reg, mov_store64, pop, sub_imm,
};
use crate::encode::{CodeBuffer, EncodeError};

/// How the caller is returned to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Return {
    /// By the `ret` that its call expects.
    Ret,
    /// By a jump: a `ret` has been used up for coming here.
    Jump,
}

/// Where a body is, and places in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub start: u64,
    /// From here on the register that programs find the frame by leads to it, and it is complete.
    pub found: u64,
    /// Up to here.
    pub until: u64,
    /// From here on nothing is on the stack but the return address, and all is restored.
    pub returns: u64,
    pub end: u64,
}

/// The body that a hooked function returns to, directly or through its thunk.
///
/// It changes what any function may change, but for the registers that return values are
/// in. It begins with `rsp` right above the slot that the caller's return address was in.
pub(super) struct Leave<'a> {
    pub hardening: &'a Hardening,
    pub thread_offset: i32,
    pub vectors: Vectors,
    /// In the order of their attachment: they run in reverse.
    pub calls: &'a [ProgramCall],
    pub back: Return,
}

/// From above the slot to where the body has its stack pointer when it looks for the frame: that
/// of the body which ran before the function, and which the frame has.
const TO_FRAME_SLOT: i32 = SLOT_ABOVE + 8;
/// The slot that the caller's return address was in, and will be again.
const SLOT: Mem = Mem::at(Reg::Rsp, SLOT_ABOVE);
/// The caller's `rbp`, where the call of the body before has left its return address: that one
/// says that a thread is in here, and is to go.
const RBP: Mem = Mem::at(Reg::Rsp, SLOT_ABOVE - 8);

impl Leave<'_> {
    /// Emits the body.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Part, EncodeError> {
        // The search stands right before the body, in reach of a short jump, and goes on behind
        // the body's beginning: a first attempt shows where that is.
        let mut trial = [0; 256];
        let mut trial = CodeBuffer::new(&mut trial, code.here());
        let here = trial.here();
        let before = self.begin(&mut trial, here)?.wrapping_sub(here);
        let all = trial.here().wrapping_sub(here);

        align_behind(code, before)?;
        let found = code.here().wrapping_add(all);
        let start = self.begin(code, found)?;
        let (until, returns) = self.run(code)?;
        Ok(Part { start, found, until, returns, end: code.here() })
    }

    /// Finds the frame: the last one, unless a function that was called from this one was
    /// left without a return. Returns where it starts.
    fn begin(&self, code: &mut CodeBuffer<'_>, found: u64) -> Result<u64, EncodeError> {
        let search = search(code, self.hardening, found)?;
        let start = code.here();
        sub_imm(code, Reg::Rsp, TO_FRAME_SLOT)?;
        mov_store64(code, RBP, Reg::Rbp)?;
        self.load_side_stack(code)?;
        mov_load64(code, Reg::Rbp, Mem::at(Reg::Rcx, control::LAST))?;
        cmp_load64(code, Reg::Rsp, FRAME_SLOT)?;
        jcc_short(code, Condition::NotEqual, search)?;
        Ok(start)
    }

    fn load_side_stack(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        mov_load64_fs(code, Reg::Rcx, self.thread_offset)
    }

    /// Runs the programs on the frame and returns to the caller. Gives up to where `rbp` is in the
    /// frame, and where it returns.
    fn run(&self, code: &mut CodeBuffer<'_>) -> Result<(u64, u64), EncodeError> {
        mov_load64(code, Reg::R11, field!(FRAME, caller))?;
        mov_store64(code, SLOT, Reg::R11)?;
        let programs = Programs {
            hardening: self.hardening,
            vectors: self.vectors,
            frame: FRAME,
            entries: &[],
            modify: &[],
            exits: self.calls,
        };
        programs.run_exits(code)?;
        self.load_side_stack(code)?;
        mov_load64(code, Reg::Rsp, FRAME_SLOT)?;
        lea(code, Reg::R11, Mem::at(Reg::Rbp, -FRAME_SIZE))?;
        mov_load64(code, Reg::Rbp, RBP)?;
        let until = code.here();
        // From here on the frame is a signal handler's.
        mov_store64(code, Mem::at(Reg::Rcx, control::LAST), Reg::R11)?;
        add_imm(code, Reg::Rsp, SLOT_ABOVE)?;
        let returns = code.here();
        match self.back {
            Return::Ret => self.hardening.body_end(code)?,
            Return::Jump => {
                pop(code, Reg::R11)?;
                jmp_reg(code, Reg::R11)?;
                int3(code)?;
            }
        }
        Ok((until, returns))
    }
}

/// Drops frames until the one that has the stack pointer, and goes on at `found` with it. Expects
/// the side stack in `rcx`, and its last frame, which is another. Returns where it begins.
fn search(
    code: &mut CodeBuffer<'_>,
    hardening: &Hardening,
    found: u64,
) -> Result<u64, EncodeError> {
    // Nobody knows where this function returns to: the stack was changed without the side
    // stack.
    let lost = code.here();
    int3(code)?;
    let again = code.here();
    cmp_load64(code, Reg::Rbp, Mem::at(Reg::Rcx, control::UNUSED))?;
    jcc(code, Condition::BelowOrEqual, lost)?;
    // A signal handler may have dropped the same frame, and others.
    mov_reg_reg(code, Reg::R8, Reg::Rax)?;
    mov_reg_reg(code, Reg::Rax, Reg::Rbp)?;
    sub_imm(code, Reg::Rbp, FRAME_SIZE)?;
    cmpxchg64(code, Mem::at(Reg::Rcx, control::LAST), Reg::Rbp)?;
    mov_reg_reg(code, Reg::Rax, Reg::R8)?;
    unless(code, Condition::NotEqual, |code| {
        inc_mem64(code, Mem::at(Reg::Rcx, control::ABANDONED))
    })?;
    mov_load64(code, Reg::Rbp, Mem::at(Reg::Rcx, control::LAST))?;
    cmp_load64(code, Reg::Rsp, FRAME_SLOT)?;
    jcc(code, Condition::NotEqual, again)?;
    hardening.jump(code, found)?;
    Ok(again)
}

/// Fills up to a cache line, where a body begins.
pub(super) fn align(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    align_behind(code, 0)
}

/// The same where so many bytes come before the body.
pub(super) fn align_behind(code: &mut CodeBuffer<'_>, bytes: u64) -> Result<(), EncodeError> {
    while !code.here().wrapping_add(bytes).is_multiple_of(LINE) {
        int3(code)?;
    }
    Ok(())
}
