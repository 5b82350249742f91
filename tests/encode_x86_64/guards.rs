//! What guards branches: comparisons with numbers of 32 bits, conditional moves, counts in
//! per-core memory, traps and fillers.

use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{self as x, Condition, NOP4_OSP, NOP4_UDB, Reg};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Mnemonic, OpKind, Register};

use crate::check::{Expected, Operand, decode, decodes_to, fails_with, overflows};
use crate::forms::register;

const ADDRESS: u64 = 0x40_0000;

/// The conditional move of each condition, by its number.
pub const CMOV: [Code; 16] = [
    Code::Cmovo_r64_rm64,
    Code::Cmovno_r64_rm64,
    Code::Cmovb_r64_rm64,
    Code::Cmovae_r64_rm64,
    Code::Cmove_r64_rm64,
    Code::Cmovne_r64_rm64,
    Code::Cmovbe_r64_rm64,
    Code::Cmova_r64_rm64,
    Code::Cmovs_r64_rm64,
    Code::Cmovns_r64_rm64,
    Code::Cmovp_r64_rm64,
    Code::Cmovnp_r64_rm64,
    Code::Cmovl_r64_rm64,
    Code::Cmovge_r64_rm64,
    Code::Cmovle_r64_rm64,
    Code::Cmovg_r64_rm64,
];

#[test]
fn conditional_moves() {
    for (condition, code) in Condition::ALL.into_iter().zip(CMOV) {
        for dst in Reg::ALL {
            for src in Reg::ALL {
                let operands =
                    [dst, src].map(|reg| Operand::Register(register(Register::RAX, reg.number())));
                let expected = Expected { code, size: 4, operands };
                decodes_to(ADDRESS, &expected, |code| x::cmov(code, condition, dst, src));
                overflows(ADDRESS, 4, |code| x::cmov(code, condition, dst, src));
            }
        }
    }
}

type WithNumber = fn(&mut CodeBuffer<'_>, Reg, u32) -> Result<(), fentry::encode::EncodeError>;

#[test]
fn numbers_of_32_bits_are_never_shortened() {
    let forms: [(WithNumber, Code, Code); 2] = [
        (x::sub_imm32, Code::Sub_EAX_imm32, Code::Sub_rm32_imm32),
        (x::cmp_imm32, Code::Cmp_EAX_imm32, Code::Cmp_rm32_imm32),
    ];
    for (emit, for_eax, for_others) in forms {
        for reg in Reg::ALL {
            for value in [0, 1, 0x7f, 0x80, 0x1234_5678, 0x8000_0000, u32::MAX] {
                let (code, size) = match reg.number() {
                    0 => (for_eax, 5),
                    1..8 => (for_others, 6),
                    _ => (for_others, 7),
                };
                let first = Operand::Register(register(Register::EAX, reg.number()));
                let operands = [first, Operand::Immediate(u64::from(value))];
                let expected = Expected { code, size, operands };
                decodes_to(ADDRESS, &expected, |code| emit(code, reg, value));
                overflows(ADDRESS, size, |code| emit(code, reg, value));
            }
        }
    }
}

#[test]
fn counts_in_per_core_memory() {
    for count in [1, 5, 63] {
        for offset in [0, 1, -1, 0x7f, -0x80, i32::MAX, i32::MIN] {
            let mut bytes = [0; 16];
            let mut code = CodeBuffer::new(&mut bytes, ADDRESS);
            x::sar_gs_absolute(&mut code, offset, count).unwrap();
            let [sar] = decode(code.written(), ADDRESS)[..] else { panic!("{bytes:x?}") };
            assert_eq!((sar.code(), sar.len()), (Code::Sar_rm64_imm8, 10));
            assert_eq!((sar.memory_base(), sar.memory_index()), (Register::None, Register::None));
            assert_eq!(sar.segment_prefix(), Register::GS);
            assert_eq!(sar.memory_displacement64().cast_signed(), i64::from(offset));
            assert_eq!(sar.immediate8(), count);
            overflows(ADDRESS, 10, |code| x::sar_gs_absolute(code, offset, count));

            let end = ADDRESS + 9;
            let variable = end.wrapping_add_signed(i64::from(offset));
            let mut code = CodeBuffer::new(&mut bytes, ADDRESS);
            x::sar_gs_rip(&mut code, variable, count).unwrap();
            let [sar] = decode(code.written(), ADDRESS)[..] else { panic!("{bytes:x?}") };
            assert_eq!((sar.code(), sar.len()), (Code::Sar_rm64_imm8, 9));
            assert_eq!(sar.segment_prefix(), Register::GS);
            assert!(sar.is_ip_rel_memory_operand());
            assert_eq!((sar.ip_rel_memory_address(), sar.immediate8()), (variable, count));
            overflows(ADDRESS, 9, |code| x::sar_gs_rip(code, variable, count));
        }
        for to in [ADDRESS + 9 + (1 << 31), (ADDRESS + 9).wrapping_sub((1 << 31) + 1)] {
            let error = fentry::encode::EncodeError::OutOfRange { from: ADDRESS + 9, to };
            fails_with(ADDRESS, error, |code| x::sar_gs_rip(code, to, count));
        }
    }
}

#[test]
fn a_trap_of_one_byte() {
    let mut bytes = [0x90; 16];
    x::udb(&mut CodeBuffer::new(&mut bytes, ADDRESS)).unwrap();
    // `salc` of 16- and 32-bit code; in 64-bit code nothing.
    let legacy = Decoder::new(32, &bytes, DecoderOptions::NONE).decode();
    assert_eq!((legacy.mnemonic(), legacy.len()), (Mnemonic::Salc, 1));
    let mut decoder = Decoder::new(64, &bytes, DecoderOptions::NONE);
    assert!(decoder.decode().is_invalid());
    assert_eq!(decoder.last_error(), DecoderError::InvalidInstruction);
    overflows(ADDRESS, 1, x::udb);
}

#[test]
fn the_prefix_without_a_meaning() {
    let mut bytes = [0; 16];
    let mut code = CodeBuffer::new(&mut bytes, ADDRESS);
    x::cs(&mut code).unwrap();
    x::cs(&mut code).unwrap();
    x::call(&mut code, 0x41_0000).unwrap();
    let [call] = decode(code.written(), ADDRESS)[..] else { panic!("{bytes:x?}") };
    assert_eq!((call.code(), call.len()), (Code::Call_rel32_64, 7));
    assert_eq!(call.near_branch_target(), 0x41_0000);
    overflows(ADDRESS, 1, x::cs);
}

#[test]
fn nops_of_four_bytes() {
    let [udb] = decode(&NOP4_UDB, ADDRESS)[..] else { panic!("one instruction") };
    assert_eq!((udb.code(), udb.memory_base()), (Code::Nop_rm32, Register::RAX));
    assert_eq!(udb.memory_displacement64().cast_signed(), -42);
    assert_eq!(udb.op0_kind(), OpKind::Memory);
    let [osp] = decode(&NOP4_OSP, ADDRESS)[..] else { panic!("one instruction") };
    assert_eq!((osp.code(), osp.memory_base()), (Code::Nop_rm16, Register::RAX));
}
