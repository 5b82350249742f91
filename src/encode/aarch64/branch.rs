//! Branches and addresses. Targets are absolute, and distances are modulo 2^64.

use super::operand::{Condition, Reg};
use super::{signed, word};
use crate::encode::{CodeBuffer, EncodeError, distance};

const B: u32 = 0x1400_0000;
const BL: u32 = 0x9400_0000;

/// `b label`. Reaches 128 MiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away, and
/// [`EncodeError::Overflow`].
pub const fn b(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
    match b_bytes(code.here(), target) {
        Ok(bytes) => code.bytes(&bytes),
        Err(error) => Err(error),
    }
}

/// `bl label`. Reaches 128 MiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away, and
/// [`EncodeError::Overflow`].
pub const fn bl(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
    match bl_bytes(code.here(), target) {
        Ok(bytes) => code.bytes(&bytes),
        Err(error) => Err(error),
    }
}

/// `b label` as it stands at `at`: what a patch site is changed to.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away.
pub const fn b_bytes(at: u64, target: u64) -> Result<[u8; 4], EncodeError> {
    near(B, at, target)
}

/// `bl label` as it stands at `at`: what a patch site is changed to.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away.
pub const fn bl_bytes(at: u64, target: u64) -> Result<[u8; 4], EncodeError> {
    near(BL, at, target)
}

/// `b.cond label`. Reaches 1 MiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away, and
/// [`EncodeError::Overflow`].
pub const fn b_cond(
    code: &mut CodeBuffer<'_>,
    condition: Condition,
    target: u64,
) -> Result<(), EncodeError> {
    compact(code, 0x5400_0000 | condition as u32, target)
}

/// `cbz xt, label`: branches where all 64 bits are zero. Reaches 1 MiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away, and
/// [`EncodeError::Overflow`].
pub const fn cbz(code: &mut CodeBuffer<'_>, reg: Reg, target: u64) -> Result<(), EncodeError> {
    compact(code, 0xb400_0000 | reg.low(), target)
}

/// `cbnz xt, label`: branches where one of 64 bits is not zero. Reaches 1 MiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away, and
/// [`EncodeError::Overflow`].
pub const fn cbnz(code: &mut CodeBuffer<'_>, reg: Reg, target: u64) -> Result<(), EncodeError> {
    compact(code, 0xb500_0000 | reg.low(), target)
}

/// `br xn`. Lands on `bti j`; from `x16` and `x17` also on `bti c`.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn br(code: &mut CodeBuffer<'_>, target: Reg) -> Result<(), EncodeError> {
    word(code, 0xd61f_0000 | target.middle())
}

/// `blr xn`. Lands on `bti c`.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn blr(code: &mut CodeBuffer<'_>, target: Reg) -> Result<(), EncodeError> {
    word(code, 0xd63f_0000 | target.middle())
}

/// `ret xn`: to the address in `target`, as a return is predicted.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn ret(code: &mut CodeBuffer<'_>, target: Reg) -> Result<(), EncodeError> {
    word(code, 0xd65f_0000 | target.middle())
}

/// `adr xd, label`: the address itself. Reaches 1 MiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther, and [`EncodeError::Overflow`].
pub const fn adr(code: &mut CodeBuffer<'_>, dst: Reg, target: u64) -> Result<(), EncodeError> {
    match reach(code.here(), target, distance(code.here(), target), 1, 21) {
        Ok(offset) => word(code, 0x1000_0000 | split(offset) | dst.low()),
        Err(error) => Err(error),
    }
}

/// `adrp xd, label`: the first address of its 4096-byte page. Reaches 4 GiB.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther, and [`EncodeError::Overflow`].
pub const fn adrp(code: &mut CodeBuffer<'_>, dst: Reg, target: u64) -> Result<(), EncodeError> {
    const PAGE: u64 = !0xfff;
    let pages = distance(code.here() & PAGE, target & PAGE);
    match reach(code.here(), target, pages, 4096, 21) {
        Ok(offset) => word(code, 0x9000_0000 | split(offset) | dst.low()),
        Err(error) => Err(error),
    }
}

/// The two lowest of 21 bits and the others, where an address instruction has them.
const fn split(offset: u32) -> u32 {
    (offset & 3) << 29 | (offset >> 2) << 5
}

/// The word of a branch with 26 bits of displacement that stands at `at`.
const fn near(opcode: u32, at: u64, target: u64) -> Result<[u8; 4], EncodeError> {
    match reach(at, target, distance(at, target), 4, 26) {
        Ok(offset) => Ok((opcode | offset).to_le_bytes()),
        Err(error) => Err(error),
    }
}

/// Appends a branch with 19 bits of displacement.
const fn compact(code: &mut CodeBuffer<'_>, opcode: u32, target: u64) -> Result<(), EncodeError> {
    match reach(code.here(), target, distance(code.here(), target), 4, 19) {
        Ok(offset) => word(code, opcode | offset << 5),
        Err(error) => Err(error),
    }
}

/// A distance between addresses, in steps of `step` bytes, in `bits` bits.
pub(super) const fn reach(
    from: u64,
    to: u64,
    distance: i64,
    step: i64,
    bits: u32,
) -> Result<u32, EncodeError> {
    match signed(distance, step, bits) {
        Ok(offset) => Ok(offset),
        Err(_) => {
            let reach = (step << (bits - 1)).cast_unsigned();
            Err(EncodeError::OutOfReach { from, to, reach, step: step.cast_unsigned() })
        }
    }
}
