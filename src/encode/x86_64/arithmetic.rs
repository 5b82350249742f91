//! Arithmetic, comparison and counters. All of these change flags.

use super::form::{Instruction, Prefix, with_memory, with_registers};
use super::operand::{Mem, Reg};
use crate::encode::{CodeBuffer, EncodeError};

/// `add r64, imm`, sign-extended: `REX.W 83 /0 ib` (4 bytes), for `rax` `REX.W 05 id`
/// (6 bytes), else `REX.W 81 /0 id` (7 bytes).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn add_imm(code: &mut CodeBuffer<'_>, dst: Reg, value: i32) -> Result<(), EncodeError> {
    immediate(code, 0, dst, value)
}

/// `sub r64, imm`, sign-extended: `REX.W 83 /5 ib` (4 bytes), for `rax` `REX.W 2D id`
/// (6 bytes), else `REX.W 81 /5 id` (7 bytes).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn sub_imm(code: &mut CodeBuffer<'_>, dst: Reg, value: i32) -> Result<(), EncodeError> {
    immediate(code, 5, dst, value)
}

/// `and r64, imm`, sign-extended: `REX.W 83 /4 ib` (4 bytes), for `rax` `REX.W 25 id`
/// (6 bytes), else `REX.W 81 /4 id` (7 bytes).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn and_imm(code: &mut CodeBuffer<'_>, dst: Reg, value: i32) -> Result<(), EncodeError> {
    immediate(code, 4, dst, value)
}

/// `cmp r64, imm`, sign-extended: `REX.W 83 /7 ib` (4 bytes), for `rax` `REX.W 3D id`
/// (6 bytes), else `REX.W 81 /7 id` (7 bytes).
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn cmp_imm(code: &mut CodeBuffer<'_>, left: Reg, value: i32) -> Result<(), EncodeError> {
    immediate(code, 7, left, value)
}

/// `cmp r64, [mem]`: `REX.W 3B /r`. 2 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn cmp_load64(
    code: &mut CodeBuffer<'_>,
    left: Reg,
    right: Mem,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy64, 0x3b, left.number(), right)
}

/// `cmp r32, [mem]`: `3B /r`. 1 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn cmp_load32(
    code: &mut CodeBuffer<'_>,
    left: Reg,
    right: Mem,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy32, 0x3b, left.number(), right)
}

/// `cmp r32, imm32`: for `eax` `3D id` (5 bytes), else `81 /7 id` (6 bytes + REX). The
/// immediate is the last four bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn cmp_imm32(
    code: &mut CodeBuffer<'_>,
    left: Reg,
    value: u32,
) -> Result<(), EncodeError> {
    immediate32(code, 7, left, value)
}

/// `sub r32, imm32`: for `eax` `2D id` (5 bytes), else `81 /5 id` (6 bytes + REX). The
/// immediate is the last four bytes.
///
/// Never shortened, so that a value can be filled in later.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn sub_imm32(code: &mut CodeBuffer<'_>, dst: Reg, value: u32) -> Result<(), EncodeError> {
    immediate32(code, 5, dst, value)
}

/// `add r32, [mem]`: `03 /r`. The upper half of `dst` becomes zero. 1 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn add_load32(code: &mut CodeBuffer<'_>, dst: Reg, src: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy32, 0x03, dst.number(), src)
}

/// `cmpxchg [mem], r64`: `REX.W 0F B1 /r`. Where memory holds `rax`, stores `src` and sets ZF;
/// else loads `rax` and clears it. One instruction, but not atomic for other cores. 3 + M
/// bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn cmpxchg64(code: &mut CodeBuffer<'_>, mem: Mem, src: Reg) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy0f64, 0xb1, src.number(), mem)
}

/// `add r64, r64`: `REX.W 01 /r`. 3 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn add_reg(code: &mut CodeBuffer<'_>, dst: Reg, src: Reg) -> Result<(), EncodeError> {
    with_registers(code, true, 0x01, src.number(), dst.number())
}

/// `xor r32, r32`: `31 /r`. The upper half of `dst` becomes zero; with `src` the same
/// register, all of it. 2 bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn xor_reg32(code: &mut CodeBuffer<'_>, dst: Reg, src: Reg) -> Result<(), EncodeError> {
    with_registers(code, false, 0x31, src.number(), dst.number())
}

/// `test r64, r64`: `REX.W 85 /r`. 3 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn test_reg(code: &mut CodeBuffer<'_>, left: Reg, right: Reg) -> Result<(), EncodeError> {
    with_registers(code, true, 0x85, right.number(), left.number())
}

/// `inc qword [mem]`: `REX.W FF /0`. Not atomic. 2 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn inc_mem64(code: &mut CodeBuffer<'_>, mem: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy64, 0xff, 0, mem)
}

/// `dec qword [mem]`: `REX.W FF /1`. Not atomic. 2 + M bytes.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn dec_mem64(code: &mut CodeBuffer<'_>, mem: Mem) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy64, 0xff, 1, mem)
}

/// The operation `number` of the immediate group 1 (Intel SDM volume 2, appendix A.4).
const fn immediate(
    code: &mut CodeBuffer<'_>,
    number: u8,
    reg: Reg,
    value: i32,
) -> Result<(), EncodeError> {
    let rm = reg.number();
    let start = Instruction::new().rex(true, 0, 0, rm);
    let instruction = if value == value as i8 as i32 {
        start.byte(0x83).registers(number, rm).byte((value & 0xff) as u8)
    } else {
        let opcode = match reg {
            Reg::Rax => start.byte(number << 3 | 5),
            _ => start.byte(0x81).registers(number, rm),
        };
        opcode.word32(value.cast_unsigned())
    };
    instruction.append_to(code)
}

/// The same on 32 bits, always with a 32-bit immediate.
const fn immediate32(
    code: &mut CodeBuffer<'_>,
    number: u8,
    reg: Reg,
    value: u32,
) -> Result<(), EncodeError> {
    let rm = reg.number();
    let opcode = match reg {
        Reg::Rax => Instruction::new().byte(number << 3 | 5),
        _ => Instruction::new().rex(false, 0, 0, rm).byte(0x81).registers(number, rm),
    };
    opcode.word32(value).append_to(code)
}
