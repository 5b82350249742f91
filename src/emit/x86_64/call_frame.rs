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

/// The place of a field of the frame at this register.
macro_rules! frame {
    ($frame:expr, $field:ident) => {
        Mem::at($frame, core::mem::offset_of!($crate::emit::ExitContext, $field) as i32)
    };
}
pub(super) use frame;

/// The registers that hold arguments, in the order of the frame.
pub(super) const ARGUMENTS: [Reg; 6] = [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9];

/// Vector registers that hold return values: `xmm0` and `xmm1` (psABI 3.2.3).
const VECTOR_RESULTS: u8 = 2;

/// Where the frame at `rbx` has the argument with this number.
const fn argument_place(number: i32) -> Mem {
    Mem::at(Reg::Rbx, frame!(Reg::Rbx, args).disp + 8 * number)
}

/// Stores the arguments to the frame at `rbx`.
pub(super) fn keep_arguments(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    for (argument, number) in ARGUMENTS.into_iter().zip(0..) {
        mov_store64(code, argument_place(number), argument)?;
    }
    Ok(())
}

/// Stores the index, in `r11`, to the frame at `rbx`, and with it, in one word, what the frame
/// says of itself, where it is the context of entry programs. Changes `r10`.
pub(super) fn keep_index(code: &mut CodeBuffer<'_>, vectors: Vectors) -> Result<(), EncodeError> {
    let shown = state::FRAME_IS_ADDRESS | state::width(vectors);
    // How many stores a call makes is what its time depends on most.
    mov_imm64(code, Reg::R10, u64::from(shown) << 32)?;
    add_reg(code, Reg::R10, Reg::R11)?;
    mov_store64(code, frame!(Reg::Rbx, index), Reg::R10)
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

/// Makes the session words of these programs zero, in the frame at `rbx`.
pub(super) fn clear_sessions(
    code: &mut CodeBuffer<'_>,
    entries: &[ProgramCall],
    exits: &[ProgramCall],
) -> Result<(), EncodeError> {
    let mut cleared = 0_u64;
    for number in entries.iter().chain(exits).filter_map(|call| call.session) {
        let bit = 1_u64.wrapping_shl(number.into());
        if cleared & bit == 0 {
            mov_store_imm64(code, session(number), 0)?;
        }
        cleared |= bit;
    }
    Ok(())
}

/// Runs `entries`, and `modify` until one returns what is not zero, which goes on at `skip`
/// with that in `rax`. Their context is the frame at `rbx`, from which the arguments are loaded
/// again in the end. Aligns the stack pointer.
pub(super) fn run_entries(
    code: &mut CodeBuffer<'_>,
    hardening: &Hardening,
    vectors: Vectors,
    entries: &[ProgramCall],
    modify: &[ProgramCall],
    skip: u64,
) -> Result<(), EncodeError> {
    save_shown_vectors(code, vectors, VECTOR_ARGUMENTS)?;
    for program in entries {
        run_program(code, hardening, program)?;
        if let Some(number) = program.session {
            test_reg(code, Reg::Rax, Reg::Rax)?;
            unless(code, Condition::Equal, |code| {
                mov_load32(code, Reg::Rax, frame!(Reg::Rbx, state))?;
                add_imm(code, Reg::Rax, state::declined(number).cast_signed())?;
                mov_store32(code, frame!(Reg::Rbx, state), Reg::Rax)
            })?;
        }
    }
    for program in modify {
        run_program(code, hardening, program)?;
        test_reg(code, Reg::Rax, Reg::Rax)?;
        jcc(code, Condition::NotEqual, skip)?;
    }
    restore_vectors(code, vectors, VECTOR_ARGUMENTS)?;
    forget_return_address(code)?;
    for (argument, number) in ARGUMENTS.into_iter().zip(0..) {
        mov_load64(code, argument, argument_place(number))?;
    }
    Ok(())
}

/// Runs `calls` in reverse on the [`ExitContext`] at `rbx`, around which return values are
/// kept. Aligns the stack pointer.
pub(super) fn run_exits(
    code: &mut CodeBuffer<'_>,
    hardening: &Hardening,
    vectors: Vectors,
    calls: &[ProgramCall],
) -> Result<(), EncodeError> {
    if calls.is_empty() {
        return Ok(());
    }
    mov_store64(code, frame!(Reg::Rbx, rax), Reg::Rax)?;
    mov_store64(code, frame!(Reg::Rbx, rdx), Reg::Rdx)?;
    save_shown_vectors(code, vectors, VECTOR_RESULTS)?;
    for program in calls.iter().rev() {
        match program.session {
            None => run_program(code, hardening, program)?,
            Some(session) => {
                mov_load32(code, Reg::Rax, frame!(Reg::Rbx, state))?;
                and_imm(code, Reg::Rax, state::declined(session).cast_signed())?;
                unless(code, Condition::NotEqual, |code| run_program(code, hardening, program))?;
            }
        }
    }
    restore_vectors(code, vectors, VECTOR_RESULTS)?;
    forget_return_address(code)?;
    mov_load64(code, Reg::Rax, frame!(Reg::Rbx, rax))?;
    mov_load64(code, Reg::Rdx, frame!(Reg::Rbx, rdx))
}

/// Aligns the stack, saves the first `count` vector registers there, and tells the frame at `rbx`
/// where they are.
fn save_shown_vectors(
    code: &mut CodeBuffer<'_>,
    vectors: Vectors,
    count: u8,
) -> Result<(), EncodeError> {
    align_stack(code, vectors)?;
    save_vectors(code, vectors, count)?;
    match vectors {
        Vectors::Untouched => Ok(()),
        _ => mov_store64(code, frame!(Reg::Rbx, vectors), Reg::Rsp),
    }
}

/// Runs one program on the frame at `rbx`.
fn run_program(
    code: &mut CodeBuffer<'_>,
    hardening: &Hardening,
    program: &ProgramCall,
) -> Result<(), EncodeError> {
    mov_load32(code, Reg::Rax, frame!(Reg::Rbx, index))?;
    call_program(code, hardening, program, Mem::at(Reg::Rbx, 0))
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

/// Marks `frame` as one that nobody uses.
pub(super) fn free_frame(code: &mut CodeBuffer<'_>, frame: Reg) -> Result<(), EncodeError> {
    mov_store_imm64(code, frame!(frame, slot), -1)
}
