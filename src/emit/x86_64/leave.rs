//! What runs when a hooked function returns.

use super::entry::{
    align_stack, call_program, forget_return_address, restore_vectors, save_vectors,
};
use super::side_stack::{FRAME_SIZE, SLOT_ABOVE, field};
use crate::emit::context::state;
use crate::emit::{ExitContext, ProgramCall, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, Reg, and_imm, cmp_load64, inc_mem64, int3, jcc, jmp, jmp_reg, mov_load32,
    mov_load64, mov_load64_fs, mov_reg_reg, mov_store_imm64, mov_store64, pop, push, ret, sub_imm,
};
use crate::encode::{CodeBuffer, EncodeError};

/// Vector registers that hold return values: `xmm0` and `xmm1` (psABI 3.2.3).
const VECTOR_RESULTS: u8 = 2;

/// The place of a field of the frame at this register.
macro_rules! frame {
    ($frame:expr, $field:ident) => {
        Mem::at($frame, core::mem::offset_of!($crate::emit::ExitContext, $field) as i32)
    };
}
pub(super) use frame;

/// The place of a session word of the frame at `rbx`.
pub(super) const fn session(number: u8) -> Mem {
    Mem::at(Reg::Rbx, core::mem::offset_of!(ExitContext, sessions) as i32 + 8 * number as i32)
}

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

/// Runs `calls` in reverse on the [`ExitContext`] at `rbx`, around which return values are
/// kept. Aligns the stack pointer.
pub(super) fn run_exits(
    code: &mut CodeBuffer<'_>,
    vectors: Vectors,
    calls: &[ProgramCall],
) -> Result<(), EncodeError> {
    if calls.is_empty() {
        return Ok(());
    }
    mov_store64(code, frame!(Reg::Rbx, rax), Reg::Rax)?;
    mov_store64(code, frame!(Reg::Rbx, rdx), Reg::Rdx)?;
    align_stack(code, vectors)?;
    save_vectors(code, vectors, VECTOR_RESULTS)?;
    if vectors != Vectors::Untouched {
        mov_store64(code, frame!(Reg::Rbx, vectors), Reg::Rsp)?;
    }
    for program in calls.iter().rev() {
        match program.session {
            None => run_exit(code, program)?,
            Some(session) => {
                mov_load32(code, Reg::Rax, frame!(Reg::Rbx, state))?;
                and_imm(code, Reg::Rax, state::declined(session).cast_signed())?;
                unless(code, Condition::NotEqual, |code| run_exit(code, program))?;
            }
        }
    }
    restore_vectors(code, vectors, VECTOR_RESULTS)?;
    forget_return_address(code)?;
    mov_load64(code, Reg::Rax, frame!(Reg::Rbx, rax))?;
    mov_load64(code, Reg::Rdx, frame!(Reg::Rbx, rdx))
}

fn run_exit(code: &mut CodeBuffer<'_>, program: &ProgramCall) -> Result<(), EncodeError> {
    mov_load32(code, Reg::Rax, frame!(Reg::Rbx, index))?;
    call_program(code, program, Mem::at(Reg::Rbx, 0))
}

/// Emits a jump over what `emit` emits, to be taken on `condition`.
pub(super) fn unless(
    code: &mut CodeBuffer<'_>,
    condition: Condition,
    emit: impl Fn(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    // How far it jumps, a first attempt elsewhere shows: behind a near jump, which is what
    // stands here if nothing is jumped over.
    let mut trial = [0; 128];
    let mut trial = CodeBuffer::new(&mut trial, code.here());
    jcc(&mut trial, condition, code.here())?;
    emit(&mut trial)?;
    jcc(code, condition, trial.here())?;
    emit(code)
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

/// Marks `frame` as one that nobody uses.
pub(super) fn free_frame(code: &mut CodeBuffer<'_>, frame: Reg) -> Result<(), EncodeError> {
    mov_store_imm64(code, frame!(frame, slot), -1)
}

/// Fills up to a multiple of 64, a cache line, where a body begins.
pub(super) fn align(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    while !code.here().is_multiple_of(64) {
        int3(code)?;
    }
    Ok(())
}
