//! Branches, and what branches land on.
//!
//! Targets are absolute addresses. Distances are modulo 2^64, as the processor adds them.

use super::form::{Instruction, Prefix, with_memory, with_registers};
use super::operand::{Condition, Mem, Reg};
use crate::encode::{CodeBuffer, EncodeError, distance};

const CALL: u8 = 0xe8;
const JMP: u8 = 0xe9;

/// `call rel32`: `E8 cd`. 5 bytes.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `target` is 2 GiB or more from here, and
/// [`EncodeError::Overflow`].
pub const fn call(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
    match call_bytes(code.here(), target) {
        Ok(bytes) => code.bytes(&bytes),
        Err(error) => Err(error),
    }
}

/// `jmp rel32`: `E9 cd`. 5 bytes, however near the target is.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `target` is 2 GiB or more from here, and
/// [`EncodeError::Overflow`].
pub const fn jmp(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
    match jmp_bytes(code.here(), target) {
        Ok(bytes) => code.bytes(&bytes),
        Err(error) => Err(error),
    }
}

/// `call rel32`, `E8 cd`, as it stands at `at`: what a patch site is changed to.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `target` is 2 GiB or more from the end of the site.
pub const fn call_bytes(at: u64, target: u64) -> Result<[u8; 5], EncodeError> {
    near(CALL, at, target)
}

/// `jmp rel32`, `E9 cd`, as it stands at `at`: what a patch site is changed to.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `target` is 2 GiB or more from the end of the site.
pub const fn jmp_bytes(at: u64, target: u64) -> Result<[u8; 5], EncodeError> {
    near(JMP, at, target)
}

/// `jcc rel32`: `0F 80+cc cd`. 6 bytes, however near the target is.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `target` is 2 GiB or more from here, and
/// [`EncodeError::Overflow`].
pub const fn jcc(
    code: &mut CodeBuffer<'_>,
    condition: Condition,
    target: u64,
) -> Result<(), EncodeError> {
    match displacement32(code.here().wrapping_add(6), target) {
        Ok(displacement) => Instruction::new()
            .byte(0x0f)
            .byte(0x80 | condition as u8)
            .word32(displacement)
            .append_to(code),
        Err(error) => Err(error),
    }
}

/// `jmp rel8`: `EB cb`. 2 bytes.
///
/// # Errors
/// [`EncodeError::OutOfShortRange`] when `target` is not within -128 to 127 bytes of the
/// jump's end, and [`EncodeError::Overflow`].
pub const fn jmp_short(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EncodeError> {
    short(code, 0xeb, target)
}

/// `jcc rel8`: `70+cc cb`. 2 bytes.
///
/// # Errors
/// [`EncodeError::OutOfShortRange`] when `target` is not within -128 to 127 bytes of the
/// jump's end, and [`EncodeError::Overflow`].
pub const fn jcc_short(
    code: &mut CodeBuffer<'_>,
    condition: Condition,
    target: u64,
) -> Result<(), EncodeError> {
    short(code, 0x70 | condition as u8, target)
}

/// `call r64`: `FF /2`. 2 bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn call_reg(code: &mut CodeBuffer<'_>, target: Reg) -> Result<(), EncodeError> {
    with_registers(code, false, 0xff, 2, target.number())
}

/// `jmp r64`: `FF /4`. 2 bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn jmp_reg(code: &mut CodeBuffer<'_>, target: Reg) -> Result<(), EncodeError> {
    with_registers(code, false, 0xff, 4, target.number())
}

/// `call [mem]`, the target's 64 bits in memory: `FF /2`. 1 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn call_mem(code: &mut CodeBuffer<'_>, target: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy32, 0xff, 2, target)
}

/// `jmp [mem]`, the target's 64 bits in memory: `FF /4`. 1 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn jmp_mem(code: &mut CodeBuffer<'_>, target: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy32, 0xff, 4, target)
}

/// `ret`: `C3`. 1 byte.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn ret(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0xc3])
}

/// `int3`: `CC`. 1 byte.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn int3(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0xcc])
}

/// `endbr64`: `F3 0F 1E FA`, the landing pad of indirect branches. 4 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn endbr64(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0xf3, 0x0f, 0x1e, 0xfa])
}

/// Appends a branch with an 8-bit displacement.
const fn short(code: &mut CodeBuffer<'_>, opcode: u8, target: u64) -> Result<(), EncodeError> {
    let from = code.here().wrapping_add(2);
    let distance = distance(from, target);
    let displacement = distance as i8;
    if displacement as i64 != distance {
        return Err(EncodeError::OutOfShortRange { from, to: target });
    }
    code.bytes(&[opcode, displacement.cast_unsigned()])
}

/// The five bytes of a branch with a 32-bit displacement that stands at `at`.
const fn near(opcode: u8, at: u64, target: u64) -> Result<[u8; 5], EncodeError> {
    match displacement32(at.wrapping_add(5), target) {
        Ok(displacement) => {
            let [a, b, c, d] = displacement.to_le_bytes();
            Ok([opcode, a, b, c, d])
        }
        Err(error) => Err(error),
    }
}

/// The bits of the displacement from `from`, where the next instruction begins, to `to`.
pub(super) const fn displacement32(from: u64, to: u64) -> Result<u32, EncodeError> {
    let distance = distance(from, to);
    let displacement = distance as i32;
    if displacement as i64 != distance {
        return Err(EncodeError::OutOfRange { from, to });
    }
    Ok(displacement.cast_unsigned())
}
