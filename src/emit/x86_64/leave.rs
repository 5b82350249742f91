//! What runs when a hooked function returns.

use super::call_frame::{frame, free_frame, run_exits};
use super::side_stack::{FRAME_SIZE, SLOT_ABOVE, field};
use crate::emit::{ProgramCall, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, Reg, cmp_load64, inc_mem64, int3, jcc, jmp, jmp_reg, mov_load64, mov_load64_fs,
    mov_reg_reg, mov_store64, pop, push, ret, sub_imm,
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
    /// From here on `rbx` is the call's frame, which is complete.
    pub found: u64,
    /// Up to here.
    pub until: u64,
    pub end: u64,
}

/// The body that a hooked function returns to, directly or through its thunk.
///
/// It changes what any function may change, but for the registers that return values are
/// in. It begins with `rsp` right above the slot that the caller's return address was in.
pub(super) struct Leave<'a> {
    pub thread_offset: i32,
    pub vectors: Vectors,
    /// In the order of their attachment: they run in reverse.
    pub calls: &'a [ProgramCall],
    pub back: Return,
}

/// The slot that the caller's return address was in, and will be again: `rbp` is as far below
/// it as it was in the body that ran before the function, and finds the frame.
const SLOT: Mem = Mem::at(Reg::Rbp, SLOT_ABOVE);

impl Leave<'_> {
    /// Emits the body.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Part, EncodeError> {
        // The search stands before the body, and goes on behind the body's beginning: a
        // first attempt elsewhere shows where that is.
        let mut trial = [0; 256];
        let mut trial = CodeBuffer::new(&mut trial, code.here());
        let here = trial.here();
        search(&mut trial, here)?;
        self.begin(&mut trial, here)?;
        let found = trial.here();

        let search = search(code, found)?;
        let start = self.begin(code, search)?;
        let found = code.here();
        let until = self.run(code)?;
        Ok(Part { start, found, until, end: code.here() })
    }

    /// Finds the frame: the last one, unless a function that was called from this one was
    /// left without a return.
    fn begin(&self, code: &mut CodeBuffer<'_>, search: u64) -> Result<u64, EncodeError> {
        align(code)?;
        let start = code.here();
        sub_imm(code, Reg::Rsp, 8)?;
        push(code, Reg::Rbx)?;
        push(code, Reg::Rbp)?;
        mov_reg_reg(code, Reg::Rbp, Reg::Rsp)?;
        mov_load64_fs(code, Reg::Rcx, self.thread_offset)?;
        mov_load64(code, Reg::Rbx, Mem::at(Reg::Rcx, field::TOP))?;
        sub_imm(code, Reg::Rbx, FRAME_SIZE)?;
        cmp_load64(code, Reg::Rbp, frame!(Reg::Rbx, slot))?;
        jcc(code, Condition::NotEqual, search)?;
        Ok(start)
    }

    /// Runs the programs on the frame in `rbx` and returns to the caller. Gives where the frame
    /// is given up.
    fn run(&self, code: &mut CodeBuffer<'_>) -> Result<u64, EncodeError> {
        mov_load64(code, Reg::R11, frame!(Reg::Rbx, caller))?;
        mov_store64(code, SLOT, Reg::R11)?;
        run_exits(code, self.vectors, self.calls)?;
        mov_load64_fs(code, Reg::Rcx, self.thread_offset)?;
        // A signal handler may come between these two: a free frame below the top does no
        // harm, but a frame above it is the handler's.
        let until = code.here();
        free_frame(code, Reg::Rbx)?;
        mov_store64(code, Mem::at(Reg::Rcx, field::TOP), Reg::Rbx)?;
        mov_reg_reg(code, Reg::Rsp, Reg::Rbp)?;
        pop(code, Reg::Rbp)?;
        pop(code, Reg::Rbx)?;
        match self.back {
            Return::Ret => ret(code)?,
            Return::Jump => {
                pop(code, Reg::R11)?;
                jmp_reg(code, Reg::R11)?;
            }
        }
        int3(code)?;
        Ok(until)
    }
}

/// Drops frames until the one whose slot is above `rbp`, and goes on at `found` with it in `rbx`.
/// Expects the last frame in `rbx` and the side stack in `rcx`. Returns where it begins.
fn search(code: &mut CodeBuffer<'_>, found: u64) -> Result<u64, EncodeError> {
    // Nobody knows where this function returns to: the stack was changed without the side
    // stack.
    let lost = code.here();
    int3(code)?;
    let again = code.here();
    cmp_load64(code, Reg::Rbx, Mem::at(Reg::Rcx, field::BASE))?;
    jcc(code, Condition::Below, lost)?;
    free_frame(code, Reg::Rbx)?;
    mov_store64(code, Mem::at(Reg::Rcx, field::TOP), Reg::Rbx)?;
    inc_mem64(code, Mem::at(Reg::Rcx, field::ABANDONED))?;
    sub_imm(code, Reg::Rbx, FRAME_SIZE)?;
    cmp_load64(code, Reg::Rbp, frame!(Reg::Rbx, slot))?;
    jcc(code, Condition::NotEqual, again)?;
    jmp(code, found)?;
    Ok(again)
}

/// Fills up to a multiple of 64, a cache line, where a body begins.
pub(super) fn align(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    while !code.here().is_multiple_of(64) {
        int3(code)?;
    }
    Ok(())
}
