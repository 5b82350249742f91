//! Entry and exit with all state on the ordinary stack.

use super::branch::Hardening;
use super::call_frame::{Programs, field, load_function};
use super::calls::{check_sessions, forget_return_address};
use super::exit_thunk::{Bodies, ENTER_TO_EXIT};
use super::leave::{Part, align};
use super::side_stack::{FRAME_SIZE, SLOT_ABOVE};
use super::unwind::{Kind, Marks};
use crate::emit::{CookiePlace, EmitError, ProgramCall, SESSIONS, Vectors};
use crate::encode::x86_64::{
    Mem, Reg, lea, mov_load64, mov_reg_reg, mov_store64, pop, push, test_reg, xor_reg32,
};
use crate::encode::{CodeBuffer, EncodeError};

/// The bodies for functions of which it is known how many arguments they have on the stack.
///
/// They do what [`SideStackBodies`](super::SideStackBodies) do, without a side stack: the
/// origin runs on a copy of its stack arguments, above which its caller's return address and
/// the [`ExitContext`](crate::emit::ExitContext) are. So whatever becomes of the stack becomes
/// of these: a function may be left by `longjmp`, and threads may switch stacks inside of it.
///
/// The stack while the origin runs, where *S* is the slot of its caller's return address and
/// there are *n* words of stack arguments, and *m* is *n* with its lowest bit set, or its lowest
/// three from four words on: the copy is aligned as the arguments are, of which vectors of 32 and
/// 64 bytes are to their size (psABI 3.2.2):
///
/// | address | |
/// |---|---|
/// | *S* + 8 | the arguments on the stack, as the caller has passed them |
/// | *S* | the caller's return address |
/// | *S* - 8 | the caller's `rbp`; `rbp` points here, as in any function with a frame pointer |
/// | *S* - 16 | the caller's `rbx` |
/// | *S* - 192 | the exit context |
/// | *S* - 192 - 8 *m* | the copy of the arguments |
/// | below | the return address of the origin, in the thunk, and the origin's own |
///
/// No call overflows, and none runs unhooked.
#[derive(Clone, Copy, Debug)]
pub struct FrameBodies<'a> {
    /// Where the functions' entries stand, found by their index.
    pub functions: CookiePlace,
    /// Arguments on the stack, in words of 8 bytes, of each function: at least as many as it
    /// has, and no more than its callers have made room for.
    pub stack_arguments: u8,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The entry programs, in the order in which they run.
    pub entries: &'a [ProgramCall],
    /// The programs that may modify the return, in the order in which they run.
    pub modify: &'a [ProgramCall],
    /// The exit programs, in the order of their attachment.
    pub exits: &'a [ProgramCall],
}

/// The word that holds the caller's `rbx`.
const RBX: Mem = Mem::at(Reg::Rbp, -8);
/// The slot.
const CALLER: Mem = Mem::at(Reg::Rbp, 8);
/// What the context holds of it.
const PLACE: Mem = CALLER.plus(-SLOT_ABOVE);
/// The exit context.
const FRAME: Mem = Mem::at(Reg::Rbx, 0);
/// From `rbp` to the first argument on the stack.
const STACK_ARGUMENTS: i32 = 16;

impl FrameBodies<'_> {
    /// Bytes that the bodies of so many programs can take at the most: `entries` and `modify`
    /// together, and `exits`.
    #[must_use]
    pub const fn max_size(entries: usize, exits: usize, stack_arguments: u8) -> usize {
        896 + 96 * entries + 80 * exits + 12 * stack_arguments as usize
    }

    /// The same with mitigations.
    #[must_use]
    pub const fn max_hardened_size(entries: usize, exits: usize, stack_arguments: u8) -> usize {
        Self::max_size(entries, exits, stack_arguments)
            + Hardening::MAX_SIZE * (entries + exits + 3)
    }

    /// Emits both bodies for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Session`] if a program is to get a session word that no call has.
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`max_size`](Self::max_size)
    /// says how many are enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Bodies, EmitError> {
        Ok(self.emit_marked(code)?.bodies())
    }

    /// As [`emit`](Self::emit), with what an [unwind table](super::UnwindTable::of_bodies) has
    /// to know.
    ///
    /// # Errors
    /// As those of [`emit`](Self::emit).
    pub fn emit_marked(&self, code: &mut CodeBuffer<'_>) -> Result<Marks, EmitError> {
        self.emit_hardened(code, &Hardening::NONE)
    }

    /// As [`emit_marked`](Self::emit_marked), with mitigations. A check is that of the programs'
    /// type, for those that a direct call does not reach. Thunks are those of
    /// [`exit_thunk_hardened`](super::exit_thunk_hardened).
    ///
    /// # Errors
    /// As those of [`emit`](Self::emit), where [`max_hardened_size`](Self::max_hardened_size)
    /// says how many bytes are enough, or if a thunk or the count of calls is 2 GiB or more away.
    pub fn emit_hardened(
        &self,
        code: &mut CodeBuffer<'_>,
        hardening: &Hardening,
    ) -> Result<Marks, EmitError> {
        check_sessions(&[self.entries, self.modify, self.exits], SESSIONS)?;
        let start = code.here();
        let exit = self.leave(code, hardening)?;
        let (enter, skip_until) = self.enter(code, hardening)?;
        Ok(Marks { start, exit, enter, kind: Kind::Frame { skip_until } })
    }

    /// Bytes from the stack pointer that the origin's thunk has to the exit context.
    fn below_frame(&self) -> i32 {
        // From the copy to the arguments it is a multiple of 16, or of 64 where they may have
        // been aligned to that: 25 words are between them besides.
        let words = i32::from(self.stack_arguments);
        8 * (words | if words < 4 { 1 } else { 7 })
    }

    const fn programs<'a>(&'a self, hardening: &'a Hardening) -> Programs<'a> {
        let &Self { vectors, entries, modify, exits, .. } = self;
        Programs { hardening, vectors, frame: FRAME, entries, modify, exits }
    }

    fn enter(
        &self,
        code: &mut CodeBuffer<'_>,
        hardening: &Hardening,
    ) -> Result<(Part, u64), EncodeError> {
        let (skip, skip_until) = self.skip(code, hardening)?;
        align(code)?;
        let start = code.here();
        // The caller's `rbp` takes the place of the return address to the thunk.
        push(code, Reg::Rbx)?;
        mov_load64(code, Reg::Rbx, Mem::at(Reg::Rsp, 8))?;
        mov_store64(code, Mem::at(Reg::Rsp, 8), Reg::Rbp)?;
        lea(code, Reg::Rbp, Mem::at(Reg::Rsp, 8))?;
        lea(code, Reg::Rsp, Mem::at(Reg::Rsp, -FRAME_SIZE))?;
        mov_store64(code, field!(Mem::at(Reg::Rsp, 0), link), Reg::Rbx)?;
        mov_reg_reg(code, Reg::Rbx, Reg::Rsp)?;
        self.fill(code, hardening)?;
        let found = code.here();
        if !self.entries.is_empty() || !self.modify.is_empty() {
            self.programs(hardening).run_entries(code, skip)?;
        }
        lea(
            code,
            Reg::Rsp,
            Mem::at(Reg::Rbx, 8 * i32::from(self.stack_arguments) - self.below_frame()),
        )?;
        for number in (0..i32::from(self.stack_arguments)).rev() {
            mov_load64(code, Reg::R11, Mem::at(Reg::Rbp, STACK_ARGUMENTS + 8 * number))?;
            push(code, Reg::R11)?;
        }
        mov_load64(code, Reg::R11, field!(FRAME, link))?;
        push(code, Reg::R11)?;
        mov_load64(code, Reg::Rax, field!(FRAME, rax))?;
        mov_load64(code, Reg::R10, field!(FRAME, rdx))?;
        mov_load64(code, Reg::Rbx, RBX)?;
        let until = code.here();
        if hardening.returns_flags() {
            // Neither zero nor a carry comes of it.
            test_reg(code, Reg::Rsp, Reg::Rsp)?;
        }
        let returns = code.here();
        hardening.body_end(code)?;
        Ok((Part { start, found, until, returns, end: code.here() }, skip_until))
    }

    /// Fills the context at `rbx`. `rax` and `r10` stand where the exit's `rax` and `rdx` will.
    fn fill(&self, code: &mut CodeBuffer<'_>, hardening: &Hardening) -> Result<(), EncodeError> {
        let programs = self.programs(hardening);
        programs.keep_arguments(code)?;
        mov_store64(code, field!(FRAME, rax), Reg::Rax)?;
        mov_store64(code, field!(FRAME, rdx), Reg::R10)?;
        programs.keep_index(code)?;
        load_function(code, self.functions)?;
        mov_store64(code, field!(FRAME, function), Reg::R10)?;
        lea(code, Reg::R10, PLACE)?;
        mov_store64(code, field!(FRAME, slot), Reg::R10)?;
        mov_load64(code, Reg::R10, CALLER)?;
        mov_store64(code, field!(FRAME, caller), Reg::R10)?;
        programs.clear_sessions(code)
    }

    /// Emits what a program's result, in `rax`, goes on at where it is what the function returns.
    /// Gives where it begins, and up to where `rbx` is the frame.
    fn skip(
        &self,
        code: &mut CodeBuffer<'_>,
        hardening: &Hardening,
    ) -> Result<(u64, u64), EncodeError> {
        let start = code.here();
        if self.modify.is_empty() {
            return Ok((start, start));
        }
        forget_return_address(code)?;
        lea(code, Reg::Rsp, Mem::at(Reg::Rbx, -self.below_frame()))?;
        mov_load64(code, Reg::R11, field!(FRAME, link))?;
        if !hardening.returns_flags() {
            lea(code, Reg::R11, Mem::at(Reg::R11, ENTER_TO_EXIT))?;
        }
        push(code, Reg::R11)?;
        mov_load64(code, Reg::Rbx, RBX)?;
        let until = code.here();
        // Sets zero and clears the carry.
        xor_reg32(code, Reg::Rdx, Reg::Rdx)?;
        hardening.body_end(code)?;
        Ok((start, until))
    }

    fn leave(&self, code: &mut CodeBuffer<'_>, hardening: &Hardening) -> Result<Part, EncodeError> {
        align(code)?;
        let start = code.here();
        lea(code, Reg::Rbx, Mem::at(Reg::Rsp, self.below_frame()))?;
        let found = code.here();
        if !self.exits.is_empty() {
            mov_reg_reg(code, Reg::Rsp, Reg::Rbx)?;
            self.programs(hardening).run_exits(code)?;
        }
        lea(code, Reg::Rsp, Mem::at(Reg::Rbx, FRAME_SIZE))?;
        pop(code, Reg::Rbx)?;
        let until = code.here();
        pop(code, Reg::Rbp)?;
        let returns = code.here();
        hardening.body_end(code)?;
        Ok(Part { start, found, until, returns, end: code.here() })
    }
}
