//! Functions with a memory operand: every register with every base, index, scale and
//! displacement class.

use fentry::encode::x86_64::{self as x, Mem, Reg, Scale};
use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::{Code, Register};

use crate::check::{decode, decodes_to, fails_with, overflows};
use crate::forms::{MEMORY, Memory, register};

const ADDRESS: u64 = 0x7f12_3456_7000;

/// Every scale.
pub const SCALES: [Scale; 4] = [Scale::One, Scale::Two, Scale::Four, Scale::Eight];

/// Displacements at which the size of an encoding changes, and some that are the same as
/// others in their lowest bits.
const DISPLACEMENTS: [i32; 32] = [
    0,
    1,
    -1,
    63,
    64,
    65,
    -64,
    -65,
    127,
    128,
    129,
    -127,
    -128,
    -129,
    192,
    255,
    256,
    -256,
    8127,
    8128,
    8129,
    8192,
    -8191,
    -8192,
    -8193,
    -8256,
    16384,
    -16384,
    0x7fff_ffc0,
    0x7fff_ffff,
    -0x7fff_ffff,
    -0x8000_0000,
];

/// Every memory operand that can be encoded.
pub fn every_operand() -> impl Iterator<Item = Mem> {
    Reg::ALL.into_iter().flat_map(|base| {
        DISPLACEMENTS.into_iter().flat_map(move |disp| {
            let plain = Mem::at(base, disp);
            let indexes = Reg::ALL.into_iter().filter(|&index| index != Reg::Rsp);
            let indexed = indexes.flat_map(move |index| {
                SCALES.into_iter().map(move |scale| plain.indexed(index, scale))
            });
            core::iter::once(plain).chain(indexed)
        })
    })
}

fn every_encoding(code: Code) {
    let form: &Memory = MEMORY.iter().find(|form| form.code == code).expect("a form");
    for mem in every_operand() {
        for number in form.registers() {
            let expected = form.expected(number, mem);
            decodes_to(ADDRESS, &expected, |code| (form.emit)(code, number, mem));
        }
        // Whether there is room depends on the size alone, and that on the halves of the
        // registers.
        for number in [form.registers().start, form.registers().end - 1] {
            let size = form.expected(number, mem).size;
            overflows(ADDRESS, size, |code| (form.emit)(code, number, mem));
        }
    }
}

#[test]
fn mov_load64() {
    every_encoding(Code::Mov_r64_rm64);
}

#[test]
fn mov_load32() {
    every_encoding(Code::Mov_r32_rm32);
}

#[test]
fn mov_store64() {
    every_encoding(Code::Mov_rm64_r64);
}

#[test]
fn mov_store32() {
    every_encoding(Code::Mov_rm32_r32);
}

#[test]
fn lea() {
    every_encoding(Code::Lea_r64_m);
}

#[test]
fn cmp_load64() {
    every_encoding(Code::Cmp_r64_rm64);
}

#[test]
fn cmpxchg64() {
    every_encoding(Code::Cmpxchg_rm64_r64);
}

#[test]
fn inc_mem64() {
    every_encoding(Code::Inc_rm64);
}

#[test]
fn dec_mem64() {
    every_encoding(Code::Dec_rm64);
}

#[test]
fn movups_load() {
    every_encoding(Code::Movups_xmm_xmmm128);
}

#[test]
fn movups_store() {
    every_encoding(Code::Movups_xmmm128_xmm);
}

#[test]
fn vmovups256_load() {
    every_encoding(Code::VEX_Vmovups_ymm_ymmm256);
}

#[test]
fn vmovups256_store() {
    every_encoding(Code::VEX_Vmovups_ymmm256_ymm);
}

#[test]
fn vmovups512_load() {
    every_encoding(Code::EVEX_Vmovups_zmm_k1z_zmmm512);
}

#[test]
fn vmovups512_store() {
    every_encoding(Code::EVEX_Vmovups_zmmm512_k1z_zmm);
}

#[test]
fn every_short_displacement_of_a_frame() {
    for form in &MEMORY {
        for base in [Reg::Rsp, Reg::Rbp, Reg::R11] {
            for disp in -0x2200..=0x2200 {
                let mem = Mem::at(base, disp);
                let expected = form.expected(0, mem);
                decodes_to(ADDRESS, &expected, |code| (form.emit)(code, 0, mem));
            }
        }
    }
}

/// Immediates behind a memory operand: compared with what the decoder says of both.
#[test]
fn mov_store_imm() {
    for mem in every_operand() {
        for value in [0, 1, -1, 127, -128, i32::MAX, i32::MIN] {
            let wide = |code: &mut CodeBuffer<'_>| x::mov_store_imm64(code, mem, value);
            let narrow =
                |code: &mut CodeBuffer<'_>| x::mov_store_imm32(code, mem, value.cast_unsigned());
            let same_place = |code: &mut CodeBuffer<'_>| x::mov_store64(code, mem, Reg::Rax);
            let [(store, len), (wide, wide_len)] = [emitted(same_place), emitted(wide)];
            let (narrow, narrow_len) = emitted(narrow);
            assert_eq!((wide.code(), wide_len), (Code::Mov_rm64_imm32, len + 4));
            assert_eq!(wide.immediate(1).cast_signed(), i64::from(value));
            assert_eq!(narrow.code(), Code::Mov_rm32_imm32);
            assert!(narrow_len == len + 4 || narrow_len == len + 3, "{narrow_len}: {mem:?}");
            assert_eq!(narrow.immediate32(), value.cast_unsigned());
            let place = |it: &iced_x86::Instruction| {
                let (base, index) = (it.memory_base(), it.memory_index());
                (base, index, it.memory_index_scale(), it.memory_displacement64())
            };
            assert_eq!(place(&wide), place(&store));
            assert_eq!(place(&narrow), place(&store));
            overflows(ADDRESS, wide_len, |code| x::mov_store_imm64(code, mem, value));
        }
    }
    let no_index = Mem::at(Reg::Rax, 0).indexed(Reg::Rsp, Scale::One);
    for emit in [
        |code: &mut CodeBuffer<'_>, mem| x::mov_store_imm64(code, mem, 1),
        |code: &mut CodeBuffer<'_>, mem| x::mov_store_imm32(code, mem, 1),
    ] {
        fails_with(ADDRESS, EncodeError::IndexIsRsp { at: ADDRESS }, |code| emit(code, no_index));
    }
}

/// The one instruction that `emit` emits, and its size.
fn emitted(
    emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) -> (iced_x86::Instruction, usize) {
    let mut bytes = [0; 15];
    let mut code = CodeBuffer::new(&mut bytes, ADDRESS);
    emit(&mut code).expect("fifteen bytes are enough");
    let [instruction] = decode(code.written(), ADDRESS)[..] else { panic!("not one instruction") };
    (instruction, code.position())
}

/// The only operand with a segment, and without a base: compared field by field.
#[test]
fn mov_load64_fs() {
    for dst in Reg::ALL {
        for offset in DISPLACEMENTS {
            let mut bytes = [0; 9];
            let mut code = CodeBuffer::new(&mut bytes, ADDRESS);
            x::mov_load64_fs(&mut code, dst, offset).expect("nine bytes are enough");
            let [load] = decode(&bytes, ADDRESS)[..] else { panic!("{bytes:x?}") };
            assert_eq!((load.code(), load.len()), (Code::Mov_r64_rm64, 9));
            assert_eq!(load.op0_register(), register(Register::RAX, dst.number()));
            assert_eq!(load.segment_prefix(), Register::FS);
            assert_eq!((load.memory_base(), load.memory_index()), (Register::None, Register::None));
            assert_eq!(load.memory_displacement64(), i64::from(offset).cast_unsigned());
        }
        overflows(ADDRESS, 9, |code| x::mov_load64_fs(code, dst, -8));
    }
}

#[test]
fn rsp_is_no_index() {
    for form in &MEMORY {
        for base in Reg::ALL {
            for scale in SCALES {
                for disp in DISPLACEMENTS {
                    let mem = Mem::at(base, disp).indexed(Reg::Rsp, scale);
                    for number in form.registers() {
                        fails_with(ADDRESS, EncodeError::IndexIsRsp { at: ADDRESS }, |code| {
                            (form.emit)(code, number, mem)
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn an_index_takes_the_place_of_the_one_before() {
    let [one, two, ..] = SCALES;
    let mem = Mem::at(Reg::Rax, 8).indexed(Reg::Rcx, one).indexed(Reg::Rdx, two);
    assert_eq!(mem, Mem::at(Reg::Rax, 8).indexed(Reg::Rdx, two));
    assert_eq!(mem.index, Some((Reg::Rdx, two)));
}
