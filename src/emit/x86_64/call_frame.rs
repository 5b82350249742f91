//! The frame of a call, and the programs that run on it before and after the function.

use super::branch::Hardening;
use super::calls::{
    VECTOR_ARGUMENTS, align_stack, call_program, forget_return_address, restore_vectors,
    save_vectors, session,
};
use crate::emit::context::state;
use crate::emit::{CookiePlace, ProgramCall, Stride, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, Reg, Scale, add_imm, add_reg, and_imm, jcc, mov_imm64, mov_load32, mov_load64,
    mov_store_imm64, mov_store32, mov_store64, test_reg,
};
use crate::encode::{CodeBuffer, EncodeError};

/// The place of a field of the frame that is at this place.
macro_rules! field {
    ($frame:expr, $field:ident) => {
        $frame.plus(core::mem::offset_of!($crate::emit::ExitContext, $field) as i32)
    };
}
pub(super) use field;

/// The registers that hold arguments, in the order of the frame.
pub(super) const ARGUMENTS: [Reg; 6] = [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9];

/// Vector registers that hold return values: `xmm0` and `xmm1` (psABI 3.2.3).
const VECTOR_RESULTS: u8 = 2;

/// The programs of an image, and the frame that they run on.
#[derive(Clone, Copy)]
pub(super) struct Programs<'a> {
    pub hardening: &'a Hardening,
    pub vectors: Vectors,
    /// Where the frame of the call is: at a register that programs keep.
    pub frame: Mem,
    pub entries: &'a [ProgramCall],
    pub modify: &'a [ProgramCall],
    /// In the order of their attachment: they run in reverse.
    pub exits: &'a [ProgramCall],
}

impl Programs<'_> {
    /// Where the frame has the argument with this number.
    const fn argument(&self, number: i32) -> Mem {
        field!(self.frame, args).plus(8 * number)
    }

    /// Stores the arguments to the frame.
    pub fn keep_arguments(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        for (argument, number) in ARGUMENTS.into_iter().zip(0..) {
            mov_store64(code, self.argument(number), argument)?;
        }
        Ok(())
    }

    /// Stores the index, in `r11`, to the frame, and with it, in one word, what the frame says of
    /// itself, where it is the context of entry programs. Changes `r10`.
    pub fn keep_index(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        let shown = state::FRAME_IS_ADDRESS | state::width(self.vectors);
        // How many stores a call makes is what its time depends on most.
        mov_imm64(code, Reg::R10, u64::from(shown) << 32)?;
        add_reg(code, Reg::R10, Reg::R11)?;
        mov_store64(code, field!(self.frame, index), Reg::R10)
    }

    /// Makes the session words of all programs zero.
    pub fn clear_sessions(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        let mut cleared = 0_u64;
        for number in self.entries.iter().chain(self.exits).filter_map(|call| call.session) {
            let bit = 1_u64.wrapping_shl(number.into());
            if cleared & bit == 0 {
                mov_store_imm64(code, session(self.frame, number), 0)?;
            }
            cleared |= bit;
        }
        Ok(())
    }

    /// Runs `entries`, and `modify` until one returns what is not zero, which goes on at `skip`
    /// with that in `rax`. Their context is the frame, from which the arguments are loaded again
    /// in the end. Aligns the stack pointer.
    pub fn run_entries(&self, code: &mut CodeBuffer<'_>, skip: u64) -> Result<(), EncodeError> {
        self.save_vectors(code, VECTOR_ARGUMENTS)?;
        for program in self.entries {
            self.run(code, program)?;
            if let Some(number) = program.session {
                test_reg(code, Reg::Rax, Reg::Rax)?;
                unless(code, Condition::Equal, |code| {
                    mov_load32(code, Reg::Rax, field!(self.frame, state))?;
                    add_imm(code, Reg::Rax, state::declined(number).cast_signed())?;
                    mov_store32(code, field!(self.frame, state), Reg::Rax)
                })?;
            }
        }
        for program in self.modify {
            self.run(code, program)?;
            test_reg(code, Reg::Rax, Reg::Rax)?;
            jcc(code, Condition::NotEqual, skip)?;
        }
        restore_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
        // Otherwise the thread is in here until the exit, which forgets them all.
        if self.exits.is_empty() {
            forget_return_address(code)?;
        }
        for (argument, number) in ARGUMENTS.into_iter().zip(0..) {
            mov_load64(code, argument, self.argument(number))?;
        }
        Ok(())
    }

    /// Runs `exits` in reverse on the frame, around which return values are kept. Expects the
    /// stack pointer where it was before [`run_entries`](Self::run_entries), so that the return
    /// addresses of calls are where theirs were, and are forgotten together. Aligns it.
    pub fn run_exits(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        if self.exits.is_empty() {
            return Ok(());
        }
        mov_store64(code, field!(self.frame, rax), Reg::Rax)?;
        mov_store64(code, field!(self.frame, rdx), Reg::Rdx)?;
        self.save_vectors(code, VECTOR_RESULTS)?;
        for program in self.exits.iter().rev() {
            match program.session {
                None => self.run(code, program)?,
                Some(session) => {
                    mov_load32(code, Reg::Rax, field!(self.frame, state))?;
                    and_imm(code, Reg::Rax, state::declined(session).cast_signed())?;
                    unless(code, Condition::NotEqual, |code| self.run(code, program))?;
                }
            }
        }
        restore_vectors(code, self.vectors, VECTOR_RESULTS)?;
        forget_return_address(code)?;
        mov_load64(code, Reg::Rax, field!(self.frame, rax))?;
        mov_load64(code, Reg::Rdx, field!(self.frame, rdx))
    }

    /// Aligns the stack, saves the first `count` vector registers there, and tells the frame where
    /// they are.
    fn save_vectors(&self, code: &mut CodeBuffer<'_>, count: u8) -> Result<(), EncodeError> {
        align_stack(code, self.vectors)?;
        save_vectors(code, self.vectors, count)?;
        match self.vectors {
            Vectors::Untouched => Ok(()),
            _ => mov_store64(code, field!(self.frame, vectors), Reg::Rsp),
        }
    }

    fn run(&self, code: &mut CodeBuffer<'_>, program: &ProgramCall) -> Result<(), EncodeError> {
        mov_load32(code, Reg::Rax, field!(self.frame, index))?;
        call_program(code, self.hardening, program, self.frame, self.frame)
    }
}

/// Loads the entry of the function with the index in `r11` into `r10`. Changes `r11`.
pub(super) fn load_function(
    code: &mut CodeBuffer<'_>,
    functions: CookiePlace,
) -> Result<(), EncodeError> {
    mov_imm64(code, Reg::R10, functions.column)?;
    if let Stride::Sixteen = functions.stride {
        add_reg(code, Reg::R11, Reg::R11)?;
    }
    mov_load64(code, Reg::R10, Mem::at(Reg::R10, 0).indexed(Reg::R11, Scale::Eight))
}

/// Emits a jump over what `emit` emits, to be taken on `condition`.
pub(super) fn unless(
    code: &mut CodeBuffer<'_>,
    condition: Condition,
    emit: impl Fn(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    // How far it jumps, a first attempt elsewhere shows: behind a near jump, which is what
    // stands here if nothing is jumped over.
    let mut trial = [0; 256];
    let mut trial = CodeBuffer::new(&mut trial, code.here());
    jcc(&mut trial, condition, code.here())?;
    emit(&mut trial)?;
    jcc(code, condition, trial.here())?;
    emit(code)
}
