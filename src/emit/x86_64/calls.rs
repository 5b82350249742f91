//! Calling programs: the stack and the vector registers around it, and what they get.

use super::branch::Hardening;
use crate::emit::{EmitError, ExitContext, ProgramCall, Stride, Vectors};
use crate::encode::x86_64::{
    Mem, Reg, Scale, Vector, add_reg, and_imm, lea, mov_imm32, mov_imm64, mov_load64, mov_store64,
    movups_load, movups_store, sub_imm, vmovups256_load, vmovups256_store, vmovups512_load,
    vmovups512_store, vzeroupper,
};
use crate::encode::{CodeBuffer, EncodeError};

/// What the stack pointer is a multiple of at a call (psABI 3.2.2).
const STACK_ALIGNMENT: i32 = 16;

/// Aligns the stack for calls, and so that no vector that is saved there crosses a cache line:
/// such are stored and loaded faster.
pub(super) fn align_stack(code: &mut CodeBuffer<'_>, vectors: Vectors) -> Result<(), EncodeError> {
    and_imm(code, Reg::Rsp, -width(vectors).max(STACK_ALIGNMENT))
}

/// Calls one program on the context at `context`; the session words are those of `frame`. Expects
/// the index in `rax`.
pub(super) fn call_program(
    code: &mut CodeBuffer<'_>,
    hardening: &Hardening,
    program: &ProgramCall,
    context: Mem,
    frame: Mem,
) -> Result<(), EncodeError> {
    mov_imm64(code, Reg::R11, program.cookie.column)?;
    if let Stride::Sixteen = program.cookie.stride {
        add_reg(code, Reg::Rax, Reg::Rax)?;
    }
    mov_load64(code, Reg::Rsi, Mem::at(Reg::R11, 0).indexed(Reg::Rax, Scale::Eight))?;
    lea(code, Reg::Rdi, context)?;
    if let Some(data) = program.data {
        match u32::try_from(data) {
            Ok(data) => mov_imm32(code, Reg::Rdx, data)?,
            Err(_) => mov_imm64(code, Reg::Rdx, data)?,
        }
    }
    if let Some(number) = program.session {
        lea(code, Reg::Rcx, session(frame, number))?;
    }
    hardening.call_anywhere(code, program.target, true)
}

/// Overwrites the return address that the last call of a program has left below the stack
/// pointer: whoever looks through stacks for threads that are still in here, as quiescence
/// may have to, would take it for one. The stack pointer is no address of code, and at hand.
pub(super) fn forget_return_address(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    mov_store64(code, Mem::at(Reg::Rsp, -8), Reg::Rsp)
}

/// Refuses programs with a session word that is not one of the first `words`.
pub(super) fn check_sessions(calls: &[&[ProgramCall]], words: u8) -> Result<(), EmitError> {
    let mut numbers = calls.iter().copied().flatten().filter_map(|call| call.session);
    match numbers.find(|&number| number >= words) {
        Some(number) => Err(EmitError::Session { number, words }),
        None => Ok(()),
    }
}

/// The place of a session word of the frame that is at this place.
pub(super) const fn session(frame: Mem, number: u8) -> Mem {
    frame.plus(core::mem::offset_of!(ExitContext, sessions) as i32 + 8 * number as i32)
}

/// Bytes of one vector register of this width.
const fn width(vectors: Vectors) -> i32 {
    match vectors {
        Vectors::Untouched => 0,
        Vectors::Xmm => 16,
        Vectors::Ymm => 32,
        Vectors::Zmm => 64,
    }
}

/// The vector registers that hold arguments.
pub(super) const VECTOR_ARGUMENTS: u8 = 8;

/// Calls `each` for the first `count` vector registers and their places on the stack.
fn each_vector(
    vectors: Vectors,
    count: u8,
    mut each: impl FnMut(Vector, Mem) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    for (number, vector) in (0..count).filter_map(|n| Some((n, Vector::new(n)?))) {
        each(vector, Mem::at(Reg::Rsp, i32::from(number) * width(vectors)))?;
    }
    Ok(())
}

/// Saves the first `count` vector registers that hold arguments below the stack pointer, which
/// moves as if they were all.
pub(super) fn save_vectors(
    code: &mut CodeBuffer<'_>,
    vectors: Vectors,
    count: u8,
) -> Result<(), EncodeError> {
    if let Vectors::Untouched = vectors {
        return Ok(());
    }
    sub_imm(code, Reg::Rsp, i32::from(VECTOR_ARGUMENTS) * width(vectors))?;
    each_vector(vectors, count, |vector, place| match vectors {
        Vectors::Untouched => Ok(()),
        Vectors::Xmm => movups_store(code, place, vector),
        Vectors::Ymm => vmovups256_store(code, place, vector),
        Vectors::Zmm => vmovups512_store(code, place, vector),
    })?;
    match vectors {
        // Programs compiled for SSE would pay for dirty upper halves at every instruction.
        Vectors::Ymm | Vectors::Zmm => vzeroupper(code),
        Vectors::Untouched | Vectors::Xmm => Ok(()),
    }
}

/// Restores what [`save_vectors`] has saved. The stack pointer stays.
pub(super) fn restore_vectors(
    code: &mut CodeBuffer<'_>,
    vectors: Vectors,
    count: u8,
) -> Result<(), EncodeError> {
    each_vector(vectors, count, |vector, place| match vectors {
        Vectors::Untouched => Ok(()),
        Vectors::Xmm => movups_load(code, vector, place),
        Vectors::Ymm => vmovups256_load(code, vector, place),
        Vectors::Zmm => vmovups512_load(code, vector, place),
    })
}
