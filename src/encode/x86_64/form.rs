//! How an instruction is put together from prefixes, opcode, operands and immediates
//! (Intel SDM volume 2, chapter 2).

use super::operand::{Mem, Reg};
use crate::encode::{CodeBuffer, EncodeError};

/// One instruction in the making, put into the buffer in one piece, so that a buffer that
/// is too small is left as it was.
///
/// The bytes are those of a number, the first byte lowest: an instruction has at most 15,
/// and what this encoder makes at most 12.
#[derive(Clone, Copy)]
pub(super) struct Instruction {
    bytes: u128,
    len: u32,
}

impl Instruction {
    /// No bytes yet.
    pub(super) const fn new() -> Self {
        Self { bytes: 0, len: 0 }
    }

    /// The same with `byte` behind it.
    pub(super) const fn byte(self, byte: u8) -> Self {
        self.little_endian(byte as u64, 1)
    }

    /// The same with a 32-bit immediate or displacement behind it.
    pub(super) const fn word32(self, value: u32) -> Self {
        self.little_endian(value as u64, 4)
    }

    /// The same with a 64-bit immediate behind it.
    pub(super) const fn word64(self, value: u64) -> Self {
        self.little_endian(value, 8)
    }

    const fn little_endian(self, value: u64, len: u32) -> Self {
        let shifted = (value as u128).wrapping_shl(self.len * 8);
        Self { bytes: self.bytes | shifted, len: self.len + len }
    }

    /// The REX prefix for these operands, which is left out where it would say nothing.
    /// `wide` asks for 64-bit operands.
    pub(super) const fn rex(self, wide: bool, reg: u8, index: u8, base: u8) -> Self {
        let bits = (wide as u8) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if bits == 0 { self } else { self.byte(0x40 | bits) }
    }

    /// ModRM with two registers; `reg` may be the opcode's extension.
    pub(super) const fn registers(self, reg: u8, rm: u8) -> Self {
        self.byte(0b11 << 6 | (reg & 7) << 3 | rm & 7)
    }

    /// ModRM, SIB and displacement. An 8-bit displacement counts in steps of
    /// `1 << disp_shift` bytes.
    const fn memory(self, reg: u8, mem: Mem, disp_shift: u32) -> Self {
        let base = mem.base.number() & 7;
        let scaled = mem.disp >> disp_shift;
        let exact = scaled << disp_shift == mem.disp;
        // In the mode without a displacement, this base's code means something else.
        let displacement = if mem.disp == 0 && base != Reg::Rbp.number() {
            0b00
        } else if exact && scaled == scaled as i8 as i32 {
            0b01
        } else {
            0b10
        };
        // rsp's code in ModRM announces a SIB byte; as the index in it, it means none.
        let escape = Reg::Rsp.number();
        let sib = match mem.index {
            Some((index, scale)) => Some((scale as u8) << 6 | (index.number() & 7) << 3 | base),
            None if base == escape => Some(escape << 3 | base),
            None => None,
        };
        let modrm = displacement << 6 | (reg & 7) << 3;
        let start = match sib {
            Some(sib) => self.byte(modrm | escape).byte(sib),
            None => self.byte(modrm | base),
        };
        match displacement {
            0b00 => start,
            0b01 => start.byte((scaled & 0xff) as u8),
            _ => start.word32(mem.disp.cast_unsigned()),
        }
    }

    /// Puts the instruction into the buffer.
    pub(super) const fn append_to(self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        code.little_endian(self.bytes, self.len as usize)
    }
}

/// What stands before the opcode of an instruction with a memory operand.
#[derive(Clone, Copy)]
pub(super) enum Prefix {
    /// 32-bit operands.
    Legacy32,
    /// 64-bit operands: REX.W.
    Legacy64,
    /// The opcode map 0F.
    Legacy0f,
    /// The opcode map 0F and 64-bit operands.
    Legacy0f64,
    /// VEX.256.0F.WIG.
    Vex256,
    /// EVEX.512.0F.W0, without a mask.
    Evex512,
}

/// Appends `opcode /r` with a register, or an opcode extension, and a memory operand.
pub(super) const fn with_memory(
    code: &mut CodeBuffer<'_>,
    prefix: Prefix,
    opcode: u8,
    reg: u8,
    mem: Mem,
) -> Result<(), EncodeError> {
    match memory(code.here(), prefix, opcode, reg, mem) {
        Ok(instruction) => instruction.append_to(code),
        Err(error) => Err(error),
    }
}

/// Appends `opcode /r` with a register, or an opcode extension, a memory operand, and an
/// immediate of 32 bits.
pub(super) const fn with_memory_imm32(
    code: &mut CodeBuffer<'_>,
    prefix: Prefix,
    opcode: u8,
    reg: u8,
    mem: Mem,
    value: u32,
) -> Result<(), EncodeError> {
    match memory(code.here(), prefix, opcode, reg, mem) {
        Ok(instruction) => instruction.word32(value).append_to(code),
        Err(error) => Err(error),
    }
}

/// An instruction with a memory operand, to stand at this address.
const fn memory(
    at: u64,
    prefix: Prefix,
    opcode: u8,
    reg: u8,
    mem: Mem,
) -> Result<Instruction, EncodeError> {
    let index = match mem.index {
        Some((Reg::Rsp, _)) => return Err(EncodeError::IndexIsRsp { at }),
        Some((index, _)) => index.number(),
        None => 0,
    };
    let base = mem.base.number();
    let empty = Instruction::new();
    let (start, disp_shift) = match prefix {
        Prefix::Legacy32 => (empty.rex(false, reg, index, base), 0),
        Prefix::Legacy64 => (empty.rex(true, reg, index, base), 0),
        Prefix::Legacy0f => (empty.rex(false, reg, index, base).byte(0x0f), 0),
        Prefix::Legacy0f64 => (empty.rex(true, reg, index, base).byte(0x0f), 0),
        Prefix::Vex256 => (vex256(reg, index, base), 0),
        // A full vector is 64 bytes: EVEX counts short displacements in those.
        Prefix::Evex512 => (evex512(reg, index, base), 6),
    };
    Ok(start.byte(opcode).memory(reg, mem, disp_shift))
}

/// Appends `opcode /r` with two registers.
pub(super) const fn with_registers(
    code: &mut CodeBuffer<'_>,
    wide: bool,
    opcode: u8,
    reg: u8,
    rm: u8,
) -> Result<(), EncodeError> {
    Instruction::new().rex(wide, reg, 0, rm).byte(opcode).registers(reg, rm).append_to(code)
}

/// R, X and B as VEX and EVEX store them: the fourth bits of the operands, inverted.
const fn inverted_rxb(reg: u8, index: u8, base: u8) -> u8 {
    !((reg >> 3) << 7 | (index >> 3) << 6 | (base >> 3) << 5) & 0b1110_0000
}

/// W0, no second source (1111, inverted), L for 256 bits, no mandatory prefix (00).
const VEX_LAST: u8 = 0b0111_1100;

const fn vex256(reg: u8, index: u8, base: u8) -> Instruction {
    let rxb = inverted_rxb(reg, index, base);
    if index < 8 && base < 8 {
        Instruction::new().byte(0xc5).byte(rxb & 0b1000_0000 | VEX_LAST)
    } else {
        // The opcode map 0F is number 1.
        Instruction::new().byte(0xc4).byte(rxb | 1).byte(VEX_LAST)
    }
}

const fn evex512(reg: u8, index: u8, base: u8) -> Instruction {
    // R', inverted like R: it would make `reg` one of the vector registers 16 to 31.
    let high_reg = 1 << 4;
    Instruction::new()
        .byte(0x62)
        .byte(inverted_rxb(reg, index, base) | high_reg | 1)
        // W0, no second source (1111, inverted), always 1, no mandatory prefix (00).
        .byte(0b0111_1100)
        // No zeroing, 512 bits (10), no broadcast, V' (1, inverted), no mask (000).
        .byte(0b0100_1000)
}
