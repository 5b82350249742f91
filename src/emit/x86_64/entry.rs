//! The entry body: one for a set of programs, shared by every function that runs them.

use memoffset::offset_of;

use crate::emit::context::state;
use crate::emit::{Context, EmitError, IndexFrom, ProgramCall, Stride, Vectors};
use crate::encode::x86_64::{
    Mem, Reg, Scale, Vector, add_imm, add_reg, and_imm, call, call_reg, int3, lea, mov_imm32,
    mov_imm64, mov_load32, mov_load64, mov_reg_reg, mov_store_imm32, mov_store_imm64, mov_store64,
    movups_load, movups_store, pop, push, ret, sub_imm, vmovups256_load, vmovups256_store,
    vmovups512_load, vmovups512_store, vzeroupper,
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

/// Bytes of what follows the last `pop rbp`: `ret` and `int3`.
pub(super) const BODY_END: usize = 2;

/// What is below the saved `rbp` besides registers: index and entry of the function, and where
/// vectors are.
const FOUND: i32 = FRAME - offset_of!(Context, index) as i32;

/// What the stack pointer is a multiple of at a call (psABI 3.2.2).
const STACK_ALIGNMENT: i32 = 16;

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

    /// Emits the body for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`max_size`](Self::max_size)
    /// says how many are enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        save(code)?;
        self.find_function(code)?;
        align_stack(code, self.vectors)?;
        save_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
        show_vectors(code, self.vectors)?;
        for (position, program) in self.calls.iter().enumerate() {
            if position > 0 {
                mov_load32(code, Reg::Rax, at!(index))?;
            }
            call_program(code, program, CONTEXT)?;
        }
        restore_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
        forget_return_address(code)?;
        restore(code)?;
        Ok(())
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

/// Aligns the stack for calls, and so that no vector that is saved there crosses a cache line:
/// such are stored and loaded faster.
pub(super) fn align_stack(code: &mut CodeBuffer<'_>, vectors: Vectors) -> Result<(), EncodeError> {
    and_imm(code, Reg::Rsp, -width(vectors).max(STACK_ALIGNMENT))
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

/// Calls one program on what stands at `context`. Expects the index in `rax`, and where the
/// program has a session, the frame at `rbx`.
pub(super) fn call_program(
    code: &mut CodeBuffer<'_>,
    program: &ProgramCall,
    context: Mem,
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
    if let Some(session) = program.session {
        lea(code, Reg::Rcx, super::call_frame::session(session))?;
    }
    call_anywhere(code, program.target)
}

/// Calls the function at `target`; may change `rax` on the way there.
pub(super) fn call_anywhere(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
    match call(code, target) {
        // It is in another module, out of a direct call's reach. There is no other way to it
        // than through a register.
        Err(EncodeError::OutOfRange { .. }) => {
            mov_imm64(code, Reg::Rax, target)?;
            call_reg(code, Reg::Rax)
        }
        called => called,
    }
}

/// Overwrites the return address that the last call of a program has left below the stack
/// pointer: whoever looks through stacks for threads that are still in here, as quiescence
/// may have to, would take it for one.
pub(super) fn forget_return_address(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    mov_store_imm64(code, Mem::at(Reg::Rsp, -8), 0)
}

/// Puts every register back and returns into the function.
fn restore(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    restore_registers(code)?;
    ret(code)?;
    int3(code)
}

/// Puts every register back; what is left on the stack is the return address.
fn restore_registers(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    lea(code, Reg::Rsp, CONTEXT)?;
    for register in SAVED {
        pop(code, register)?;
    }
    add_imm(code, Reg::Rsp, FOUND)?;
    pop(code, Reg::Rbp)
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

/// Saves the first `count` vector registers below the stack pointer.
pub(super) fn save_vectors(
    code: &mut CodeBuffer<'_>,
    vectors: Vectors,
    count: u8,
) -> Result<(), EncodeError> {
    if let Vectors::Untouched = vectors {
        return Ok(());
    }
    sub_imm(code, Reg::Rsp, i32::from(count) * width(vectors))?;
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
