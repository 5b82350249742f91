//! Functions of registers and immediates, and of no operand.

use fentry::encode::x86_64::{Condition, Reg, Vector};
use iced_x86::Register;

use crate::check::{decodes_to, overflows};
use crate::forms::{ARITHMETIC, CONSTANT, ONE, PLAIN, TWO, register};

const ADDRESS: u64 = 0xffff_ffff_8100_0000;

/// `value` and its neighbours.
fn around(value: u64) -> [u64; 3] {
    [value.wrapping_sub(1), value, value.wrapping_add(1)]
}

/// The neighbourhood of zero, of every power of two, and of its negative.
pub fn values() -> impl Iterator<Item = u64> {
    let powers = (0..64).map(|bit| 1_u64 << bit);
    powers.flat_map(|power| [power, power.wrapping_neg()]).chain([0]).flat_map(around)
}

/// Those of [`values`] that have 32 bits with a sign, and every one of at most nine bits.
pub fn signed_values() -> impl Iterator<Item = i32> {
    let boundaries = values().filter_map(|value| i32::try_from(value.cast_signed()).ok());
    boundaries.chain(-300..=300)
}

#[test]
fn registers_have_the_names_of_their_numbers() {
    for (number, reg) in (0..).zip(Reg::ALL) {
        assert_eq!(reg.number(), number);
        let name = format!("{:?}", register(Register::RAX, number));
        assert_eq!(format!("{reg:?}").to_uppercase(), name);
    }
    for number in 0..16 {
        assert_eq!(Vector::new(number).map(Vector::number), Some(number));
    }
    for number in 16..=u8::MAX {
        assert_eq!(Vector::new(number), None);
    }
}

#[test]
fn conditions_are_numbered_in_order() {
    for (number, condition) in (0_u8..).zip(Condition::ALL) {
        assert_eq!(condition as u8, number);
    }
}

#[test]
fn no_operand() {
    for form in &PLAIN {
        decodes_to(ADDRESS, &form.expected(), form.emit);
        overflows(ADDRESS, form.size, form.emit);
    }
}

#[test]
fn one_register() {
    for form in &ONE {
        for a in Reg::ALL {
            let expected = form.expected(a);
            decodes_to(ADDRESS, &expected, |code| (form.emit)(code, a));
            overflows(ADDRESS, expected.size, |code| (form.emit)(code, a));
        }
    }
}

#[test]
fn two_registers() {
    for form in &TWO {
        for a in Reg::ALL {
            for b in Reg::ALL {
                let expected = form.expected(a, b);
                decodes_to(ADDRESS, &expected, |code| (form.emit)(code, a, b));
                overflows(ADDRESS, expected.size, |code| (form.emit)(code, a, b));
            }
        }
    }
}

#[test]
fn arithmetic_with_an_immediate() {
    for form in &ARITHMETIC {
        for a in Reg::ALL {
            for value in signed_values() {
                let expected = form.expected(a, value);
                decodes_to(ADDRESS, &expected, |code| (form.emit)(code, a, value));
                overflows(ADDRESS, expected.size, |code| (form.emit)(code, a, value));
            }
        }
    }
}

#[test]
fn constants() {
    for form in &CONSTANT {
        for a in Reg::ALL {
            for value in values() {
                let expected = form.expected(a, value);
                decodes_to(ADDRESS, &expected, |code| (form.emit)(code, a, value));
                overflows(ADDRESS, expected.size, |code| (form.emit)(code, a, value));
            }
        }
    }
}
