//! What holds for every image with mitigations: every path is still balanced, and every branch
//! is one that they allow.

use std::collections::BTreeSet;

use fentry::emit::x86_64::{
    CallDepth, Check, EntryBody, Generation, HARDENED_REPLACEMENT_SIZE, Hardening, MakeSideStack,
    SideStackPlace, Symbols, THUNK_JUMP, THUNK_SIZE, entry_thunk, entry_thunk_hardened,
    is_thunk_place, replacement_hardened,
};
use fentry::emit::{EmitError, IndexFrom, Mitigations, Vectors};
use fentry::encode::CodeBuffer;
use iced_x86::Mnemonic;

use crate::branches::branches;
use crate::case::{Case, Form, walk_entry_body};
use crate::jumps::is_replacement;
use crate::paths::Walk;
use crate::walk::{IMAGE, SIDE_STACK, framed, modify, programs, walk};

const RETURN_THUNK: u64 = 0x5400_0000;
const INDIRECT_THUNK: u64 = 0x5400_0100;
const COUNT: u64 = 0x5400_0200;
const HASH: u32 = 0x1234_5678;

/// Every set of mitigations that fits together, each with every check where it has one.
fn each_hardening(mut each: impl FnMut(&Hardening, Check)) {
    let checks = [
        Check::Kcfi { hash: HASH, padding: 11 },
        Check::FineIbt { hash: HASH, generation: Generation::Original, paranoid: false },
        Check::FineIbt { hash: HASH, generation: Generation::Udb, paranoid: true },
    ];
    for bits in 0..=Mitigations::all().bits() {
        let mitigations = Mitigations::from_bits_retain(bits);
        let checks =
            if mitigations.contains(Mitigations::CFI) { &checks[..] } else { &[Check::None] };
        for &check in checks {
            let symbols = Symbols {
                indirect_thunk: Some(INDIRECT_THUNK),
                return_thunk: Some(RETURN_THUNK),
                call_depth: Some(CallDepth::RipRelative(COUNT)),
                check,
            };
            if let Ok(hardening) = Hardening::new(mitigations, symbols) {
                each(&hardening, check);
            }
        }
    }
}

#[test]
fn every_path_is_balanced_and_every_branch_allowed() {
    let mut sets = BTreeSet::new();
    each_hardening(|hardening, _| {
        sets.insert(hardening.mitigations().bits());
        for form in [SIDE_STACK, framed(0), framed(3)] {
            for (count, near) in [(0, true), (1, true), (3, false)] {
                for make in [None, Some(0x7f10_0000_0000)] {
                    let vectors = Vectors::Xmm;
                    let make = make.map(|target| MakeSideStack { target, vectors });
                    let (entries, exits) = (programs(count, near), programs(count, near));
                    let case = Case {
                        address: IMAGE,
                        form,
                        vectors,
                        side_stack: SideStackPlace { thread_offset: -0x1000, make },
                        entries: &entries,
                        modify: &modify(form, &entries),
                        exits: &exits,
                        hardening: *hardening,
                        hash: HASH,
                    };
                    let far = walk(&case).iter().filter(|call| call.through_register).count();
                    let programs = entries.len() + case.modify.len() + exits.len();
                    let side_stack = matches!(form, Form::SideStack(_));
                    let far_make = make.is_some_and(|make| make.target >> 32 != 0) && side_stack;
                    assert_eq!(far, if near { 0 } else { programs } + usize::from(far_make));
                }
            }
        }
    });
    // Six mitigations that do not exclude each other but for two; with or without the seventh.
    assert_eq!(sets.len(), (1 << 7) * 3 / 4);
}

#[test]
fn entry_bodies_are_balanced_and_every_branch_allowed() {
    each_hardening(|hardening, _| {
        for (count, near) in [(0, true), (1, true), (1, false), (3, false), (16, false)] {
            for image in [IMAGE, IMAGE + 13, IMAGE + 31] {
                let calls = programs(count, near);
                let calls: Vec<_> = calls
                    .iter()
                    .map(|call| fentry::emit::ProgramCall { session: None, ..*call })
                    .collect();
                let index = IndexFrom::Slot { return_to_index: 9 };
                let vectors = Vectors::Ymm;
                let body = EntryBody { index, return_to_entry: 5, vectors, calls: &calls };
                let mut bytes = vec![0; EntryBody::max_hardened_size(count)];
                let mut code = CodeBuffer::new(&mut bytes, image);
                body.emit_hardened(&mut code, hardening).unwrap();
                let found = walk_entry_body(code.written(), image, &calls, hardening, HASH);
                assert!(found.iter().all(|call| call.through_register != near));
            }
        }
    });
}

#[test]
fn thunks_return_as_mitigations_want() {
    each_hardening(|hardening, _| {
        for place in (0..64).step_by(THUNK_SIZE) {
            let thunk = IMAGE + place;
            let mut bytes = [0; THUNK_SIZE];
            let emitted =
                entry_thunk_hardened(&mut CodeBuffer::new(&mut bytes, thunk), 7, hardening);
            assert_eq!(emitted.is_ok(), is_thunk_place(thunk, hardening));
            if let Err(error) = emitted {
                assert_eq!(error, EmitError::LowerHalf { address: thunk });
                assert!(hardening.mitigations().contains(Mitigations::ITS) && place < 32);
                continue;
            }
            let mut plain = [0; THUNK_SIZE];
            entry_thunk(&mut CodeBuffer::new(&mut plain, thunk), 7).unwrap();
            assert_eq!(bytes[..THUNK_JUMP + 5], plain[..THUNK_JUMP + 5]);
            let walk = Walk::decode(&bytes, thunk);
            let back = &walk.instructions[&(thunk + THUNK_JUMP as u64 + 5)];
            match hardening.return_thunk() {
                // No room is left for a stop.
                Some(target) => assert_eq!(back.near_branch_target(), target),
                None => {
                    assert_eq!(back.mnemonic(), Mnemonic::Ret);
                    branches(&walk, hardening);
                }
            }
        }
    });
}

#[test]
fn replacements_are_jumped_to_as_mitigations_want() {
    each_hardening(|hardening, _| {
        for target in [IMAGE + 0x1000, 0x7f00_0000_0000] {
            for place in 0..64 {
                let mut bytes = [0; HARDENED_REPLACEMENT_SIZE];
                let mut code = CodeBuffer::new(&mut bytes, IMAGE + place);
                replacement_hardened(&mut code, target, hardening).unwrap();
                is_replacement(&bytes, IMAGE + place, target, hardening);
            }
        }
    });
}
