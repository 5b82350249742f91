//! What a decoder must say of an instruction, and the comparison.

use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};

/// One operand, in a decoder's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    None,
    Register(Register),
    Memory {
        base: Register,
        index: Register,
        scale: u32,
        displacement: i32,
    },
    /// As 64 bits, sign-extended where the instruction does so.
    Immediate(u64),
    Branch(u64),
    RipRelative(u64),
}

/// One instruction, in a decoder's words: which encoding of which operation, how long, on
/// what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub code: Code,
    pub size: usize,
    pub operands: [Operand; 2],
}

/// What no encoder function writes here: tells a byte that was left alone.
pub const UNTOUCHED: u8 = 0xa5;

/// The decoded instructions of `bytes`, which run at `address`.
pub fn decode(bytes: &[u8], address: u64) -> Vec<Instruction> {
    let decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    decoder.into_iter().collect()
}

fn operand(instruction: &Instruction, number: u32) -> Operand {
    if number >= instruction.op_count() {
        return Operand::None;
    }
    match instruction.op_kind(number) {
        OpKind::Register => Operand::Register(instruction.op_register(number)),
        OpKind::NearBranch64 => Operand::Branch(instruction.near_branch_target()),
        OpKind::Memory if instruction.is_ip_rel_memory_operand() => {
            Operand::RipRelative(instruction.ip_rel_memory_address())
        }
        OpKind::Memory => Operand::Memory {
            base: instruction.memory_base(),
            index: instruction.memory_index(),
            scale: instruction.memory_index_scale(),
            displacement: i32::try_from(instruction.memory_displacement64().cast_signed())
                .expect("a displacement has at most 32 bits"),
        },
        _ => Operand::Immediate(instruction.immediate(number)),
    }
}

/// Panics unless `instruction` is the expected one and nothing more: no prefix, mask,
/// broadcast or rounding that was not asked for.
pub fn compare(instruction: &Instruction, expected: &Expected) {
    let found = Expected {
        code: instruction.code(),
        size: instruction.len(),
        operands: [operand(instruction, 0), operand(instruction, 1)],
    };
    assert_eq!(found, *expected);
    assert!(instruction.op_count() <= 2, "{instruction:?}");
    assert_eq!(instruction.segment_prefix(), Register::None);
    assert_eq!(instruction.op_mask(), Register::None);
    let modified = instruction.has_lock_prefix()
        || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
        || instruction.zeroing_masking()
        || instruction.is_broadcast();
    assert!(!modified, "{instruction:?}");
}

/// Emits one instruction at `address` and compares what a decoder says of it; nothing behind
/// it may be written.
pub fn decodes_to(
    address: u64,
    expected: &Expected,
    emit: impl Fn(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) {
    let mut bytes = [UNTOUCHED; 16];
    let mut code = CodeBuffer::new(&mut bytes, address);
    emit(&mut code).unwrap_or_else(|error| panic!("{error} where {expected:?} was expected"));
    let len = code.position();
    assert_eq!(code.here(), address.wrapping_add(len as u64));
    let mut decoder = Decoder::with_ip(64, &bytes[..len], address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    assert_eq!(
        decoder.last_error(),
        DecoderError::None,
        "{expected:?} became {:x?}",
        &bytes[..len]
    );
    assert_eq!(decoder.position(), len, "{expected:?} became {:x?}", &bytes[..len]);
    compare(&instruction, expected);
    assert!(bytes[len..].iter().all(|&byte| byte == UNTOUCHED), "{expected:?} became {bytes:x?}");
}

/// Emits one instruction of `size` bytes into every buffer that is too small for it.
pub fn overflows(
    address: u64,
    size: usize,
    emit: impl Fn(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) {
    let mut bytes = [UNTOUCHED; 16];
    for remaining in 0..size {
        let mut code = CodeBuffer::new(&mut bytes[..remaining], address);
        assert_eq!(emit(&mut code), Err(EncodeError::Overflow { needed: size, remaining }));
        assert_eq!(code.position(), 0);
        assert_eq!(bytes, [UNTOUCHED; 16]);
    }
}

/// Emits what must fail with `error` although there is room for it.
pub fn fails_with(
    address: u64,
    error: EncodeError,
    emit: impl Fn(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) {
    let mut bytes = [UNTOUCHED; 16];
    let mut code = CodeBuffer::new(&mut bytes, address);
    assert_eq!(emit(&mut code), Err(error));
    assert_eq!((code.position(), code.here()), (0, address));
    assert_eq!(bytes, [UNTOUCHED; 16]);
}
