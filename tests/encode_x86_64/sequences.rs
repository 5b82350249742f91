//! Random sequences of instructions into buffers of random size.

use fentry::encode::x86_64::{self as x, Mem, NOP_MAX, Reg};
use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::Mnemonic;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::check::{Expected, UNTOUCHED, compare, decode};
use crate::forms::{ARITHMETIC, CONSTANT, MEMORY, NEAR, ONE, PLAIN, TWO};
use crate::memory::SCALES;

/// A call of one of the encoder's functions. Forms are by their place in their table,
/// targets by their distance from the instruction.
#[derive(Clone, Copy, Debug)]
enum Call {
    Bytes(u8),
    Nop(usize),
    Plain(usize),
    One(usize, Reg),
    Two(usize, Reg, Reg),
    Arithmetic(usize, Reg, i32),
    Constant(usize, Reg, u64),
    Memory(usize, u8, Mem),
    Near(usize, i64),
}

/// What must come of a call for which there is room.
enum Outcome {
    Instruction(Expected),
    /// One nop of this length.
    Nop(usize),
    Error(EncodeError),
}

impl Call {
    fn emit(self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        match self {
            Self::Bytes(len) => code.bytes(&[0x90; 256][..usize::from(len)]),
            Self::Nop(len) => x::nop(code, len),
            Self::Plain(form) => (PLAIN[form].emit)(code),
            Self::One(form, a) => (ONE[form].emit)(code, a),
            Self::Two(form, a, b) => (TWO[form].emit)(code, a, b),
            Self::Arithmetic(form, a, value) => (ARITHMETIC[form].emit)(code, a, value),
            Self::Constant(form, a, value) => (CONSTANT[form].emit)(code, a, value),
            Self::Memory(form, number, mem) => (MEMORY[form].emit)(code, number, mem),
            Self::Near(form, distance) => {
                let target = code.here().wrapping_add_signed(distance);
                (NEAR[form].emit)(code, target)
            }
        }
    }

    /// What the call must append at `at`, as instructions.
    fn outcomes(self, at: u64) -> Vec<Outcome> {
        let one = match self {
            Self::Bytes(len) => return (0..len).map(|_| Outcome::Nop(1)).collect(),
            Self::Nop(len) if (1..=NOP_MAX).contains(&len) => Outcome::Nop(len),
            Self::Nop(len) => Outcome::Error(EncodeError::NopLength { len }),
            Self::Plain(form) => Outcome::Instruction(PLAIN[form].expected()),
            Self::One(form, a) => Outcome::Instruction(ONE[form].expected(a)),
            Self::Two(form, a, b) => Outcome::Instruction(TWO[form].expected(a, b)),
            Self::Arithmetic(form, a, value) => {
                Outcome::Instruction(ARITHMETIC[form].expected(a, value))
            }
            Self::Constant(form, a, value) => {
                Outcome::Instruction(CONSTANT[form].expected(a, value))
            }
            Self::Memory(_, _, Mem { index: Some((Reg::Rsp, _)), .. }) => {
                Outcome::Error(EncodeError::IndexIsRsp { at })
            }
            Self::Memory(form, number, mem) => {
                Outcome::Instruction(MEMORY[form].expected(number, mem))
            }
            Self::Near(form, distance) => {
                let form = &NEAR[form];
                let (from, to) = (at.wrapping_add(form.size), at.wrapping_add_signed(distance));
                let displacement = i128::from(distance) - i128::from(form.size);
                if i32::try_from(displacement).is_ok() {
                    Outcome::Instruction(form.expected(to))
                } else {
                    Outcome::Error(EncodeError::OutOfRange { from, to })
                }
            }
        };
        vec![one]
    }
}

fn reg() -> impl Strategy<Value = Reg> {
    proptest::sample::select(&Reg::ALL[..])
}

fn mem() -> impl Strategy<Value = Mem> {
    let disp = prop_oneof![-300..300, -9000..9000, any::<i32>()];
    let index = proptest::option::of((reg(), proptest::sample::select(&SCALES[..])));
    (reg(), index, disp).prop_map(|(base, index, disp)| Mem { base, index, disp })
}

fn call() -> impl Strategy<Value = Call> {
    let signed = || prop_oneof![-300..300, any::<i32>()];
    // Not so far that the distance from the instruction's end would pass i64::MIN.
    let distance =
        prop_oneof![-300_i64..300, -(3 << 30)..(3_i64 << 30), -i64::MAX / 2..i64::MAX / 2];
    prop_oneof![
        1 => (0..20_u8).prop_map(Call::Bytes),
        1 => (0..NOP_MAX + 2).prop_map(Call::Nop),
        1 => (0..PLAIN.len()).prop_map(Call::Plain),
        2 => (0..ONE.len(), reg()).prop_map(|(form, a)| Call::One(form, a)),
        2 => (0..TWO.len(), reg(), reg()).prop_map(|(form, a, b)| Call::Two(form, a, b)),
        2 => (0..ARITHMETIC.len(), reg(), signed())
            .prop_map(|(form, a, value)| Call::Arithmetic(form, a, value)),
        2 => (0..CONSTANT.len(), reg(), any::<u64>())
            .prop_map(|(form, a, value)| Call::Constant(form, a, value)),
        8 => (0..MEMORY.len(), 0..16_u8, mem())
            .prop_map(|(form, number, mem)| Call::Memory(form, number, mem)),
        4 => (0..NEAR.len(), distance).prop_map(|(form, distance)| Call::Near(form, distance)),
    ]
}

/// Makes the calls one after the other, whatever becomes of each, and compares the buffer
/// with those that succeeded.
fn holds_what_succeeded(address: u64, capacity: usize, calls: &[Call]) {
    let mut bytes = vec![UNTOUCHED; capacity];
    let mut code = CodeBuffer::new(&mut bytes, address);
    let mut appended = Vec::new();
    for call in calls {
        let (at, position, remaining) = (code.here(), code.position(), code.remaining());
        assert_eq!(at, address.wrapping_add(position as u64));
        let outcomes = call.outcomes(at);
        let size = |outcome: &Outcome| match outcome {
            Outcome::Instruction(expected) => expected.size,
            Outcome::Nop(len) => *len,
            Outcome::Error(_) => 0,
        };
        let needed = outcomes.iter().map(size).sum();
        let found = call.emit(&mut code);
        if let [Outcome::Error(error)] = outcomes[..] {
            assert_eq!((found, code.position()), (Err(error), position), "{call:?}");
        } else if needed > remaining {
            let error = EncodeError::Overflow { needed, remaining };
            assert_eq!((found, code.position()), (Err(error), position), "{call:?}");
        } else {
            assert_eq!((found, code.position()), (Ok(()), position + needed), "{call:?}");
            appended.extend(outcomes);
        }
    }
    let end = code.position();
    let instructions = decode(code.written(), address);
    assert_eq!(instructions.len(), appended.len());
    for (instruction, outcome) in instructions.iter().zip(&appended) {
        match outcome {
            Outcome::Instruction(expected) => compare(instruction, expected),
            Outcome::Nop(len) => {
                assert_eq!((instruction.mnemonic(), instruction.len()), (Mnemonic::Nop, *len));
            }
            Outcome::Error(error) => panic!("{error} was appended"),
        }
    }
    assert!(bytes[end..].iter().all(|&byte| byte == UNTOUCHED));
}

#[test]
fn a_buffer_holds_what_succeeded() {
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let calls = proptest::collection::vec(call(), 0..60);
    TestRunner::new_with_rng(config, rng)
        .run(&(any::<u64>(), 0..300_usize, calls), |(address, capacity, calls)| {
            holds_what_succeeded(address, capacity, &calls);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
