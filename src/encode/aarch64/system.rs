//! Hints, barriers and traps.

use super::operand::Reg;
use super::{unsigned, word};
use crate::encode::{CodeBuffer, EncodeError};

/// `nop`: what patch sites and padding hold.
pub const NOP: [u8; 4] = 0xd503_201f_u32.to_le_bytes();

/// `bti c`: what a function that indirect calls may reach begins with.
pub const BTI_C: [u8; 4] = 0xd503_245f_u32.to_le_bytes();

/// What may land on a landing pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bti {
    /// `bti c`: `blr`, and `br` from `x16` and `x17`.
    Call,
    /// `bti j`: `br`.
    Jump,
    /// `bti jc`: all of these.
    Both,
}

/// `nop`.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn nop(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&NOP)
}

/// `hint #number`, 0 to 127: one of the instructions that older processors take for `nop`.
///
/// # Errors
/// [`EncodeError::Immediate`] for other numbers, and [`EncodeError::Overflow`].
pub const fn hint(code: &mut CodeBuffer<'_>, number: u32) -> Result<(), EncodeError> {
    match unsigned(number, 1, 7) {
        Ok(number) => word(code, 0xd503_201f | number << 5),
        Err(error) => Err(error),
    }
}

/// `bti`: a landing pad. A hint.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn bti(code: &mut CodeBuffer<'_>, pad: Bti) -> Result<(), EncodeError> {
    hint(
        code,
        match pad {
            Bti::Call => 34,
            Bti::Jump => 36,
            Bti::Both => 38,
        },
    )
}

/// `paciasp`: signs the return address in `x30` with the stack pointer. A hint, and a landing
/// pad for what lands on `bti c`.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn paciasp(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    hint(code, 25)
}

/// `autiasp`: checks and takes off what [`paciasp`] put on. A hint.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn autiasp(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    hint(code, 29)
}

/// `brk #number`: a breakpoint.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn brk(code: &mut CodeBuffer<'_>, number: u16) -> Result<(), EncodeError> {
    word(code, 0xd420_0000 | (number as u32) << 5)
}

/// `udf #number`: undefined for ever.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn udf(code: &mut CodeBuffer<'_>, number: u16) -> Result<(), EncodeError> {
    word(code, number as u32)
}

/// `isb`: what comes after it is fetched after it.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn isb(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    word(code, 0xd503_3fdf)
}

/// `dsb sy`: what comes after it begins when every access before it is done.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn dsb_sy(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    word(code, 0xd503_3f9f)
}

/// `mrs xt, tpidr_el0`: the thread pointer of user space.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mrs_tpidr_el0(code: &mut CodeBuffer<'_>, dst: Reg) -> Result<(), EncodeError> {
    word(code, 0xd53b_d040 | dst.low())
}
