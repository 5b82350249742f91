//! Preambles, checks and branches byte for byte as clang makes them.

use fentry::emit::aarch64::{Check, Hardening, LandingPad, Preamble};
use fentry::emit::kcfi::type_hash;
use fentry::emit::{EmitError, HardeningError, Mitigations};
use fentry::encode::EncodeError;

use super::{hardenings, preamble};
use crate::clang::{clang, compile, occurrences};
use crate::emitted;

/// A call at the end, so that clang jumps: with tracked branches, through `x16`.
const SOURCE: &str = "
    long callee(long a) { return a + 1; }
    long caller(long (*f)(long)) { return f(1); }
    long keeper(long (*f)(long)) { return f(1) + 2; }
";

#[test]
fn preambles_and_checks_are_clangs() {
    let Some(clang) = clang("aarch64 preambles_and_checks_are_clangs") else { return };
    let hash = type_hash("_ZTSFllE");
    for nops in [0, 1, 2, 4, 63] {
        for (protection, landing_pad) in
            [("none", LandingPad::None), ("bti", LandingPad::Bti), ("pac-ret", LandingPad::None)]
        {
            let prefix = format!("-fpatchable-function-entry={nops},{nops}");
            let protection = format!("-mbranch-protection={protection}");
            let flags =
                ["--target=aarch64-linux-gnu", "-fsanitize=kcfi", "-c", &prefix, &protection];
            let object = compile(clang, "aarch64", SOURCE, "c", &flags);
            let (bytes, _) = emitted(0, |code| preamble(hash, nops, landing_pad).emit(code));
            // The callee alone has this type.
            assert_eq!(occurrences(&object, &bytes), 1, "{nops} {landing_pad:?}");
            if landing_pad == LandingPad::Bti {
                let check = Check::Kcfi { hash, nops };
                let hardening = Hardening::new(Mitigations::CFI, check).unwrap();
                let (bytes, ()) = emitted(0, |code| hardening.emit_indirect_jump(code));
                assert_eq!(occurrences(&object, &bytes), 1, "{nops}");
            }
        }
    }
}

#[test]
fn stops_and_signatures_are_clangs() {
    let Some(clang) = clang("aarch64 stops_and_signatures_are_clangs") else { return };
    let flags = [
        "--target=aarch64-linux-gnu",
        "-c",
        "-march=armv8-a",
        "-mharden-sls=retbr",
        "-mbranch-protection=standard",
    ];
    let object = compile(clang, "aarch64-sls", SOURCE, "c", &flags);
    let set = Mitigations::SLS | Mitigations::SIGNED_RETURNS;
    let hardening = Hardening::new(set, Check::None).unwrap();
    let (jump, ()) = emitted(0, |code| hardening.emit_indirect_jump(code));
    assert_eq!(occurrences(&object, &jump), 1);
    let (sign, ()) = emitted(0, |code| hardening.emit_sign(code));
    // Only `keeper` has a frame.
    assert_eq!(occurrences(&object, &sign), 1);
    let (leave, ()) = emitted(0, |code| hardening.emit_return(code));
    assert_eq!(occurrences(&object, &leave), 1);
    // The return of `callee`, which signs nothing.
    assert_eq!(occurrences(&object, &leave[4..]), 2);
}

#[test]
fn what_arm64_has_not_is_refused() {
    for set in [
        Mitigations::RETPOLINE,
        Mitigations::RETURN_THUNK,
        Mitigations::LFENCE,
        Mitigations::ITS,
        Mitigations::CALL_DEPTH,
    ] {
        let error = HardeningError::OtherArchitecture { mitigations: set };
        assert_eq!(Hardening::new(set | Mitigations::SLS, Check::None), Err(error));
    }
    let error = HardeningError::Untold { mitigations: Mitigations::CFI };
    assert_eq!(Hardening::new(Mitigations::CFI, Check::None), Err(error));
    assert_eq!(hardenings(Check::None).len(), 4);
    assert_eq!(hardenings(Check::Kcfi { hash: 1, nops: 0 }).len(), 8);
}

#[test]
fn a_hash_out_of_a_checks_reach_is_refused() {
    let emit = |nops| {
        let mut bytes = [0; 64];
        let mut code = fentry::encode::CodeBuffer::new(&mut bytes, 0);
        Check::Kcfi { hash: 1, nops }.emit(&mut code)
    };
    assert_eq!(emit(63), Ok(()));
    let error = EncodeError::Immediate { value: -260, min: -256, max: 255, step: 1 };
    assert_eq!(emit(64), Err(EmitError::Encode(error)));
    assert_eq!(Preamble { hash: None, nops: 0, landing_pad: LandingPad::Bti }.check(), Check::None);
}
