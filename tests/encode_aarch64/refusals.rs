//! What an encoding cannot hold is refused, with what it can hold, and nothing is appended.

use fentry::encode::aarch64::{self as a, Base, Condition, Index, Reg, Vector};
use fentry::encode::{CodeBuffer, EncodeError};

use crate::cases::AT;

#[track_caller]
fn refuses(error: EncodeError, emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<(), EncodeError>) {
    let mut bytes = [0xa5; 16];
    let mut code = CodeBuffer::new(&mut bytes, AT);
    assert_eq!(emit(&mut code), Err(error));
    assert_eq!(code.position(), 0);
    assert_eq!(bytes, [0xa5; 16]);
}

#[test]
fn branches_say_how_far_they_reach() {
    let far = |to: u64, reach, step| EncodeError::OutOfReach { from: AT, to, reach, step };
    for distance in [0x800_0000, -0x800_0004, 2, -1, i64::MAX, i64::MIN] {
        let to = AT.wrapping_add_signed(distance);
        refuses(far(to, 0x800_0000, 4), |code| a::b(code, to));
        refuses(far(to, 0x800_0000, 4), |code| a::bl(code, to));
        assert_eq!(a::b_bytes(AT, to), Err(far(to, 0x800_0000, 4)));
        assert_eq!(a::bl_bytes(AT, to), Err(far(to, 0x800_0000, 4)));
    }
    for distance in [0x10_0000, -0x10_0004, 2, -1, i64::MAX, i64::MIN] {
        let to = AT.wrapping_add_signed(distance);
        refuses(far(to, 0x10_0000, 4), |code| a::b_cond(code, Condition::Equal, to));
        refuses(far(to, 0x10_0000, 4), |code| a::cbz(code, Reg::X1, to));
        refuses(far(to, 0x10_0000, 4), |code| a::cbnz(code, Reg::X1, to));
        refuses(far(to, 0x10_0000, 4), |code| a::ldr_literal(code, Reg::X1, to));
    }
    for distance in [0x10_0000, -0x10_0001] {
        let to = AT.wrapping_add_signed(distance);
        refuses(far(to, 0x10_0000, 1), |code| a::adr(code, Reg::X1, to));
    }
    for distance in [0x1_0000_0000, -0x1_0000_1000] {
        let to = AT.wrapping_add_signed(distance);
        refuses(far(to, 0x1_0000_0000, 4096), |code| a::adrp(code, Reg::X1, to));
    }
}

#[test]
fn immediates_say_what_they_hold() {
    let held = |value, min, max, step| EncodeError::Immediate { value, min, max, step };
    let base = Base::Sp;
    refuses(held(4, 0, 3, 1), |code| a::movz(code, Reg::X0, 1, 4));
    refuses(held(4, 0, 3, 1), |code| a::movk(code, Reg::X0, 1, 4));
    refuses(held(2, 0, 1, 1), |code| a::movk32(code, Reg::X0, 1, 2));
    refuses(held(128, 0, 127, 1), |code| a::hint(code, 128));
    refuses(held(64, 0, 63, 1), |code| a::add_reg(code, Reg::X0, Reg::X1, Reg::X2, 64));
    refuses(held(64, 0, 63, 1), |code| a::sub_reg(code, Reg::X0, Reg::X1, Reg::X2, 64));
    for value in [0x1001, 0xfff001, 0x100_0000] {
        let error = held(i64::from(value), 0, 0xfff000, 0x1000);
        refuses(error, |code| a::add_imm(code, base, base, value));
        refuses(error, |code| a::sub_imm(code, base, base, value));
        refuses(error, |code| a::cmp_imm(code, base, value));
    }
    for offset in [4, 32768, u32::MAX] {
        let error = held(i64::from(offset), 0, 32760, 8);
        refuses(error, |code| a::ldr(code, Reg::X0, base, offset));
        refuses(error, |code| a::str(code, Reg::X0, base, offset));
    }
    for offset in [2, 16384] {
        let error = held(i64::from(offset), 0, 16380, 4);
        refuses(error, |code| a::ldr32(code, Reg::X0, base, offset));
        refuses(error, |code| a::str32(code, Reg::X0, base, offset));
    }
    for offset in [256, -257, i32::MIN] {
        let error = held(i64::from(offset), -256, 255, 1);
        refuses(error, |code| a::ldur(code, Reg::X0, base, offset));
        refuses(error, |code| a::stur(code, Reg::X0, base, offset));
        refuses(error, |code| a::ldur32(code, Reg::X0, base, offset));
        refuses(error, |code| a::stur32(code, Reg::X0, base, offset));
        refuses(error, |code| a::ldr_index(code, Reg::X0, base, offset, Index::Pre));
        refuses(error, |code| a::str_index(code, Reg::X0, base, offset, Index::Post));
    }
    for offset in [512, -520, 4] {
        let error = held(i64::from(offset), -512, 504, 8);
        refuses(error, |code| a::ldp(code, (Reg::X0, Reg::X1), base, offset, Index::Offset));
        refuses(error, |code| a::stp(code, (Reg::X0, Reg::X1), base, offset, Index::Pre));
    }
    let vectors = (Vector::new(0).unwrap(), Vector::new(1).unwrap());
    for offset in [1024, -1040, 8] {
        let error = held(i64::from(offset), -1024, 1008, 16);
        refuses(error, |code| a::ldp_vectors(code, vectors, base, offset, Index::Offset));
        refuses(error, |code| a::stp_vectors(code, vectors, base, offset, Index::Post));
    }
    assert_eq!(Vector::new(32), None);
}

#[test]
fn a_register_that_is_changed_twice_is_refused() {
    let error = EncodeError::Unpredictable { at: AT };
    let base = Base::Reg(Reg::X3);
    for index in [Index::Pre, Index::Post] {
        refuses(error, |code| a::ldr_index(code, Reg::X3, base, 8, index));
        refuses(error, |code| a::str_index(code, Reg::X3, base, 8, index));
        refuses(error, |code| a::ldp(code, (Reg::X3, Reg::X4), base, 16, index));
        refuses(error, |code| a::stp(code, (Reg::X4, Reg::X3), base, 16, index));
    }
    let vector = Vector::new(4).unwrap();
    for index in [Index::Offset, Index::Pre, Index::Post] {
        refuses(error, |code| a::ldp(code, (Reg::X4, Reg::X4), base, 16, index));
        refuses(error, |code| a::ldp_vectors(code, (vector, vector), base, 16, index));
    }
    // Stored twice, and a base that stays: defined.
    let mut bytes = [0; 8];
    let mut code = CodeBuffer::new(&mut bytes, AT);
    a::stp(&mut code, (Reg::X4, Reg::X4), base, 16, Index::Pre).unwrap();
    a::ldp(&mut code, (Reg::X3, Reg::X4), base, 16, Index::Offset).unwrap();
}

#[test]
fn a_buffer_that_is_too_small_stays_as_it_was() {
    let mut bytes = [0xa5; 3];
    for remaining in 0..4 {
        let mut code = CodeBuffer::new(&mut bytes[..remaining], AT);
        let error = EncodeError::Overflow { needed: 4, remaining };
        assert_eq!(a::nop(&mut code), Err(error));
        assert_eq!(a::ret(&mut code, Reg::LR), Err(error));
        assert_eq!(a::b(&mut code, AT), Err(error));
        assert_eq!(code.position(), 0);
    }
    assert_eq!(bytes, [0xa5; 3]);
}

#[test]
fn constants_take_as_few_instructions_as_they_can() {
    for (value, expected) in [
        (0, vec![0xd280_0005]),
        (7, vec![0xd280_00e5]),
        (0x7_0000, vec![0xd2a0_00e5]),
        (0x7_0000_0000_0000, vec![0xd2e0_00e5]),
        (0x1234_0000_5678, vec![0xd28a_cf05, 0xf2c2_4685]),
        (u64::MAX, vec![0xd29f_ffe5, 0xf2bf_ffe5, 0xf2df_ffe5, 0xf2ff_ffe5]),
    ] {
        let mut bytes = [0; 16];
        let mut code = CodeBuffer::new(&mut bytes, AT);
        a::mov_imm64(&mut code, Reg::X5, value).unwrap();
        let words: Vec<u32> = code
            .written()
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .collect();
        assert_eq!(words, expected, "{value:#x}");
    }
}
