//! Calls of functions with preambles, in an emulator that tracks branches and signs addresses.

use fentry::emit::Mitigations;
use fentry::emit::aarch64::{Check, Hardening, LandingPad, TARGET};
use fentry::encode::CodeBuffer;
use fentry::encode::aarch64::{Base, Index, Reg, add_imm, ldp, mov_imm64, nop, stp};

use super::emulator::{End, emulator, exit, run, track_branches};
use super::{LANDING_PADS, hardenings, preamble};

const HASH: u32 = 0x8765_4321;
const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGSEGV: i32 = 11;

/// What a callee adds to its argument.
const ADDED: u32 = 40;

/// A program that calls, through [`TARGET`] and with `hardening`, a function behind `preamble`,
/// `past` bytes behind its entry; it ends with 2 and what the callee adds.
fn calls(
    code: &mut CodeBuffer<'_>,
    hardening: &Hardening,
    callee: &fentry::emit::aarch64::Preamble,
    past: u64,
) {
    let start = code.here();
    // The callee stands far enough behind for whatever the caller takes.
    let before = start + 0x400;
    let entry = before + u64::from(callee.before_entry());
    track_branches(code);
    mov_imm64(code, Reg::X0, 2).unwrap();
    mov_imm64(code, TARGET, entry + past).unwrap();
    hardening.emit_indirect_call(code).unwrap();
    exit(code);
    while code.here() < before {
        nop(code).unwrap();
    }
    assert_eq!(callee.emit(code).unwrap(), entry);
    let frame = Hardening::new(
        hardening.mitigations() & (Mitigations::SLS | Mitigations::SIGNED_RETURNS),
        Check::None,
    )
    .unwrap();
    if callee.landing_pad != LandingPad::Paciasp {
        frame.emit_sign(code).unwrap();
    }
    let pair = (Reg::FP, Reg::LR);
    stp(code, pair, Base::Sp, -16, Index::Pre).unwrap();
    add_imm(code, Base::Reg(Reg::X0), Base::Reg(Reg::X0), ADDED).unwrap();
    ldp(code, pair, Base::Sp, 16, Index::Post).unwrap();
    if callee.landing_pad == LandingPad::Paciasp {
        let signed = Hardening::new(Mitigations::SIGNED_RETURNS, Check::None).unwrap();
        signed.emit_return(code).unwrap();
    } else {
        frame.emit_return(code).unwrap();
    }
}

#[test]
fn the_right_hash_passes_and_a_wrong_one_traps() {
    let Some(emulator) = emulator("aarch64 the_right_hash_passes_and_a_wrong_one_traps") else {
        return;
    };
    let passed = End::Exit(2 + ADDED as i32);
    for nops in [0, 2, 63] {
        for landing_pad in [LandingPad::Bti, LandingPad::Paciasp] {
            let callee = preamble(HASH, nops, landing_pad);
            for hardening in hardenings(callee.check()) {
                let end = run(emulator, "right", |code| calls(code, &hardening, &callee, 0));
                assert_eq!(end, passed, "{hardening:?} {callee:x?}");
            }
            for hash in [HASH + 1, HASH ^ 1 << 31, HASH ^ 1 << 15, 0] {
                let check = Check::Kcfi { hash, nops };
                let hardening = Hardening::new(Mitigations::CFI, check).unwrap();
                let end = run(emulator, "wrong", |code| calls(code, &hardening, &callee, 0));
                assert_eq!(end, End::Signal(SIGTRAP), "{hash:#x} {callee:x?}");
            }
        }
    }
}

#[test]
fn branches_land_on_landing_pads_only() {
    let Some(emulator) = emulator("aarch64 branches_land_on_landing_pads_only") else { return };
    for landing_pad in LANDING_PADS {
        let callee = preamble(HASH, 0, landing_pad);
        let end = |past| run(emulator, "pads", |code| calls(code, &Hardening::NONE, &callee, past));
        if landing_pad == LandingPad::None {
            assert_eq!(end(0), End::Signal(SIGILL), "no landing pad");
        } else {
            assert_eq!(end(0), End::Exit(2 + ADDED as i32), "{landing_pad:?}");
            assert_eq!(end(4), End::Signal(SIGILL), "past {landing_pad:?}");
        }
    }
}

#[test]
fn a_jump_arrives_where_a_call_may() {
    let Some(emulator) = emulator("aarch64 a_jump_arrives_where_a_call_may") else { return };
    let callee = preamble(HASH, 2, LandingPad::Bti);
    for hardening in hardenings(callee.check()) {
        let end = run(emulator, "jump", |code| {
            let start = code.here();
            track_branches(code);
            mov_imm64(code, Reg::X0, 2).unwrap();
            mov_imm64(code, TARGET, start + 0x200 + 12).unwrap();
            hardening.emit_indirect_jump(code).unwrap();
            while code.here() < start + 0x200 {
                nop(code).unwrap();
            }
            callee.emit(code).unwrap();
            exit(code);
        });
        assert_eq!(end, End::Exit(2), "{hardening:?}");
    }
}

#[test]
fn a_return_address_that_was_changed_is_noticed() {
    let Some(emulator) = emulator("aarch64 a_return_address_that_was_changed_is_noticed") else {
        return;
    };
    // A frame whose return address is overwritten while it is in memory.
    let overwritten = |code: &mut CodeBuffer<'_>, hardening: &Hardening| {
        let start = code.here();
        hardening.emit_call(code, start + 0x40).unwrap();
        mov_imm64(code, Reg::X0, 1).unwrap();
        exit(code);
        while code.here() < start + 0x40 {
            nop(code).unwrap();
        }
        let pair = (Reg::FP, Reg::LR);
        hardening.emit_sign(code).unwrap();
        stp(code, pair, Base::Sp, -16, Index::Pre).unwrap();
        mov_imm64(code, Reg::X9, start + 0x80).unwrap();
        stp(code, (Reg::FP, Reg::X9), Base::Sp, 0, Index::Offset).unwrap();
        ldp(code, pair, Base::Sp, 16, Index::Post).unwrap();
        hardening.emit_return(code).unwrap();
        while code.here() < start + 0x80 {
            nop(code).unwrap();
        }
        mov_imm64(code, Reg::X0, 7).unwrap();
        exit(code);
    };
    let end = run(emulator, "unsigned", |code| overwritten(code, &Hardening::NONE));
    assert_eq!(end, End::Exit(7), "not signed: it returns to where it was told");
    let signed = Hardening::new(Mitigations::SIGNED_RETURNS, Check::None).unwrap();
    let end = run(emulator, "signed", |code| overwritten(code, &signed));
    assert!(
        [End::Signal(SIGSEGV), End::Signal(SIGILL)].contains(&end),
        "signed: the address is no address, or the check itself traps: {end:?}"
    );
}
