//! Reading and replacing the hash in a preamble, and the kernel's way of changing it.

use fentry::emit::kcfi::{rehash, without_landing_pad};
use fentry::emit::x86_64::{Bhi, Generation, HashPlace, Preamble, PreambleError};
use fentry::layout::Byte;
use proptest::prelude::*;

use crate::{GENERATIONS, emitted, fineibt, kcfi};

const ENDBR64: u32 = u32::from_le_bytes([0xf3, 0x0f, 0x1e, 0xfa]);
const ENDBR32: u32 = u32::from_le_bytes([0xf3, 0x0f, 0x1e, 0xfb]);
const NOP4_UDB: u32 = u32::from_le_bytes([0x0f, 0x1f, 0x40, 0xd6]);

/// Every kind of preamble that has `hash`.
fn preambles(hash: u32) -> Vec<Preamble> {
    let mut all: Vec<Preamble> =
        [0, 3, 11, 27, 59, 255].map(|padding| kcfi(hash, None, padding, false)).into();
    for generation in GENERATIONS {
        for bhi in [Bhi::None, Bhi::FirstArgument, Bhi::Stub(0x41_0000)] {
            all.push(fineibt(hash, generation, bhi));
        }
    }
    all
}

/// The bytes of `preamble` up to its entry.
fn before_entry(preamble: &Preamble) -> Vec<u8> {
    let (mut bytes, _) = emitted(0x40_0000, |code| preamble.emit(code));
    bytes.truncate(usize::from(preamble.before_entry()));
    bytes
}

proptest! {
    #[test]
    fn a_replaced_hash_is_what_would_have_been_emitted(old: u32, new: u32, more in 0_usize..9) {
        let [old, new] = [old, new].map(without_landing_pad);
        for (old_one, new_one) in preambles(old).iter().zip(preambles(new)) {
            let place = old_one.hash_place().unwrap();
            // What stands before the preamble is none of its business.
            let mut bytes = vec![0xcc; more];
            bytes.extend(before_entry(old_one));
            prop_assert_eq!(place.read(&bytes), Ok(old));
            prop_assert_eq!(place.replace(&mut bytes, new), Ok(old));
            prop_assert_eq!(&bytes[more..], &before_entry(&new_one)[..]);
            prop_assert_eq!(bytes[..more].to_vec(), vec![0xcc; more]);
            let hash = bytes.len() - usize::from(place.to_entry());
            prop_assert_eq!(&bytes[hash..hash + 4], &new.to_le_bytes()[..]);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        for preamble in preambles(0) {
            let place = preamble.hash_place().unwrap();
            let mut copy = bytes.clone();
            match place.replace(&mut copy, 0x1234_5678) {
                Ok(old) => prop_assert_eq!(place.read(&bytes), Ok(old)),
                Err(error) => {
                    prop_assert_eq!(&copy, &bytes);
                    prop_assert_eq!(place.read(&bytes), Err(error));
                }
            }
        }
    }
}

#[test]
fn what_is_no_preamble_is_refused_by_name() {
    let mut bytes = before_entry(&fineibt(7, Generation::Original, Bhi::None));
    let place = HashPlace::FineIbt(Generation::Original);
    assert_eq!(place.read(&bytes[1..]), Err(PreambleError::TooShort { found: 15, expected: 16 }));
    // The same bytes are no preamble of the generation that has the hash elsewhere.
    let error = PreambleError::OtherByte { before_entry: 12, found: 0x41, expected: 0x2d };
    assert_eq!(HashPlace::FineIbt(Generation::Udb).read(&bytes), Err(error));
    assert_eq!(
        error.to_string(),
        "12 bytes before the entry stands 0x41, and in a preamble of this kind 0x2d; ask the \
         kernel or the compiler which kind it makes"
    );
    let kcfi = HashPlace::Kcfi { padding: 0 };
    assert_eq!(
        kcfi.read(&[0xb7, 0, 0, 0, 0]).unwrap_err(),
        PreambleError::OtherByte { before_entry: 5, found: 0xb7, expected: 0xb8 }
    );
    assert!(kcfi.read(&[0xc0, 0, 0, 0, 0]).is_err());
    for opcode in 0xb8..=0xbf {
        assert_eq!(kcfi.read(&[opcode, 1, 2, 0, 0]), Ok(0x201), "{opcode:#x}");
    }
    let before = bytes.clone();
    for hash in [ENDBR64, ENDBR32, ENDBR64.wrapping_neg(), ENDBR32.wrapping_neg()] {
        assert_eq!(place.replace(&mut bytes, hash), Err(PreambleError::LandingPad { hash }));
    }
    assert_eq!(bytes, before);
}

#[test]
fn what_is_emitted_is_what_is_detected() {
    use fentry::layout::FineIbt as Known;
    const STUB: Bhi = Bhi::Stub(0x41_0000);
    for (generation, bhi, known) in [
        (Generation::Original, Bhi::None, Known::ORIGINAL),
        (Generation::Original, Bhi::FirstArgument, Known::SHORT_BHI_1),
        (Generation::Original, STUB, Known::SHORT_BHI),
        (Generation::Short, Bhi::None, Known::SHORT),
        (Generation::Short, Bhi::FirstArgument, Known::SHORT_BHI_1),
        (Generation::Short, STUB, Known::SHORT_BHI),
        (Generation::Udb, Bhi::None, Known::UDB),
        (Generation::Udb, Bhi::FirstArgument, Known::UDB_BHI_1),
        (Generation::Udb, STUB, Known::UDB_BHI),
    ] {
        let (bytes, _) =
            emitted(0x40_0000, |code| fineibt(0x1234_5678, generation, bhi).emit(code));
        let admitted = |form: &[Byte; 20]| {
            form.iter().zip(&bytes).all(|(allowed, &byte)| allowed.admits(byte))
        };
        let which: Vec<_> =
            Known::ALL.iter().filter(|known| known.forms().iter().any(admitted)).collect();
        assert_eq!(which, [&known], "{generation:?} {bhi:?}");
        let to_entry = i32::from(HashPlace::FineIbt(generation).to_entry());
        assert_eq!(known.hash(), -to_entry);
    }
}

#[test]
fn a_hash_that_would_be_a_landing_pad_is_never_emitted() {
    for pad in [ENDBR64, ENDBR32] {
        for hash in [pad, pad.wrapping_neg()] {
            for preamble in preambles(hash) {
                let (bytes, _) = emitted(0x40_0000, |code| preamble.emit(code));
                // The one of FineIBT is where it begins.
                let pads = bytes.windows(4).skip(1).filter(|word| *word == pad.to_le_bytes());
                assert_eq!(pads.count(), 0, "{preamble:x?}");
                let (bytes, ()) = emitted(0x40_0000, |code| preamble.check().emit(code));
                let pads = bytes.windows(4).filter(|word| *word == pad.to_le_bytes());
                assert_eq!(pads.count(), 0, "{preamble:x?}");
                // Caller and callee agree on what takes its place.
                let place = preamble.hash_place().unwrap();
                assert_eq!(place.read(&before_entry(&preamble)), Ok(hash.wrapping_add(1)));
            }
        }
    }
}

#[test]
fn rehashing_steps_over_landing_pads() {
    assert_eq!(rehash(0x1234_5678, 0xffff_0000), 0xedcb_5678);
    for pad in [ENDBR64, ENDBR32, NOP4_UDB] {
        for avoided in [pad, pad.wrapping_neg()] {
            let seed = 0x5555_5555;
            let found = rehash(avoided ^ seed, seed);
            // One step of the register by hand.
            let mut expected = avoided >> 1;
            if avoided & 1 == 1 {
                expected ^= 0x8020_0003;
            }
            assert_eq!(found, expected, "{avoided:#x}");
        }
    }
}
