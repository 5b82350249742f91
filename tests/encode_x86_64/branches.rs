//! Branches and `lea` relative to the instruction pointer: at every boundary of the
//! displacement, at addresses from both ends of the address space.

use fentry::encode::x86_64::{self as x, Condition, Reg};
use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::{Code, FlowControl};

use crate::check::{Expected, Operand, decode, decodes_to, fails_with, overflows};
use crate::forms::{NEAR, SHORT, expected_lea_rip};

/// Where branches stand. The last ones lie so that the instruction, or the displacement
/// from it, passes the end of the address space.
const ADDRESSES: [u64; 8] = [
    0,
    0x40_1000,
    0x7fff_ffff,
    0x7fff_ffff_f000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_fffb,
    0xffff_ffff_ffff_fffe,
];

const GIB: i64 = 1 << 30;

/// Distances that a displacement of 32 bits has, from the end of the instruction.
const NEAR_ENOUGH: [i64; 15] = [
    0,
    1,
    -1,
    -5,
    -6,
    127,
    128,
    -128,
    -129,
    0xffff,
    -0x1_0000,
    2 * GIB - 2,
    2 * GIB - 1,
    -2 * GIB + 1,
    -2 * GIB,
];

/// Distances that it has not, some of them with the lower half of one that it has.
const TOO_FAR: [i64; 12] = [
    2 * GIB,
    2 * GIB + 1,
    -2 * GIB - 1,
    4 * GIB - 1,
    4 * GIB,
    4 * GIB + 5,
    -4 * GIB,
    -4 * GIB - 5,
    0x7fff_8000_0000,
    i64::MAX,
    i64::MIN + 1,
    i64::MIN,
];

#[test]
fn near_branches_reach_two_gib() {
    for form in &NEAR {
        for address in ADDRESSES {
            let from = address.wrapping_add(form.size);
            for distance in NEAR_ENOUGH {
                let target = from.wrapping_add_signed(distance);
                let expected = form.expected(target);
                decodes_to(address, &expected, |code| (form.emit)(code, target));
                overflows(address, expected.size, |code| (form.emit)(code, target));
            }
        }
    }
}

#[test]
fn near_branches_refuse_what_they_do_not_reach() {
    for form in &NEAR {
        for address in ADDRESSES {
            let from = address.wrapping_add(form.size);
            for distance in TOO_FAR {
                let to = from.wrapping_add_signed(distance);
                let error = EncodeError::OutOfRange { from, to };
                fails_with(address, error, |code| (form.emit)(code, to));
            }
        }
    }
}

#[test]
fn lea_rip_reaches_two_gib() {
    for address in ADDRESSES {
        let from = address.wrapping_add(7);
        for dst in Reg::ALL {
            for distance in NEAR_ENOUGH {
                let target = from.wrapping_add_signed(distance);
                let expected = expected_lea_rip(dst, target);
                decodes_to(address, &expected, |code| x::lea_rip(code, dst, target));
                overflows(address, expected.size, |code| x::lea_rip(code, dst, target));
            }
            for distance in TOO_FAR {
                let to = from.wrapping_add_signed(distance);
                let error = EncodeError::OutOfRange { from, to };
                fails_with(address, error, |code| x::lea_rip(code, dst, to));
            }
        }
    }
}

fn short_reaches(code: Code, emit: impl Fn(&mut CodeBuffer<'_>, u64) -> Result<(), EncodeError>) {
    for address in ADDRESSES {
        let from = address.wrapping_add(2);
        for distance in (-0x300..=0x300).chain(NEAR_ENOUGH).chain(TOO_FAR) {
            let target = from.wrapping_add_signed(distance);
            if i8::try_from(distance).is_ok() {
                let operands = [Operand::Branch(target), Operand::None];
                let expected = Expected { code, size: 2, operands };
                decodes_to(address, &expected, |code| emit(code, target));
                overflows(address, 2, |code| emit(code, target));
            } else {
                let error = EncodeError::OutOfShortRange { from, to: target };
                fails_with(address, error, |code| emit(code, target));
            }
        }
    }
}

#[test]
fn short_jumps_reach_128_bytes() {
    short_reaches(Code::Jmp_rel8_64, x::jmp_short);
    for (condition, code) in Condition::ALL.into_iter().zip(SHORT) {
        short_reaches(code, |code, target| x::jcc_short(code, condition, target));
    }
}

#[test]
fn the_bytes_for_a_patch_site_branch_to_the_target() {
    for at in ADDRESSES {
        let from = at.wrapping_add(5);
        for distance in NEAR_ENOUGH {
            let to = from.wrapping_add_signed(distance);
            let call = decode(&x::call_bytes(at, to).expect("in range"), at);
            let jump = decode(&x::jmp_bytes(at, to).expect("in range"), at);
            assert_eq!((call.len(), call[0].flow_control()), (1, FlowControl::Call));
            assert_eq!((jump.len(), jump[0].flow_control()), (1, FlowControl::UnconditionalBranch));
            assert_eq!((call[0].near_branch_target(), call[0].len()), (to, 5));
            assert_eq!((jump[0].near_branch_target(), jump[0].len()), (to, 5));
        }
        for distance in TOO_FAR {
            let to = from.wrapping_add_signed(distance);
            assert_eq!(x::call_bytes(at, to), Err(EncodeError::OutOfRange { from, to }));
            assert_eq!(x::jmp_bytes(at, to), Err(EncodeError::OutOfRange { from, to }));
        }
    }
}

const THUNK_AT: u64 = 0x40_0000;
const THUNK_INDEX: u32 = 0x8765_4321;
const THUNK_TARGET: u64 = 0x3f_0000;

const fn thunk() -> Result<[u8; 11], EncodeError> {
    let mut bytes = [0; 11];
    let mut code = CodeBuffer::new(&mut bytes, THUNK_AT);
    if let Err(error) = x::mov_imm32(&mut code, Reg::R11, THUNK_INDEX) {
        return Err(error);
    }
    match x::jmp(&mut code, THUNK_TARGET) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(error),
    }
}

#[test]
fn a_thunk_is_made_by_the_compiler() {
    const THUNK: Result<[u8; 11], EncodeError> = thunk();
    let instructions = decode(&THUNK.expect("the target is near"), THUNK_AT);
    let [index, jump] = instructions[..] else { panic!("two instructions: {instructions:?}") };
    assert_eq!((index.code(), index.immediate32()), (Code::Mov_r32_imm32, THUNK_INDEX));
    assert_eq!(index.op0_register(), iced_x86::Register::R11D);
    assert_eq!(jump.code(), Code::Jmp_rel32_64);
    assert_eq!(jump.near_branch_target(), THUNK_TARGET);
}
