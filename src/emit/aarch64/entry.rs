//! The entry body: one for a set of programs, shared by every function that runs them.

use memoffset::offset_of;

use super::branch::Hardening;
use super::check::TARGET;
use super::context::Context;
use crate::emit::{EmitError, IndexFrom, Mitigations, ProgramCall, Stride};
use crate::encode::aarch64::{
    Base, Index, Reg, Vector, WORD, add_imm, add_reg, autiasp, bl, ldp, ldp_vectors, ldr,
    ldr_indexed, ldur, ldur32, mov_imm64, mov_reg, mov_sp, movk, movz, nop, paciasp, ret, stp,
    stp_vectors, sub_imm, udf,
};
use crate::encode::{CodeBuffer, EncodeError};

/// Bytes of a thunk, and its alignment.
pub const THUNK_SIZE: usize = 8 * WORD;

/// Bytes from the start of a thunk to the instruction that is patched: a `nop` while nothing is
/// attached, `b body` otherwise.
pub const THUNK_JUMP: usize = 2 * WORD;

/// Bytes of a patch site: see [`EntryBody`].
pub const SITE_LEN: usize = 2 * WORD;

/// The first instruction of a patch site, `mov x9, x30`.
pub const SITE_KEEP: [u8; WORD] = 0xaa1e_03e9_u32.to_le_bytes();

/// Which SIMD registers an image saves before it runs programs and restores afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vectors {
    /// None: every program of the image is known to leave them alone.
    Untouched,
    /// `q0` to `q7`, which hold arguments. Of longer vector registers (SVE) what is above their
    /// lowest 128 bits is lost, so not for functions with such arguments.
    Arguments,
}

/// The body that the patch sites of any number of functions call, to run the same programs.
///
/// A patch site is two instructions, for which the compiler leaves two nops. A call overwrites
/// `x30`, where the function's return address is, so the first one keeps that. It can stay for
/// good; only the second is patched, by one store of four bytes:
///
/// ```text
/// entry     d503245f   bti c, if there is a landing pad
/// entry+4   aa1e03e9   mov x9, x30
/// entry+8   d503201f   nop             or: bl body
/// entry+12  ...        origin
/// ```
///
/// The body runs `calls` in order, each as `program(context, cookie, data)`, and returns into
/// the function with `x30` as it was. It changes only `x9` to `x14`, `x16`, `x17` and the flags,
/// which the procedure call standard gives to no argument, and the SIMD registers that
/// [`Vectors`] says programs leave alone. Every `ret` meets its `bl`.
#[derive(Clone, Copy, Debug)]
pub struct EntryBody<'a> {
    /// How the function's index is found: in its slot, a word of 32 bits in the padding, or in
    /// `w17` from a [thunk](entry_thunk).
    pub index: IndexFrom,
    /// Bytes from the entry to the return address that the body sees.
    pub return_to_entry: u16,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The programs, in the order in which they run. Nothing runs after the function, so there
    /// are no session words, and what a call says of its session is not looked at.
    pub calls: &'a [ProgramCall],
    /// How the body keeps return addresses and calls programs that are out of a direct call's
    /// reach.
    pub hardening: Hardening,
}

/// Where the index is on its way into the context.
const FOUND: Reg = Reg::X17;
/// Where a patch site keeps the function's return address.
const CALLER: Reg = Reg::X9;
/// From the context to the frame record that `x29` points at.
const FRAME: u32 = offset_of!(Context, function_record) as u32;
/// A pair of words of the context, from the stack pointer.
macro_rules! at {
    ($field:ident) => {
        offset_of!(Context, $field) as i32
    };
}
/// What a frame record takes.
const RECORD: i32 = 16;
/// What eight vector registers take.
const VECTORS: u32 = 8 * 16;

impl EntryBody<'_> {
    /// Bytes that a body of `calls` programs can take at the most.
    #[must_use]
    pub const fn max_size(calls: usize) -> usize {
        WORD * (64 + calls * 17) + calls * Hardening::MAX_SIZE
    }

    /// Emits the body for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left ([`max_size`](Self::max_size) says
    /// how many are enough), or the slot is more than 256 bytes before the return address.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        self.save(code)?;
        for program in self.calls {
            self.call(code, program)?;
        }
        self.restore(code)?;
        Ok(())
    }

    fn signs(&self) -> bool {
        self.hardening.mitigations().contains(Mitigations::SIGNED_RETURNS)
    }

    /// Makes the context.
    fn save(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        if let IndexFrom::Slot { return_to_index } = self.index {
            ldur32(code, FOUND, Base::Reg(Reg::LR), -i32::from(return_to_index))?;
        }
        sub_imm(code, Base::Reg(Reg::X10), Base::Reg(Reg::LR), u32::from(self.return_to_entry))?;
        mov_sp(code, Base::Reg(Reg::X11), Base::Sp)?;
        if self.signs() {
            // Only `x30` can be signed: the two take turns in it.
            paciasp(code)?;
            mov_reg(code, Reg::X12, Reg::LR)?;
            mov_reg(code, Reg::LR, CALLER)?;
            paciasp(code)?;
            mov_reg(code, CALLER, Reg::LR)?;
            mov_reg(code, Reg::LR, Reg::X12)?;
        }
        stp(code, (Reg::FP, CALLER), Base::Sp, -RECORD, Index::Pre)?;
        mov_sp(code, Base::Reg(Reg::FP), Base::Sp)?;
        stp(code, (Reg::FP, Reg::LR), Base::Sp, -RECORD, Index::Pre)?;
        mov_sp(code, Base::Reg(Reg::FP), Base::Sp)?;
        sub_imm(code, Base::Sp, Base::Sp, FRAME)?;
        for (offset, pair) in SAVED {
            stp(code, pair, Base::Sp, offset, Index::Offset)?;
        }
        stp(code, (Reg::X18, FOUND), Base::Sp, at!(x18), Index::Offset)?;
        stp(code, (Reg::X10, Reg::X11), Base::Sp, at!(function), Index::Offset)?;
        if let Vectors::Arguments = self.vectors {
            sub_imm(code, Base::Sp, Base::Sp, VECTORS)?;
            each_vector_pair(|pair, offset| {
                stp_vectors(code, pair, Base::Sp, offset, Index::Offset)
            })?;
        }
        Ok(())
    }

    fn call(&self, code: &mut CodeBuffer<'_>, program: &ProgramCall) -> Result<(), EmitError> {
        let index = at!(index) - FRAME as i32;
        mov_imm64(code, Reg::X9, program.cookie.column)?;
        ldur(code, Reg::X10, Base::Reg(Reg::FP), index)?;
        match program.cookie.stride {
            Stride::Eight => ldr_indexed(code, Reg::X1, Base::Reg(Reg::X9), Reg::X10)?,
            Stride::Sixteen => {
                add_reg(code, Reg::X9, Reg::X9, Reg::X10, 4)?;
                ldr(code, Reg::X1, Base::Reg(Reg::X9), 0)?;
            }
        }
        if let Some(data) = program.data {
            mov_imm64(code, Reg::X2, data)?;
        }
        sub_imm(code, Base::Reg(Reg::X0), Base::Reg(Reg::FP), FRAME)?;
        match bl(code, program.target) {
            // In another module, out of a direct call's reach.
            Err(EncodeError::OutOfReach { .. }) => {
                mov_imm64(code, TARGET, program.target)?;
                self.hardening.emit_indirect_call(code)
            }
            called => Ok(called?),
        }
    }

    /// Puts every register back and returns into the function.
    fn restore(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        const ORIGIN: Reg = Reg::X17;
        if let Vectors::Arguments = self.vectors {
            each_vector_pair(|pair, offset| {
                ldp_vectors(code, pair, Base::Sp, offset, Index::Offset)
            })?;
            add_imm(code, Base::Sp, Base::Sp, VECTORS)?;
        }
        for (offset, pair) in SAVED {
            ldp(code, pair, Base::Sp, offset, Index::Offset)?;
        }
        ldr(code, Reg::X18, Base::Sp, at!(x18).cast_unsigned())?;
        add_imm(code, Base::Sp, Base::Sp, FRAME)?;
        ldp(code, (Reg::FP, ORIGIN), Base::Sp, RECORD, Index::Post)?;
        ldp(code, (Reg::FP, Reg::LR), Base::Sp, RECORD, Index::Post)?;
        if self.signs() {
            autiasp(code)?;
            mov_reg(code, Reg::X9, Reg::LR)?;
            mov_reg(code, Reg::LR, ORIGIN)?;
            autiasp(code)?;
            mov_reg(code, ORIGIN, Reg::LR)?;
            mov_reg(code, Reg::LR, Reg::X9)?;
        }
        ret(code, ORIGIN)?;
        self.hardening.emit_stop(code)
    }
}

/// Registers that are saved and restored two by two, and where.
const SAVED: [(i32, (Reg, Reg)); 5] = [
    (at!(args), (Reg::X0, Reg::X1)),
    (at!(args) + 16, (Reg::X2, Reg::X3)),
    (at!(args) + 32, (Reg::X4, Reg::X5)),
    (at!(args) + 48, (Reg::X6, Reg::X7)),
    (at!(x8), (Reg::X8, Reg::X15)),
];

/// Calls `each` for the pairs of vector registers that hold arguments, and their places.
fn each_vector_pair(
    mut each: impl FnMut((Vector, Vector), i32) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    for number in [0, 2, 4, 6] {
        if let (Some(first), Some(second)) = (Vector::new(number), Vector::new(number + 1)) {
            each((first, second), 16 * i32::from(number))?;
        }
    }
    Ok(())
}

/// Emits the thunk that the patch site of the function with `index` calls, where the padding has
/// no room for a slot.
///
/// ```text
/// +0    movz x17, #low half of index
/// +4    movk x17, #high half, lsl #16
/// +8    nop                             or: b body
/// +12   mov  x10, x30                   nothing is attached:
/// +16   mov  x30, x9                    the function gets its return address back
/// +20   ret  x10
/// +24   udf  #0, twice
/// ```
///
/// It leaves `x30` as the patch site's call made it, so the body returns to the function.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`THUNK_SIZE`] bytes left.
pub fn entry_thunk(code: &mut CodeBuffer<'_>, index: u32) -> Result<(), EmitError> {
    movz(code, FOUND, (index & 0xffff) as u16, 0)?;
    movk(code, FOUND, (index >> 16) as u16, 1)?;
    nop(code)?;
    mov_reg(code, Reg::X10, Reg::LR)?;
    mov_reg(code, Reg::LR, CALLER)?;
    ret(code, Reg::X10)?;
    udf(code, 0)?;
    udf(code, 0)?;
    Ok(())
}
