//! The encoder against a decoder: any calls, in any order, into a buffer of any size.

use fentry::encode::x86_64::{self as x, Mem, NOP_MAX, Reg, Scale};
use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::{Code, Instruction, Mnemonic};

use super::input::Input;
use crate::check::{Expected, Operand, UNTOUCHED, compare, decode};
use crate::forms::{ARITHMETIC, CONSTANT, MEMORY, NEAR, ONE, PLAIN, TWO, expected_lea_rip};

const SCALES: [Scale; 4] = [Scale::One, Scale::Two, Scale::Four, Scale::Eight];

/// What must come of a call.
enum Outcome {
    /// This instruction, if there is room for it.
    Instruction(Expected),
    /// One nop of this many bytes, if there is room for it.
    Nop(usize),
    /// This error, if there is room or not.
    Error(EncodeError),
}

/// Makes one call of the encoder, and says what must come of it.
fn call(input: &mut Input<'_>, code: &mut CodeBuffer<'_>) -> (Result<(), EncodeError>, Outcome) {
    let at = code.here();
    let kind = input.u8();
    let reg = Reg::ALL[usize::from(input.u8() & 15)];
    let form = usize::from(input.u8());
    match kind % 10 {
        0 => {
            let form = &PLAIN[form % PLAIN.len()];
            ((form.emit)(code), Outcome::Instruction(form.expected()))
        }
        1 => {
            let form = &ONE[form % ONE.len()];
            ((form.emit)(code, reg), Outcome::Instruction(form.expected(reg)))
        }
        2 => {
            let form = &TWO[form % TWO.len()];
            let other = Reg::ALL[usize::from(input.u8() & 15)];
            ((form.emit)(code, reg, other), Outcome::Instruction(form.expected(reg, other)))
        }
        3 => {
            let form = &ARITHMETIC[form % ARITHMETIC.len()];
            let value = if input.u8() & 1 == 0 { input.i32() } else { i32::from(input.u8()) };
            ((form.emit)(code, reg, value), Outcome::Instruction(form.expected(reg, value)))
        }
        4 => {
            let form = &CONSTANT[form % CONSTANT.len()];
            let value = input.u64();
            ((form.emit)(code, reg, value), Outcome::Instruction(form.expected(reg, value)))
        }
        5 => {
            let form = &NEAR[form % NEAR.len()];
            let target = input.address(at);
            let emitted = (form.emit)(code, target);
            let outcome = near(at, form.size, target, form.expected(target));
            (emitted, outcome)
        }
        6 => {
            let target = input.address(at);
            let emitted = x::lea_rip(code, reg, target);
            (emitted, near(at, 7, target, expected_lea_rip(reg, target)))
        }
        7 => {
            let from = at.wrapping_add(2);
            let target = from.wrapping_add_signed(i64::from(input.u16().cast_signed()));
            let emitted = x::jmp_short(code, target);
            let operands = [Operand::Branch(target), Operand::None];
            let expected = Expected { code: Code::Jmp_rel8_64, size: 2, operands };
            let outcome = match i8::try_from(target.wrapping_sub(from).cast_signed()) {
                Ok(_) => Outcome::Instruction(expected),
                Err(_) => Outcome::Error(EncodeError::OutOfShortRange { from, to: target }),
            };
            (emitted, outcome)
        }
        8 => {
            let len = form % (NOP_MAX + 2);
            let emitted = x::nop(code, len);
            let outcome = match len {
                1..=NOP_MAX => Outcome::Nop(len),
                _ => Outcome::Error(EncodeError::NopLength { len }),
            };
            (emitted, outcome)
        }
        _ => {
            let form = &MEMORY[form % MEMORY.len()];
            let number = input.u8() % form.registers().end;
            let mem = mem(reg, input);
            let emitted = (form.emit)(code, number, mem);
            let outcome = match mem.index {
                Some((Reg::Rsp, _)) => Outcome::Error(EncodeError::IndexIsRsp { at }),
                _ => Outcome::Instruction(form.expected(number, mem)),
            };
            (emitted, outcome)
        }
    }
}

/// What must come of an instruction with a 32-bit displacement.
fn near(at: u64, size: u64, to: u64, expected: Expected) -> Outcome {
    let from = at.wrapping_add(size);
    match i32::try_from(to.wrapping_sub(from).cast_signed()) {
        Ok(_) => Outcome::Instruction(expected),
        Err(_) => Outcome::Error(EncodeError::OutOfRange { from, to }),
    }
}

fn mem(base: Reg, input: &mut Input<'_>) -> Mem {
    let shape = input.u8();
    let disp = match shape & 3 {
        0 => 0,
        1 => i32::from(input.u8().cast_signed()),
        2 => i32::from(input.u8().cast_signed()) * 64,
        _ => input.i32(),
    };
    let mem = Mem::at(base, disp);
    if shape & 4 == 0 {
        return mem;
    }
    mem.indexed(Reg::ALL[usize::from(input.u8() & 15)], SCALES[usize::from(shape >> 3 & 3)])
}

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let address = input.u64();
    let capacity = usize::from(input.u8());
    let mut bytes = vec![UNTOUCHED; capacity];
    let mut code = CodeBuffer::new(&mut bytes, address);
    // What was appended so far: no later call may change it.
    let mut appended: Vec<u8> = Vec::new();
    while !input.is_empty() {
        let remaining = code.remaining();
        let at = code.here();
        let (found, outcome) = call(&mut input, &mut code);
        let needed = match &outcome {
            Outcome::Instruction(expected) => expected.size,
            Outcome::Nop(len) => *len,
            Outcome::Error(error) => {
                assert_eq!(found, Err(*error));
                0
            }
        };
        let (before, added) =
            code.written().split_at_checked(appended.len()).expect("a buffer never shrinks");
        assert_eq!(before, appended);
        if needed == 0 || needed > remaining {
            if needed > 0 {
                assert_eq!(found, Err(EncodeError::Overflow { needed, remaining }));
            }
            assert_eq!(added, []);
            continue;
        }
        assert_eq!(found, Ok(()));
        assert_eq!(added.len(), needed);
        match (&decode(added, at)[..], outcome) {
            ([instruction], Outcome::Instruction(expected)) => compare(instruction, &expected),
            ([instruction], _) => assert!(is_nop(instruction), "{added:02x?}"),
            (several, _) => panic!("{added:02x?} is {} instructions", several.len()),
        }
        appended.extend_from_slice(added);
    }
    let end = code.position();
    assert_eq!(end, appended.len());
    assert!(bytes[end..].iter().all(|&byte| byte == UNTOUCHED));
}

fn is_nop(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Nop
}
