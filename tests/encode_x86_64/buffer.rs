//! The code buffer by itself, and what its errors say.

use fentry::encode::x86_64 as x;
use fentry::encode::{CodeBuffer, EncodeError};

#[test]
fn bytes_go_where_the_last_ones_ended() {
    let mut bytes = [0xa5; 4];
    let mut code = CodeBuffer::new(&mut bytes, 0x1000);
    assert_eq!((code.position(), code.remaining(), code.here()), (0, 4, 0x1000));
    assert_eq!(code.written(), []);
    assert_eq!(code.bytes(&[1, 2]), Ok(()));
    assert_eq!((code.position(), code.remaining(), code.here()), (2, 2, 0x1002));
    assert_eq!(code.bytes(&[]), Ok(()));
    assert_eq!(code.bytes(&[3]), Ok(()));
    assert_eq!(code.written(), [1, 2, 3]);
    assert_eq!(bytes, [1, 2, 3, 0xa5]);
}

#[test]
fn what_does_not_fit_leaves_everything_as_it_was() {
    for capacity in 0..8 {
        for already in 0..=capacity {
            let mut bytes = [0xa5; 8];
            let mut code = CodeBuffer::new(&mut bytes[..capacity], 0x1000);
            code.bytes(&[1; 8][..already]).expect("it fits");
            let remaining = capacity - already;
            for needed in remaining + 1..=9 {
                let error = EncodeError::Overflow { needed, remaining };
                assert_eq!(code.bytes(&[2; 9][..needed]), Err(error));
                assert_eq!((code.position(), code.remaining()), (already, remaining));
            }
            assert_eq!(code.bytes(&[3; 8][..remaining]), Ok(()), "what fits still fits");
            assert_eq!((code.position(), code.remaining()), (capacity, 0));
            assert_eq!(code.bytes(&[]), Ok(()), "nothing fits into a full buffer");
            assert!(bytes[..already].iter().all(|&byte| byte == 1));
            assert!(bytes[already..capacity].iter().all(|&byte| byte == 3));
            assert!(bytes[capacity..].iter().all(|&byte| byte == 0xa5));
        }
    }
}

#[test]
fn addresses_go_on_at_zero() {
    let mut bytes = [0; 4];
    let mut code = CodeBuffer::new(&mut bytes, u64::MAX - 1);
    assert_eq!(code.bytes(&[0; 3]), Ok(()));
    assert_eq!(code.here(), 1);
}

#[test]
fn errors_say_what_was_found_and_what_to_do() {
    let says = |error: EncodeError, words: &[&str]| {
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} does not say {word:?}");
        }
    };
    says(EncodeError::Overflow { needed: 7, remaining: 3 }, &["7 bytes", "the 3", "larger"]);
    says(
        EncodeError::OutOfRange { from: 0x1_0000_1000, to: 0x1000 },
        &["0x1000", "0x100001000", "-4294967296 bytes", "emit the image within 2 GiB of 0x1000"],
    );
    says(
        EncodeError::OutOfShortRange { from: 0x1000, to: 0x1080 },
        &["0x1080", "0x1000", "128 bytes", "use a near jump"],
    );
    says(EncodeError::IndexIsRsp { at: 0x1234 }, &["0x1234", "rsp", "another register"]);
    says(EncodeError::NopLength { len: 10 }, &["10 bytes", "1 to 9"]);
}

#[test]
fn a_target_out_of_range_is_reported_before_a_buffer_that_is_full() {
    let mut code = CodeBuffer::new(&mut [], 0);
    let (from, to) = (5, 1 << 40);
    assert_eq!(x::call(&mut code, to), Err(EncodeError::OutOfRange { from, to }));
}
