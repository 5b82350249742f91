//! Nops: lengths, and what a core may see while one kind takes the place of another.

use fentry::encode::EncodeError;
use fentry::encode::x86_64::{self as x, NOP_MAX, NOP1X5, NOP5, NOP5_CLANG, NOP5_PREFIXED};
use iced_x86::{Code, Mnemonic};

use crate::check::{Expected, Operand, compare, decode, fails_with, overflows};

const ADDRESS: u64 = 0x40_1000;

/// Whether `bytes` are nops, the last of which ends with them.
fn only_nops(bytes: &[u8]) -> bool {
    let instructions = decode(bytes, ADDRESS);
    // A truncated instruction is decoded as an invalid one.
    instructions.iter().all(|instruction| instruction.mnemonic() == Mnemonic::Nop)
        && instructions.iter().map(|instruction| instruction.len()).sum::<usize>() == bytes.len()
}

/// `a` with each byte taken from `b` whose bit is set in `choice`.
fn mixture(a: [u8; 5], b: [u8; 5], choice: usize) -> [u8; 5] {
    core::array::from_fn(|at| if choice >> at & 1 == 1 { b[at] } else { a[at] })
}

/// Whether a thread sees only nops wherever it goes on while `a` becomes `b`, and whatever
/// bytes it sees.
fn exchangeable(a: [u8; 5], b: [u8; 5]) -> bool {
    (0..1 << 5).all(|choice| (0..5).all(|from| only_nops(&mixture(a, b, choice)[from..])))
}

#[test]
fn one_nop_of_each_length() {
    for len in 1..=NOP_MAX {
        let mut bytes = [0; 16];
        let mut code = fentry::encode::CodeBuffer::new(&mut bytes, ADDRESS);
        x::nop(&mut code, len).expect("a length that exists");
        let instructions = decode(code.written(), ADDRESS);
        let [nop] = instructions[..] else { panic!("one instruction: {instructions:?}") };
        assert_eq!(nop.len(), len);
        let code = match len {
            1 => Code::Nopd,
            2 => Code::Nopw,
            6 | 9 => Code::Nop_rm16,
            _ => Code::Nop_rm32,
        };
        assert_eq!((nop.code(), nop.mnemonic()), (code, Mnemonic::Nop));
        assert_eq!(nop.memory_displacement64(), 0);
        overflows(ADDRESS, len, |code| x::nop(code, len));
    }
    assert_eq!(NOP_MAX, 9, "the longest in the table of the SDM");
}

#[test]
fn no_nop_of_other_lengths() {
    for len in [0, NOP_MAX + 1, 15, 16, 255, 257, usize::MAX] {
        fails_with(ADDRESS, EncodeError::NopLength { len }, |code| x::nop(code, len));
    }
}

#[test]
fn five_bytes_are_one_nop_or_five() {
    let memory = |displacement| Operand::Memory {
        base: iced_x86::Register::RAX,
        index: iced_x86::Register::RAX,
        scale: 1,
        displacement,
    };
    for (bytes, displacement) in [(NOP5, 0), (NOP5_CLANG, 8)] {
        let operands = [memory(displacement), Operand::None];
        let [nop] = decode(&bytes, ADDRESS)[..] else { panic!("one instruction") };
        compare(&nop, &Expected { code: Code::Nop_rm32, size: 5, operands });
    }
    let operands = [Operand::None; 2];
    let [nop] = decode(&NOP5_PREFIXED, ADDRESS)[..] else { panic!("one instruction") };
    compare(&nop, &Expected { code: Code::Nopw, size: 5, operands });
    let nops = decode(&NOP1X5, ADDRESS);
    assert_eq!(nops.len(), 5);
    for nop in nops {
        compare(&nop, &Expected { code: Code::Nopd, size: 1, operands });
    }
}

#[test]
fn the_prefixed_nop_and_one_byte_nops_are_exchangeable() {
    assert!(exchangeable(NOP1X5, NOP5_PREFIXED));
    assert!(exchangeable(NOP5_PREFIXED, NOP1X5));
    // What the property is worth: the usual nops do not have it, not even alone.
    for other in [NOP5, NOP5_CLANG] {
        assert!(only_nops(&other));
        assert!(!exchangeable(NOP1X5, other));
        assert!((1..5).any(|from| !only_nops(&other[from..])));
    }
}
