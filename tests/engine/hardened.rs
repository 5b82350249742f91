//! Engines whose images and thunks are emitted with mitigations.

use std::collections::BTreeSet;

use fentry::attach::{Attachment, Cookies, Parts, ProgramKind};
use fentry::emit::Mitigations;
use fentry::emit::x86_64::{
    CallDepth, EXIT_THUNK_SIZE, Hardening, SideStackPlace, Symbols, THUNK_SIZE,
};
use fentry::layout::x86_64::{PLAIN, PLAIN_UNPADDED};
use fentry::patch::Protocol;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};

use crate::bench::{Bench, Kind, program, run};

/// More than one chunk of thunks, of which each has room for half as many.
const FUNCTIONS: usize = 70;
const FAR: u64 = 0x7f00_0000_0000;

#[test]
fn images_and_thunks_have_what_the_parts_say() {
    let mitigations =
        Mitigations::ITS | Mitigations::SLS | Mitigations::LFENCE | Mitigations::CALL_DEPTH;
    let symbols = Symbols { call_depth: Some(CallDepth::Absolute(0x40)), ..Symbols::NONE };
    let hardening = Hardening::new(mitigations, symbols).unwrap();
    let mut kinds = vec![Kind::of(PLAIN_UNPADDED); FUNCTIONS];
    kinds.push(Kind::of(PLAIN));
    let mut bench = Bench::hardened(Protocol::ShortJump, &kinds, hardening);
    let all = bench.all();
    let programs = [program(FAR, Cookies::Same(7)), program(0x1900_0000, Cookies::Same(8))];
    let _lanes = bench.attach(&all, &programs).unwrap();
    for &function in &all {
        assert_eq!(bench.runs(function), [run(FAR, 7), run(0x1900_0000, 8)]);
    }

    let mut thunks = BTreeSet::new();
    for function in 0..FUNCTIONS {
        let site = bench.site_bytes(function);
        let distance = i32::from_le_bytes([site[1], site[2], site[3], site[4]]);
        let thunk = (bench.site(function) + 5).wrapping_add_signed(distance.into());
        thunks.insert(thunk);
        let bytes = bench.world.bytes(thunk, THUNK_SIZE).unwrap();
        // `ret`, and a stop.
        assert_eq!(bytes[11..13], [0xc3, 0xcc]);
        assert!((thunk + 11) % 64 >= 32, "a return at {:#x}", thunk + 11);
    }
    assert_eq!(thunks.len(), FUNCTIONS, "thunks that differ");
    assert_eq!(bench.thunks().len(), FUNCTIONS.div_ceil(32));

    let images = bench.emitted();
    assert_eq!(images.len(), 2, "one for each layout");
    for (address, size) in images {
        let bytes = bench.world.bytes(address, size).unwrap();
        let code: Vec<_> =
            Decoder::with_ip(64, &bytes, address, DecoderOptions::NONE).iter().collect();
        let back = code.iter().find(|it| it.flow_control() == FlowControl::Return).unwrap();
        assert!(back.ip() % 64 >= 32, "{back:?}");
        let far =
            code.iter().position(|it| it.flow_control() == FlowControl::IndirectCall).unwrap();
        assert!((code[far].next_ip() - 1) % 64 >= 32);
        assert_eq!(code[far - 1].mnemonic(), Mnemonic::Lfence);
        assert_eq!(code.iter().filter(|it| it.mnemonic() == Mnemonic::Sar).count(), 2);
    }
}

/// A return thunk may change the flags.
#[test]
fn exit_thunks_look_at_no_flags_behind_a_return_thunk() {
    let symbols = Symbols { return_thunk: Some(0x1800_0000), ..Symbols::NONE };
    let hardened = Hardening::new(Mitigations::RETURN_THUNK, symbols).unwrap();
    for (hardening, conditions) in [(Hardening::NONE, 2), (hardened, 0)] {
        let side_stack = Some(SideStackPlace { thread_offset: 0, make: None });
        let kinds = [Kind::of(PLAIN)];
        let mut bench = Bench::of_parts(Protocol::ShortJump, &kinds, |parts| Parts {
            hardening,
            side_stack,
            ..parts
        });
        let exit = Attachment { kind: ProgramKind::Exit, ..program(FAR, Cookies::Same(7)) };
        let _lanes = bench.attach(&[0], &[exit]).unwrap();
        let [jump, distance @ ..] = bench.site_bytes(0);
        assert_eq!(jump, 0xe9);
        let distance = i32::from_le_bytes(distance);
        let thunk = (bench.site(0) + 5).wrapping_add_signed(distance.into());
        let bytes = bench.world.bytes(thunk, EXIT_THUNK_SIZE).unwrap();
        let code = Decoder::with_ip(64, &bytes, thunk, DecoderOptions::NONE);
        let flows: Vec<_> = code.into_iter().map(|it| it.flow_control()).collect();
        let count = |flow| flows.iter().filter(|&&found| found == flow).count();
        assert_eq!(count(FlowControl::ConditionalBranch), conditions);
        assert_eq!(count(FlowControl::Call), 2);
        assert_eq!(count(FlowControl::UnconditionalBranch), 2);
    }
}
