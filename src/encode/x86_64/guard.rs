//! Instructions that trap, fence, count or fill, for code that guards its branches.

use super::branch::displacement32;
use super::form::Instruction;
use crate::encode::{CodeBuffer, EncodeError};

/// `nop dword [rax - 42]`, `0F 1F 40 D6`: a nop of four bytes whose last one is [`udb`].
///
/// Linux 7.2 puts it in the place of an `endbr64` that no branch may land on any more
/// (`gen_endbr_poison()`, arch/x86/include/asm/ibt.h), and its FineIBT preamble jumps to the
/// last byte to trap.
pub const NOP4_UDB: [u8; 4] = [0x0f, 0x1f, 0x40, 0xd6];

/// `nop word [rax]`, `66 0F 1F 00`: what Linux 6.2 to 6.15 puts there.
pub const NOP4_OSP: [u8; 4] = [0x66, 0x0f, 0x1f, 0x00];

/// `ud2`: `0F 0B`. Raises #UD. 2 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn ud2(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0x0f, 0x0b])
}

/// `udb`: `D6`. Raises #UD in 64-bit mode, where no other instruction has this opcode. 1 byte.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn udb(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0xd6])
}

/// `lfence`: `NP 0F AE E8`. Nothing after it begins before everything before it is done.
/// 3 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn lfence(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0x0f, 0xae, 0xe8])
}

/// The prefix `cs`, `2E`. In 64-bit mode it makes the instruction behind it a byte longer, and
/// says nothing. 1 byte.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn cs(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0x2e])
}

/// `sar qword gs:[rip + disp32], imm8`: `65 REX.W C1 /7 ib` with mode 00, register 101. 9 bytes.
///
/// `variable` is the offset from the base of `gs`: what the instruction's end and the
/// displacement add up to.
///
/// # Errors
/// [`EncodeError::OutOfRange`] when `variable` is 2 GiB or more from here, and
/// [`EncodeError::Overflow`].
pub const fn sar_gs_rip(
    code: &mut CodeBuffer<'_>,
    variable: u64,
    count: u8,
) -> Result<(), EncodeError> {
    match displacement32(code.here().wrapping_add(9), variable) {
        Ok(displacement) => {
            sar_gs().byte(RIP_RELATIVE).word32(displacement).byte(count).append_to(code)
        }
        Err(error) => Err(error),
    }
}

/// `sar qword gs:[offset], imm8`: `65 REX.W C1 /7 ib` with mode 00, SIB without base and
/// index. `offset` is counted from the base of `gs`, sign-extended. 10 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn sar_gs_absolute(
    code: &mut CodeBuffer<'_>,
    offset: i32,
    count: u8,
) -> Result<(), EncodeError> {
    // Base 101 in mode 00 is no base, and index 100 no index.
    const DISPLACEMENT_ONLY: u8 = 0b00_100_101;
    sar_gs()
        .byte(SIB)
        .byte(DISPLACEMENT_ONLY)
        .word32(offset.cast_unsigned())
        .byte(count)
        .append_to(code)
}

/// ModRM of the operation 7 with a memory operand relative to the instruction pointer.
const RIP_RELATIVE: u8 = 7 << 3 | 0b101;
/// The same with a SIB byte behind it.
const SIB: u8 = 7 << 3 | 0b100;

const fn sar_gs() -> Instruction {
    Instruction::new().byte(0x65).rex(true, 0, 0, 0).byte(0xc1)
}
