//! With the right hash a call arrives with all its arguments, and with a wrong one the processor
//! traps where it was meant to. Without CET the landing pads are nops.

use core::sync::atomic::Ordering;

use fentry::emit::Mitigations;
use fentry::emit::x86_64::{
    Arity, Bhi, CallDepth, Check, FINEIBT_PREFIX, Generation, Hardening, Preamble, Symbols,
    bhi_stub,
};
use fentry::encode::x86_64::{Reg, mov_imm32, ret};

use super::machine::{ARGUMENTS, CALLEE, CALLER, COUNT, STUB, SUM, set_gs_base, with_ground};
use crate::{GENERATIONS, checked, fineibt, kcfi};

const HASH: u32 = 0x8765_4321;
/// Hashes that are not the right one, near it and far from it.
const WRONG: [u32; 5] = [HASH + 1, HASH - 1, HASH ^ 1 << 31, 0, !HASH];

#[test]
fn kcfi_lets_the_right_hash_pass() {
    with_ground(|ground| {
        for padding in [0, 3, 11, 27, 59, 200] {
            for endbr64 in [false, true] {
                for arity in [None, Arity::new(6), Some(Arity::STACK)] {
                    let preamble = kcfi(HASH, arity, padding, endbr64);
                    let entry = ground.callee(&preamble, false);
                    ground.caller(&checked(preamble.check()), entry);
                    assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}");
                    for hash in WRONG {
                        let check = Check::Kcfi { hash, padding };
                        ground.caller(&checked(check), entry);
                        // The `ud2` of the caller, right before the call.
                        let long = if padding > 124 { 3 } else { 0 };
                        let ud2 = ground.at(CALLER) + 4 + 10 + 12 + long;
                        assert_eq!(ground.run(), Err(ud2), "{preamble:x?} {hash:#x}");
                    }
                }
            }
        }
    });
}

/// Where a FineIBT preamble traps, from its entry.
fn trap_of(generation: Generation, bhi: Bhi) -> i64 {
    match (generation, bhi) {
        (_, Bhi::Stub(_)) => unreachable!("stubs trap themselves"),
        (Generation::Original, Bhi::None) => -3,
        (Generation::Original | Generation::Short, _) => -10,
        (Generation::Udb, _) => 3,
    }
}

#[test]
fn fineibt_lets_the_right_hash_pass() {
    with_ground(|ground| {
        for generation in GENERATIONS {
            for bhi in [Bhi::None, Bhi::FirstArgument] {
                let preamble = fineibt(HASH, generation, bhi);
                let entry = ground.callee(&preamble, true);
                assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}, called directly");
                for paranoid in [false, true] {
                    let check = |hash| Check::FineIbt { hash, generation, paranoid };
                    ground.caller(&checked(check(HASH)), entry);
                    assert_eq!(ground.run(), Ok(SUM), "{preamble:x?} {paranoid}");
                    for hash in WRONG {
                        ground.caller(&checked(check(hash)), entry);
                        let found = ground.run();
                        let trap = if paranoid {
                            // The displacement of the caller's `lea`, behind 17 bytes.
                            ground.at(CALLER) + 4 + 10 + 13
                        } else {
                            entry.wrapping_add_signed(trap_of(generation, bhi))
                        };
                        assert_eq!(found, Err(trap), "{preamble:x?} {paranoid} {hash:#x}");
                        if !paranoid && bhi == Bhi::FirstArgument {
                            let difference = hash.wrapping_sub(HASH);
                            let first = ARGUMENTS[0].load(Ordering::Relaxed);
                            assert_eq!(first, u64::from(difference), "{preamble:x?} {hash:#x}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn stubs_take_the_arguments_away_before_they_trap() {
    with_ground(|ground| {
        for generation in GENERATIONS {
            for arguments in 0..8 {
                let arity = Arity::new(arguments).unwrap();
                let stub = ground.at(STUB);
                let end = ground.emit(STUB, |code| bhi_stub(code, generation, arity).unwrap());
                let preamble = fineibt(HASH, generation, Bhi::Stub(stub));
                let entry = ground.callee(&preamble, true);
                assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}, called directly");
                let check = |hash| Check::FineIbt { hash, generation, paranoid: false };
                ground.caller(&checked(check(HASH)), entry);
                assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}");
                for hash in WRONG {
                    ground.caller(&checked(check(hash)), entry);
                    // The `ud2` that the stub ends with.
                    assert_eq!(ground.run(), Err(ground.at(end) - 2), "{preamble:x?} {hash:#x}");
                }
            }
        }
    });
}

#[test]
fn a_paranoid_caller_wants_more_than_a_landing_pad() {
    with_ground(|ground| {
        for generation in [Generation::Short, Generation::Udb] {
            // Sixteen bytes before the entry is something else that may be branched to.
            let entry = ground.callee(&Preamble::Endbr64, false);
            ground.emit(CALLEE + 0x180 - u64::from(FINEIBT_PREFIX), |code| {
                Preamble::Endbr64.emit(code).unwrap();
                mov_imm32(code, Reg::Rax, 5).unwrap();
                ret(code).unwrap();
            });
            let check = |paranoid| Check::FineIbt { hash: HASH, generation, paranoid };
            ground.caller(&checked(check(false)), entry);
            assert_eq!(ground.run(), Ok(5), "{generation:?}");
            ground.caller(&checked(check(true)), entry);
            assert_eq!(ground.run(), Err(ground.at(CALLER) + 4 + 10 + 13), "{generation:?}");
        }
    });
}

#[test]
fn a_call_arrives_under_every_set_of_mitigations() {
    with_ground(|ground| {
        let [indirect_thunk, return_thunk] = ground.thunks();
        let count = ground.at(COUNT) as *mut i64;
        for generation in GENERATIONS {
            let preamble = fineibt(HASH, generation, Bhi::None);
            let entry = ground.callee(&preamble, false);
            for bits in 0..Mitigations::SIGNED_RETURNS.bits() {
                let set = Mitigations::from_bits_retain(bits);
                for depth in [CallDepth::RipRelative(ground.at(0x800)), CallDepth::Absolute(-64)] {
                    let symbols = Symbols {
                        indirect_thunk: Some(indirect_thunk),
                        return_thunk: Some(return_thunk),
                        call_depth: Some(depth),
                        check: preamble.check(),
                    };
                    let Ok(hardening) = Hardening::new(set, symbols) else { continue };
                    // Without a check the call goes to the entry, as a direct one does.
                    ground.caller(&hardening, entry);
                    set_gs_base(match depth {
                        CallDepth::RipRelative(variable) => count as u64 - variable,
                        CallDepth::Absolute(offset) => {
                            (count as u64).wrapping_add_signed(-i64::from(offset))
                        }
                    });
                    // SAFETY: a word of the mapping's second page.
                    unsafe { count.write(i64::MIN) };
                    assert_eq!(ground.run(), Ok(SUM), "{set:?} {depth:x?} {generation:?}");
                    let expected = if set.contains(Mitigations::CALL_DEPTH) {
                        i64::MIN >> 5
                    } else {
                        i64::MIN
                    };
                    // SAFETY: as above.
                    assert_eq!(unsafe { count.read() }, expected, "{set:?} {depth:x?}");
                }
            }
        }
        set_gs_base(0);
    });
}
