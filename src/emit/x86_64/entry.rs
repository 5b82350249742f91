//! The entry body: one for a set of programs, shared by every function that runs them.

use memoffset::offset_of;

use super::branch::Hardening;
use super::calls::{
    VECTOR_ARGUMENTS, align_stack, call_program, check_sessions, forget_return_address,
    restore_vectors, save_vectors,
};
use crate::emit::context::state;
use crate::emit::{Context, EmitError, IndexFrom, ProgramCall, Vectors};
use crate::encode::x86_64::{
    Mem, Reg, add_imm, lea, mov_load32, mov_load64, mov_reg_reg, mov_store_imm32, mov_store64, pop,
    push, sub_imm,
};
use crate::encode::{CodeBuffer, EncodeError};

/// Bytes of [`Context`] below the saved `rbp`: what the body makes on its stack.
const FRAME: i32 = offset_of!(Context, frame) as i32;

/// The [`Context`]: `rbp` points at its field `frame`.
pub(super) const CONTEXT: Mem = Mem::at(Reg::Rbp, -FRAME);

/// A field's place.
macro_rules! at {
    ($field:ident) => {
        Mem::at(Reg::Rbp, offset_of!(Context, $field) as i32 - FRAME)
    };
}

/// Places of fields for other bodies that make the same context.
pub(super) const INDEX: Mem = at!(index);
pub(super) const FUNCTION: Mem = at!(function);
pub(super) const CALLER: Mem = at!(caller);

/// What is below the saved `rbp` besides registers: index and entry of the function, and where
/// vectors are.
const FOUND: i32 = FRAME - offset_of!(Context, index) as i32;

/// The registers that a callee may read, in the order of [`Context`].
pub(super) const SAVED: [Reg; 8] =
    [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9, Reg::Rax, Reg::R10];

static_assertions::const_assert_eq!(offset_of!(Context, index), 8 * SAVED.len());

/// The body that the patch sites of any number of functions call, to run the same programs.
///
/// It runs `calls` in order, each as `program(context, cookie, data)`, and returns into the
/// function. It changes only `r11` and the flags, which the psABI gives to no argument, and
/// the vector registers that [`Vectors`] says programs leave alone.
///
/// Two things that one might expect to hold at a function's entry do not, and are not relied
/// on. The stack need not be 16-byte aligned: gcc calls a local function that needs no
/// alignment with whatever `rsp` it has (seen with gcc 12 at `-O2`), so the body aligns it.
/// And the function may be the callee of a tail call, so that nothing is known of the word
/// above the return address but that it is there.
///
/// The direction flag is clear at every function entry (psABI 3.2.1), and stays so.
#[derive(Clone, Copy, Debug)]
pub struct EntryBody<'a> {
    /// How the function's index is found.
    pub index: IndexFrom,
    /// Bytes from the entry to the return address that the body sees
    /// ([`EntryLayout::return_to_entry`](crate::layout::EntryLayout::return_to_entry)).
    pub return_to_entry: u16,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The programs, in the order in which they run.
    pub calls: &'a [ProgramCall],
}

impl EntryBody<'_> {
    /// Bytes that a body of `calls` programs can take at the most.
    #[must_use]
    pub const fn max_size(calls: usize) -> usize {
        384 + 56 * calls
    }

    /// The same with mitigations.
    #[must_use]
    pub const fn max_hardened_size(calls: usize) -> usize {
        Self::max_size(calls) + Hardening::MAX_SIZE * (calls + 1)
    }

    /// Emits the body for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Session`] if a program is to get a session word.
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`max_size`](Self::max_size)
    /// says how many are enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.emit_hardened(code, &Hardening::NONE)
    }

    /// As [`emit`](Self::emit), with mitigations. A check is that of the programs' type, for
    /// those that a direct call does not reach.
    ///
    /// # Errors
    /// As those of [`emit`](Self::emit), where [`max_hardened_size`](Self::max_hardened_size)
    /// says how many bytes are enough, or if a thunk or the count of calls is 2 GiB or more away.
    pub fn emit_hardened(
        &self,
        code: &mut CodeBuffer<'_>,
        hardening: &Hardening,
    ) -> Result<(), EmitError> {
        check_sessions(&[self.calls], 0)?;
        save(code)?;
        self.find_function(code)?;
        align_stack(code, self.vectors)?;
        save_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
        show_vectors(code, self.vectors)?;
        for (position, program) in self.calls.iter().enumerate() {
            if position > 0 {
                mov_load32(code, Reg::Rax, at!(index))?;
            }
            call_program(code, hardening, program, CONTEXT, CONTEXT)?;
        }
        restore_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
        forget_return_address(code)?;
        restore_registers(code, hardening)?;
        Ok(hardening.body_end(code)?)
    }

    /// Finds index and entry of the function; leaves the index in `rax`.
    fn find_function(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        if let IndexFrom::Thunk = self.index {
            mov_reg_reg(code, Reg::Rax, Reg::R11)?;
        }
        mov_load64(code, Reg::R11, at!(origin))?;
        if let IndexFrom::Slot { return_to_index } = self.index {
            mov_load32(code, Reg::Rax, Mem::at(Reg::R11, -i32::from(return_to_index)))?;
        }
        mov_store64(code, at!(index), Reg::Rax)?;
        lea(code, Reg::R11, Mem::at(Reg::R11, -i32::from(self.return_to_entry)))?;
        mov_store64(code, at!(function), Reg::R11)
    }
}

/// Makes the [`Context`], but for what is found from the return address.
pub(super) fn save(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    push(code, Reg::Rbp)?;
    mov_reg_reg(code, Reg::Rbp, Reg::Rsp)?;
    sub_imm(code, Reg::Rsp, FOUND)?;
    for &register in SAVED.iter().rev() {
        push(code, register)?;
    }
    Ok(())
}

/// Tells the [`Context`] where the vectors are that were saved last. The body has stored its
/// index, and with it a state that says that there are none.
pub(super) fn show_vectors(code: &mut CodeBuffer<'_>, vectors: Vectors) -> Result<(), EncodeError> {
    if let Vectors::Untouched = vectors {
        return Ok(());
    }
    mov_store64(code, at!(vectors), Reg::Rsp)?;
    mov_store_imm32(code, at!(state), state::width(vectors))
}

/// Puts every register back; what is left on the stack is the return address.
fn restore_registers(code: &mut CodeBuffer<'_>, hardening: &Hardening) -> Result<(), EncodeError> {
    lea(code, Reg::Rsp, CONTEXT)?;
    for register in SAVED {
        pop(code, register)?;
    }
    add_imm(code, Reg::Rsp, FOUND)?;
    // So that the body's end is as long as is said where its unwind table is made.
    hardening.prepare_body_end(code, 1)?;
    pop(code, Reg::Rbp)
}
