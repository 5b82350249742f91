//! Moving values between registers, memory and the stack.

use super::branch::displacement32;
use super::form::{Instruction, Prefix, with_memory, with_memory_imm32, with_registers};
use super::operand::{Condition, Mem, Reg};
use crate::encode::{CodeBuffer, EncodeError};

/// `push r64`: `50+rd`. 1 byte + REX.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn push(code: &mut CodeBuffer<'_>, reg: Reg) -> Result<(), EncodeError> {
    opcode_register(false, 0x50, reg).append_to(code)
}

/// `pop r64`: `58+rd`. 1 byte + REX.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn pop(code: &mut CodeBuffer<'_>, reg: Reg) -> Result<(), EncodeError> {
    opcode_register(false, 0x58, reg).append_to(code)
}

/// `mov r64, r64`: `REX.W 89 /r`. 3 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_reg_reg(code: &mut CodeBuffer<'_>, dst: Reg, src: Reg) -> Result<(), EncodeError> {
    with_registers(code, true, 0x89, src.number(), dst.number())
}

/// `mov r64, [mem]`: `REX.W 8B /r`. 2 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn mov_load64(code: &mut CodeBuffer<'_>, dst: Reg, src: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy64, 0x8b, dst.number(), src)
}

/// `mov r64, fs:[offset]`: `64 REX.W 8B /r` with mode 00, SIB without base and index. What
/// stands so many bytes from the base of `fs`, which is the thread pointer in user space
/// (psABI 11.2). 9 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_load64_fs(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    offset: i32,
) -> Result<(), EncodeError> {
    // Base 101 in mode 00 is no base, and index 100 no index.
    const DISPLACEMENT_ONLY: u8 = 0b00_100_101;
    Instruction::new()
        .byte(0x64)
        .rex(true, dst.number(), 0, 0)
        .byte(0x8b)
        .byte((dst.number() & 7) << 3 | 0b100)
        .byte(DISPLACEMENT_ONLY)
        .word32(offset.cast_unsigned())
        .append_to(code)
}

/// `mov r32, [mem]`: `8B /r`. The upper half of `dst` becomes zero. 1 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn mov_load32(code: &mut CodeBuffer<'_>, dst: Reg, src: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy32, 0x8b, dst.number(), src)
}

/// `mov [mem], r64`: `REX.W 89 /r`. 2 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn mov_store64(code: &mut CodeBuffer<'_>, dst: Mem, src: Reg) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy64, 0x89, src.number(), dst)
}

/// `mov [mem], r32`: `89 /r`, the lower four bytes of `src`. 1 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn mov_store32(code: &mut CodeBuffer<'_>, dst: Mem, src: Reg) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy32, 0x89, src.number(), dst)
}

/// `mov qword [mem], imm32`, sign-extended: `REX.W C7 /0 id`. 6 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn mov_store_imm64(
    code: &mut CodeBuffer<'_>,
    dst: Mem,
    value: i32,
) -> Result<(), EncodeError> {
    with_memory_imm32(code, Prefix::Legacy64, 0xc7, 0, dst, value.cast_unsigned())
}

/// `mov dword [mem], imm32`: `C7 /0 id`. 5 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn mov_store_imm32(
    code: &mut CodeBuffer<'_>,
    dst: Mem,
    value: u32,
) -> Result<(), EncodeError> {
    with_memory_imm32(code, Prefix::Legacy32, 0xc7, 0, dst, value)
}

/// `mov r32, imm32`: `B8+rd id`. The upper half of `dst` becomes zero. 5 bytes + REX; the
/// immediate is the last four.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_imm32(code: &mut CodeBuffer<'_>, dst: Reg, value: u32) -> Result<(), EncodeError> {
    opcode_register(false, 0xb8, dst).word32(value).append_to(code)
}

/// `mov r64, imm64`: `REX.W B8+rd io`. 10 bytes; the immediate is the last eight.
///
/// Never shortened, so that a value can be filled in later.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_imm64(code: &mut CodeBuffer<'_>, dst: Reg, value: u64) -> Result<(), EncodeError> {
    opcode_register(true, 0xb8, dst).word64(value).append_to(code)
}

/// `mov r64, imm32`, sign-extended: `REX.W C7 /0 id`. 7 bytes; the immediate is the last four.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn mov_imm32_sign(
    code: &mut CodeBuffer<'_>,
    dst: Reg,
    value: i32,
) -> Result<(), EncodeError> {
    let rm = dst.number();
    Instruction::new()
        .rex(true, 0, 0, rm)
        .byte(0xc7)
        .registers(0, rm)
        .word32(value.cast_unsigned())
        .append_to(code)
}

/// `lea r64, [mem]`: `REX.W 8D /r`. Changes no flags. 2 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn lea(code: &mut CodeBuffer<'_>, dst: Reg, src: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy64, 0x8d, dst.number(), src)
}

/// `lea r64, [rip + disp32]`: `REX.W 8D /r` with mode 00, register 101. 7 bytes.
///
/// `target` is the absolute address that `dst` shall hold.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `target` is 2 GiB or more from here, and
/// [`EncodeError::Overflow`].
pub const fn lea_rip(code: &mut CodeBuffer<'_>, dst: Reg, target: u64) -> Result<(), EncodeError> {
    let displacement = match displacement32(code.here().wrapping_add(7), target) {
        Ok(displacement) => displacement,
        Err(error) => return Err(error),
    };
    Instruction::new()
        .rex(true, dst.number(), 0, 0)
        .byte(0x8d)
        .byte((dst.number() & 7) << 3 | 0b101)
        .word32(displacement)
        .append_to(code)
}

/// `cmovcc r64, r64`: `REX.W 0F 40+cc /r`. Reads `src` and writes `dst` whatever the flags are,
/// with its own value where the condition does not hold. 4 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn cmov(
    code: &mut CodeBuffer<'_>,
    condition: Condition,
    dst: Reg,
    src: Reg,
) -> Result<(), EncodeError> {
    let (reg, rm) = (dst.number(), src.number());
    Instruction::new()
        .rex(true, reg, 0, rm)
        .byte(0x0f)
        .byte(0x40 | condition as u8)
        .registers(reg, rm)
        .append_to(code)
}

/// An opcode with a register in its lowest three bits.
const fn opcode_register(wide: bool, opcode: u8, reg: Reg) -> Instruction {
    Instruction::new().rex(wide, 0, 0, reg.number()).byte(opcode | reg.number() & 7)
}
