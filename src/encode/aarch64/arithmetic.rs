//! Constants, sums and comparisons.

use super::operand::{Base, Reg};
use super::{unsigned, word};
use crate::encode::{CodeBuffer, EncodeError};

/// `movz xd, #value, lsl #(16 * part)`: every other bit becomes zero. `part` is 0 to 3.
///
/// # Errors
/// [`EncodeError::Immediate`] for another part, and [`EncodeError::Overflow`].
pub const fn movz(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    value: u16,
    part: u32,
) -> Result<(), EncodeError> {
    wide(code, 0xd280_0000, dst, value, part, 2)
}

/// `movk xd, #value, lsl #(16 * part)`: every other bit is kept. `part` is 0 to 3.
///
/// # Errors
/// [`EncodeError::Immediate`] for another part, and [`EncodeError::Overflow`].
pub const fn movk(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    value: u16,
    part: u32,
) -> Result<(), EncodeError> {
    wide(code, 0xf280_0000, dst, value, part, 2)
}

/// `movk wd, #value, lsl #(16 * part)`: the other half of the lower 32 bits is kept, and the
/// upper 32 become zero. `part` is 0 or 1.
///
/// # Errors
/// [`EncodeError::Immediate`] for another part, and [`EncodeError::Overflow`].
pub const fn movk32(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    value: u16,
    part: u32,
) -> Result<(), EncodeError> {
    wide(code, 0x7280_0000, dst, value, part, 1)
}

const fn wide(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    dst: Reg,
    value: u16,
    part: u32,
    part_bits: u32,
) -> Result<(), EncodeError> {
    match unsigned(part, 1, part_bits) {
        Ok(part) => word(code, opcode | part << 21 | (value as u32) << 5 | dst.low()),
        Err(error) => Err(error),
    }
}

/// `xd = value`, by a `movz` and a `movk` for each other part of 16 bits that is not zero: 1
/// to 4 instructions.
///
/// # Errors
/// [`EncodeError::Overflow`]; instructions for which there was room are appended then.
pub const fn mov_imm64(code: &mut CodeBuffer<'_>, dst: Reg, value: u64) -> Result<(), EncodeError> {
    let mut part = 0;
    let mut first = true;
    while part < 4 {
        let bits = (value >> (16 * part) & 0xffff) as u16;
        if bits != 0 {
            let appended =
                if first { movz(code, dst, bits, part) } else { movk(code, dst, bits, part) };
            if let Err(error) = appended {
                return Err(error);
            }
            first = false;
        }
        part += 1;
    }
    if first { movz(code, dst, 0, 0) } else { Ok(()) }
}

/// `mov xd, xm` (`orr xd, xzr, xm`).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_reg(code: &mut CodeBuffer<'_>, dst: Reg, src: Reg) -> Result<(), EncodeError> {
    word(code, 0xaa00_03e0 | src.high() | dst.low())
}

/// `mov` to or from the stack pointer (`add xd, xn, #0`).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_sp(code: &mut CodeBuffer<'_>, dst: Base, src: Base) -> Result<(), EncodeError> {
    add_imm(code, dst, src, 0)
}

/// `add xd, xn, #value`: up to 4095, or a multiple of 4096 up to 4095 * 4096. No flags.
///
/// # Errors
/// [`EncodeError::Immediate`] for other values, and [`EncodeError::Overflow`].
pub const fn add_imm(
    code: &mut CodeBuffer<'_>,
    dst: Base,
    src: Base,
    value: u32,
) -> Result<(), EncodeError> {
    immediate(code, 0x9100_0000 | src.middle() | dst.low(), value)
}

/// `sub xd, xn, #value`: up to 4095, or a multiple of 4096 up to 4095 * 4096. No flags.
///
/// # Errors
/// [`EncodeError::Immediate`] for other values, and [`EncodeError::Overflow`].
pub const fn sub_imm(
    code: &mut CodeBuffer<'_>,
    dst: Base,
    src: Base,
    value: u32,
) -> Result<(), EncodeError> {
    immediate(code, 0xd100_0000 | src.middle() | dst.low(), value)
}

/// `cmp xn, #value` (`subs xzr, xn, #value`): up to 4095, or a multiple of 4096 up to
/// 4095 * 4096.
///
/// # Errors
/// [`EncodeError::Immediate`] for other values, and [`EncodeError::Overflow`].
pub const fn cmp_imm(code: &mut CodeBuffer<'_>, left: Base, value: u32) -> Result<(), EncodeError> {
    immediate(code, 0xf100_001f | left.middle(), value)
}

/// `add xd, xn, xm, lsl #shift`. `shift` is 0 to 63. No flags.
///
/// # Errors
/// [`EncodeError::Immediate`] for other shifts, and [`EncodeError::Overflow`].
pub const fn add_reg(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    left: Reg,
    right: Reg,
    shift: u32,
) -> Result<(), EncodeError> {
    shifted(code, 0x8b00_0000 | right.high() | left.middle() | dst.low(), shift)
}

/// `sub xd, xn, xm, lsl #shift`. `shift` is 0 to 63. No flags.
///
/// # Errors
/// [`EncodeError::Immediate`] for other shifts, and [`EncodeError::Overflow`].
pub const fn sub_reg(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    left: Reg,
    right: Reg,
    shift: u32,
) -> Result<(), EncodeError> {
    shifted(code, 0xcb00_0000 | right.high() | left.middle() | dst.low(), shift)
}

/// `cmp xn, xm` (`subs xzr, xn, xm`).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn cmp_reg(code: &mut CodeBuffer<'_>, left: Reg, right: Reg) -> Result<(), EncodeError> {
    word(code, 0xeb00_001f | right.high() | left.middle())
}

/// `cmp wn, wm` (`subs wzr, wn, wm`).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn cmp_reg32(
    code: &mut CodeBuffer<'_>,
    left: Reg,
    right: Reg,
) -> Result<(), EncodeError> {
    word(code, 0x6b00_001f | right.high() | left.middle())
}

const fn immediate(code: &mut CodeBuffer<'_>, opcode: u32, value: u32) -> Result<(), EncodeError> {
    const SHIFTED: u32 = 1 << 22;
    let (shifted, step) = if value > 0xfff { (SHIFTED, 0x1000) } else { (0, 1) };
    match unsigned(value, step, 12) {
        Ok(bits) => word(code, opcode | shifted | bits << 10),
        Err(error) => Err(error),
    }
}

const fn shifted(code: &mut CodeBuffer<'_>, opcode: u32, shift: u32) -> Result<(), EncodeError> {
    match unsigned(shift, 1, 6) {
        Ok(shift) => word(code, opcode | shift << 10),
        Err(error) => Err(error),
    }
}
