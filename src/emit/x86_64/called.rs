//! The trampoline that is called and then skips a frame, for comparison.

use super::branch::Hardening;
use super::call_frame::{Programs, field};
use super::calls::{
    VECTOR_ARGUMENTS, align_stack, call_program, check_sessions, forget_return_address,
    restore_vectors, save_vectors,
};
use super::entry::{CALLER, CONTEXT, FUNCTION, INDEX, SAVED, save, show_vectors};
use super::leave::align;
use super::side_stack::FRAME_SIZE;
use crate::addr::{Entry, Origin};
use crate::emit::context::state;
use crate::emit::{EmitError, ProgramCall, SESSIONS, Vectors};
use crate::encode::x86_64::{
    Mem, Reg, add_imm, and_imm, call, int3, lea, mov_imm32, mov_imm64, mov_load32, mov_load64,
    mov_reg_reg, mov_store_imm32, mov_store64, pop, push, ret, sub_imm,
};
use crate::encode::{CodeBuffer, EncodeError};

/// One function's trampoline in the form that Linux used before 6.19, and that a patcher which
/// can only write calls needs: the patch site calls it, it calls the origin, and then returns
/// to the function's caller past the frame that the patch site's call has made.
///
/// It gives programs what [`SideStackBodies`](super::SideStackBodies) gives them, from a frame
/// on the ordinary stack, and exists to be compared with it: a session's entry program cannot
/// decline its exit program. The last `ret` returns to
/// elsewhere than the last `call` came from: it, and those of all callers whose addresses a
/// return-stack predictor then has one too high, are mispredicted, and a hardware shadow stack
/// forbids it. Arguments on the stack are copied, so their number must be known.
#[derive(Clone, Copy, Debug)]
pub struct CalledTrampoline<'a> {
    /// The function's index.
    pub index: u32,
    /// The function's entry.
    pub function: Entry,
    /// Where its own body goes on.
    pub origin: Origin,
    /// Arguments on the stack, in words of 8 bytes.
    pub stack_arguments: u8,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The entry programs, in the order in which they run.
    pub entries: &'a [ProgramCall],
    /// The exit programs, in the order of their attachment: they run in reverse.
    pub exits: &'a [ProgramCall],
}

/// The exit context, below the saved `rbx`, which is below the context.
const EXIT_CONTEXT: i32 = CONTEXT.disp - 8 - FRAME_SIZE;
/// The same, while programs run on it.
const FRAME: Mem = Mem::at(Reg::Rbx, 0);

impl CalledTrampoline<'_> {
    /// Bytes that a trampoline of so many programs can take at the most.
    #[must_use]
    pub const fn max_size(entries: usize, exits: usize, stack_arguments: u8) -> usize {
        768 + 96 * entries + 80 * exits + 16 * stack_arguments as usize
    }

    /// Emits the trampoline for the address where `code` will run, and returns where it begins.
    ///
    /// # Errors
    /// [`EmitError::Session`] if a program is to get a session word that no call has.
    /// [`EmitError::Encode`] if `code` has too few bytes left, for which
    /// [`max_size`](Self::max_size) says how many are enough, or if the origin is 2 GiB or more
    /// away.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<u64, EmitError> {
        check_sessions(&[self.entries, self.exits], SESSIONS)?;
        align(code)?;
        let start = code.here();
        self.save(code)?;
        if !self.entries.is_empty() {
            align_stack(code, self.vectors)?;
            save_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
            show_vectors(code, self.vectors)?;
            for program in self.entries {
                mov_load32(code, Reg::Rax, INDEX)?;
                call_program(code, &Hardening::NONE, program, CONTEXT, FRAME)?;
            }
            restore_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
            forget_return_address(code)?;
        }
        self.call_origin(code)?;
        self.programs().run_exits(code)?;
        mov_load64(code, Reg::Rbx, Mem::at(Reg::Rbp, CONTEXT.disp - 8))?;
        mov_reg_reg(code, Reg::Rsp, Reg::Rbp)?;
        pop(code, Reg::Rbp)?;
        add_imm(code, Reg::Rsp, 8)?;
        ret(code)?;
        int3(code)?;
        Ok(start)
    }

    const fn programs(&self) -> Programs<'_> {
        let &Self { vectors, entries, exits, .. } = self;
        let hardening = &Hardening::NONE;
        Programs { hardening, vectors, frame: FRAME, entries, modify: &[], exits }
    }

    /// Makes both contexts; `rbx` points at the one for the exit.
    fn save(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        save(code)?;
        push(code, Reg::Rbx)?;
        sub_imm(code, Reg::Rsp, FRAME_SIZE)?;
        lea(code, Reg::Rbx, Mem::at(Reg::Rbp, EXIT_CONTEXT))?;
        self.programs().keep_arguments(code)?;
        mov_imm32(code, Reg::Rax, self.index)?;
        mov_store64(code, INDEX, Reg::Rax)?;
        mov_store64(code, field!(FRAME, index), Reg::Rax)?;
        mov_imm64(code, Reg::R11, self.function.get())?;
        mov_store64(code, FUNCTION, Reg::R11)?;
        mov_store64(code, field!(FRAME, function), Reg::R11)?;
        mov_load64(code, Reg::R11, CALLER)?;
        mov_store64(code, field!(FRAME, caller), Reg::R11)?;
        mov_store_imm32(code, field!(FRAME, state), state::width(self.vectors))?;
        self.programs().clear_sessions(code)
    }

    /// Calls the origin with the registers that the programs have left it and copies of its
    /// stack arguments, aligned as an unhooked caller would have them.
    fn call_origin(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        and_imm(code, Reg::Rsp, -16)?;
        if !self.stack_arguments.is_multiple_of(2) {
            sub_imm(code, Reg::Rsp, 8)?;
        }
        for number in (1..=i32::from(self.stack_arguments)).rev() {
            mov_load64(code, Reg::R11, Mem::at(CALLER.base, CALLER.disp + 8 * number))?;
            push(code, Reg::R11)?;
        }
        for (register, number) in SAVED.into_iter().zip(0..) {
            mov_load64(code, register, Mem::at(CONTEXT.base, CONTEXT.disp + 8 * number))?;
        }
        call(code, self.origin.get())
    }
}
