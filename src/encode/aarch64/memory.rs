//! Loads and stores.

use super::branch::reach;
use super::operand::{Base, Reg, Vector};
use super::{signed, unsigned, word};
use crate::encode::{CodeBuffer, EncodeError, distance};

/// What becomes of the base of an address with an offset. A base that changes must not be one of
/// the registers that are loaded or stored, and two that are loaded must differ: what happens
/// then is not defined ([`EncodeError::Unpredictable`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// `[base, #offset]`: it stays.
    Offset,
    /// `[base, #offset]!`: the offset is added before the access.
    Pre,
    /// `[base], #offset`: the offset is added after the access.
    Post,
}

/// `ldr xt, [base, #offset]`: a multiple of 8 up to 32760.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn ldr(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    base: Base,
    offset: u32,
) -> Result<(), EncodeError> {
    scaled(code, 0xf940_0000, dst, base, offset, 8)
}

/// `str xt, [base, #offset]`: a multiple of 8 up to 32760.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn str(
    code: &mut CodeBuffer<'_>,
    src: Reg,
    base: Base,
    offset: u32,
) -> Result<(), EncodeError> {
    scaled(code, 0xf900_0000, src, base, offset, 8)
}

/// `ldr wt, [base, #offset]`: a multiple of 4 up to 16380. The upper half becomes zero.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn ldr32(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    base: Base,
    offset: u32,
) -> Result<(), EncodeError> {
    scaled(code, 0xb940_0000, dst, base, offset, 4)
}

/// `str wt, [base, #offset]`: a multiple of 4 up to 16380.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn str32(
    code: &mut CodeBuffer<'_>,
    src: Reg,
    base: Base,
    offset: u32,
) -> Result<(), EncodeError> {
    scaled(code, 0xb900_0000, src, base, offset, 4)
}

/// `ldur xt, [base, #offset]`: -256 to 255.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn ldur(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    base: Base,
    offset: i32,
) -> Result<(), EncodeError> {
    unscaled(code, 0xf840_0000, dst, base, offset)
}

/// `stur xt, [base, #offset]`: -256 to 255.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn stur(
    code: &mut CodeBuffer<'_>,
    src: Reg,
    base: Base,
    offset: i32,
) -> Result<(), EncodeError> {
    unscaled(code, 0xf800_0000, src, base, offset)
}

/// `ldur wt, [base, #offset]`: -256 to 255. The upper half becomes zero.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn ldur32(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    base: Base,
    offset: i32,
) -> Result<(), EncodeError> {
    unscaled(code, 0xb840_0000, dst, base, offset)
}

/// `stur wt, [base, #offset]`: -256 to 255.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn stur32(
    code: &mut CodeBuffer<'_>,
    src: Reg,
    base: Base,
    offset: i32,
) -> Result<(), EncodeError> {
    unscaled(code, 0xb800_0000, src, base, offset)
}

/// `ldr xt, [base, #offset]!` or `[base], #offset`: -256 to 255, added to the base before or
/// after. With [`Index::Offset`] it is [`ldur`].
///
/// # Errors
/// [`EncodeError::Unpredictable`], [`EncodeError::Immediate`] for other offsets, and
/// [`EncodeError::Overflow`].
pub const fn ldr_index(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    single(code, 0xf840_0000, dst, base, offset, index)
}

/// `str xt, [base, #offset]!` or `[base], #offset`: -256 to 255, added to the base before or
/// after. With [`Index::Offset`] it is [`stur`].
///
/// # Errors
/// [`EncodeError::Unpredictable`], [`EncodeError::Immediate`] for other offsets, and
/// [`EncodeError::Overflow`].
pub const fn str_index(
    code: &mut CodeBuffer<'_>,
    src: Reg,
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    single(code, 0xf800_0000, src, base, offset, index)
}

/// `ldr xt, [base, index, lsl #3]`.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn ldr_indexed(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    base: Base,
    index: Reg,
) -> Result<(), EncodeError> {
    word(code, 0xf860_7800 | index.high() | base.middle() | dst.low())
}

/// `ldr xt, label`: the 8 bytes at `target`, 1 MiB away at the most.
///
/// # Errors
/// [`EncodeError::OutOfReach`] when `target` is farther or no multiple of 4 bytes away, and
/// [`EncodeError::Overflow`].
pub const fn ldr_literal(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    target: u64,
) -> Result<(), EncodeError> {
    match reach(code.here(), target, distance(code.here(), target), 4, 19) {
        Ok(offset) => word(code, 0x5800_0000 | offset << 5 | dst.low()),
        Err(error) => Err(error),
    }
}

/// `ldp xt1, xt2, [base, #offset]`: a multiple of 8, -512 to 504.
///
/// # Errors
/// [`EncodeError::Unpredictable`], [`EncodeError::Immediate`] for other offsets, and
/// [`EncodeError::Overflow`].
pub const fn ldp(
    code: &mut CodeBuffer<'_>,
    dst: (Reg, Reg),
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    general_pair(code, 0xa840_0000, dst, base, offset, index)
}

/// `stp xt1, xt2, [base, #offset]`: a multiple of 8, -512 to 504.
///
/// # Errors
/// [`EncodeError::Unpredictable`], [`EncodeError::Immediate`] for other offsets, and
/// [`EncodeError::Overflow`].
pub const fn stp(
    code: &mut CodeBuffer<'_>,
    src: (Reg, Reg),
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    general_pair(code, 0xa800_0000, src, base, offset, index)
}

/// `ldp qt1, qt2, [base, #offset]`: a multiple of 16, -1024 to 1008.
///
/// # Errors
/// [`EncodeError::Unpredictable`], [`EncodeError::Immediate`] for other offsets, and
/// [`EncodeError::Overflow`].
pub const fn ldp_vectors(
    code: &mut CodeBuffer<'_>,
    dst: (Vector, Vector),
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    vector_pair(code, 0xac40_0000, dst, base, offset, index)
}

/// `stp qt1, qt2, [base, #offset]`: a multiple of 16, -1024 to 1008.
///
/// # Errors
/// [`EncodeError::Immediate`] for other offsets, and [`EncodeError::Overflow`].
pub const fn stp_vectors(
    code: &mut CodeBuffer<'_>,
    src: (Vector, Vector),
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    vector_pair(code, 0xac00_0000, src, base, offset, index)
}

const fn scaled(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    reg: Reg,
    base: Base,
    offset: u32,
    size: u32,
) -> Result<(), EncodeError> {
    match unsigned(offset, size, 12) {
        Ok(offset) => word(code, opcode | offset << 10 | base.middle() | reg.low()),
        Err(error) => Err(error),
    }
}

const fn unscaled(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    reg: Reg,
    base: Base,
    offset: i32,
) -> Result<(), EncodeError> {
    match signed(offset as i64, 1, 9) {
        Ok(offset) => word(code, opcode | offset << 12 | base.middle() | reg.low()),
        Err(error) => Err(error),
    }
}

/// An access of one register that may change its base.
const fn single(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    reg: Reg,
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    let kind = match index {
        Index::Offset => return unscaled(code, opcode, reg, base, offset),
        Index::Post => 0b01 << 10,
        Index::Pre => 0b11 << 10,
    };
    if base.number() == reg.number() {
        return Err(EncodeError::Unpredictable { at: code.here() });
    }
    unscaled(code, opcode | kind, reg, base, offset)
}

/// An access of two general-purpose registers.
const fn general_pair(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    (first, second): (Reg, Reg),
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    let (first, second) = (first.number(), second.number());
    let changes = !matches!(index, Index::Offset);
    let on_base = first == base.number() || second == base.number();
    if changes && on_base || opcode & LOAD != 0 && first == second {
        return Err(EncodeError::Unpredictable { at: code.here() });
    }
    pair(code, opcode, (first, second), base, offset, index, 8)
}

/// The bit of an access of two registers that makes it a load.
const LOAD: u32 = 1 << 22;

/// An access of two vector registers.
const fn vector_pair(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    (first, second): (Vector, Vector),
    base: Base,
    offset: i32,
    index: Index,
) -> Result<(), EncodeError> {
    if opcode & LOAD != 0 && first.number() == second.number() {
        return Err(EncodeError::Unpredictable { at: code.here() });
    }
    pair(code, opcode, (first.number(), second.number()), base, offset, index, 16)
}

const fn pair(
    code: &mut CodeBuffer<'_>,
    opcode: u32,
    registers: (u8, u8),
    base: Base,
    offset: i32,
    index: Index,
    size: i64,
) -> Result<(), EncodeError> {
    let kind = match index {
        Index::Post => 0b01 << 23,
        Index::Offset => 0b10 << 23,
        Index::Pre => 0b11 << 23,
    };
    let registers = registers.0 as u32 | (registers.1 as u32) << 10;
    match signed(offset as i64, size, 7) {
        Ok(offset) => word(code, opcode | kind | offset << 15 | base.middle() | registers),
        Err(error) => Err(error),
    }
}
