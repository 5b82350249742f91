//! Each operation leaves exactly the expected bytes, computed here from the manual's encodings.

use fentry::attach::{Cookies, SiteNop};
use fentry::layout::x86_64::{IBT, IBT_UNPADDED, PLAIN_UNPADDED};
use fentry::patch::Protocol;

use crate::bench::{Bench, Kind, call, jump, nop_bytes, program, run, slot_of};
use crate::fake::images_of;

const PROTOCOLS: [Protocol; 2] = [Protocol::ShortJump, Protocol::Breakpoint];
const PROGRAM: u64 = 0x1900_0000;
const OTHER: u64 = 0x7f00_0000_0000;
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

#[test]
fn the_bytes_of_one_function_computed_by_hand() {
    for protocol in PROTOCOLS {
        let mut bench = Bench::of(protocol, Kind::PLAIN, 1);
        assert_eq!((bench.slot(0), bench.site(0)), (0x1000_0000, 0x1000_0010));
        let lanes = bench.attach(&[0], &[program(PROGRAM, Cookies::Same(7))]).unwrap();
        // 0x1800_0000 - 0x1000_0015
        assert_eq!(bench.site_bytes(0), [0xe8, 0xeb, 0xff, 0xff, 0x07]);
        assert_eq!(bench.slot_bytes(0), [0xb8, 0, 0, 0, 0]);
        assert_eq!(bench.runs(0), [run(PROGRAM, 7)]);
        bench.detach(&[0], lanes).unwrap();
        assert_eq!(bench.site_bytes(0), NOP);
        assert_eq!(bench.runs(0), []);
    }
}

#[test]
fn every_layout_and_nop_in_every_state() {
    let nops = [SiteNop::FiveByte, SiteNop::Clang, SiteNop::Prefixed];
    let kinds: Vec<_> = nops
        .into_iter()
        .flat_map(|nop| [Kind::PLAIN.nop(nop), Kind::of(IBT).nop(nop)])
        .chain([Kind::PLAIN.region(1), Kind::of(IBT).region(1)])
        .collect();
    for protocol in PROTOCOLS {
        let mut bench = Bench::new(protocol, &kinds);
        let all = bench.all();
        let mut before = bench.world.memory();
        let off = |bench: &Bench| {
            for &function in &all {
                assert_eq!(bench.site_bytes(function), nop_bytes(kinds[function].nop));
                assert_eq!(bench.runs(function), []);
            }
        };
        // Functions of one layout and one region share an image, whatever their nops are.
        let mut classes = Vec::new();
        for kind in &kinds {
            if !classes.contains(&(kind.layout, kind.region)) {
                classes.push((kind.layout, kind.region));
            }
        }
        let on = |bench: &Bench, images: &[(u64, usize)]| {
            for (function, kind) in kinds.iter().enumerate() {
                let class = classes.iter().position(|&class| class == (kind.layout, kind.region));
                let (image, _) = images[class.unwrap()];
                assert_eq!(bench.site_bytes(function), call(bench.site(function), image));
                assert_eq!(bench.slot_bytes(function), slot_of(bench.ids[function].index()));
                assert_eq!(bench.runs(function), [run(PROGRAM, 40 + function as u64)]);
            }
        };
        let cookies: Vec<_> = all.iter().map(|&function| 40 + function as u64).collect();
        let attachment = program(PROGRAM, Cookies::Each(&cookies));
        let lanes = bench.attach(&all, &[attachment]).unwrap();
        let images = bench.emitted();
        assert_eq!(images.len(), 4);
        on(&bench, &images);
        for _ in 0..2 {
            bench.set_enabled(&all, lanes, false).unwrap();
            off(&bench);
        }
        for _ in 0..2 {
            bench.set_enabled(&all, lanes, true).unwrap();
            on(&bench, &images);
        }
        bench.detach(&all, lanes).unwrap();
        off(&bench);

        // What differs from what the compiler left is the index in the padding.
        for &function in &all {
            before.set(bench.slot(function), &slot_of(bench.ids[function].index()));
        }
        assert_eq!(before.differences(&bench.world.memory()), []);
    }
}

/// What a thunk is: `mov r11d, index; nop or jmp; ret; int3 x 4` (Intel SDM volume 2).
fn thunk(index: u32, middle: [u8; 5]) -> Vec<u8> {
    let [a, b, c, d] = index.to_le_bytes();
    let [e, f, g, h, i] = middle;
    vec![0x41, 0xbb, a, b, c, d, e, f, g, h, i, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc]
}

#[test]
fn unpadded_functions_through_their_thunks() {
    for protocol in PROTOCOLS {
        for layout in [PLAIN_UNPADDED, IBT_UNPADDED] {
            let mut bench = Bench::of(protocol, Kind::of(layout), 3);
            let before = bench.world.memory();
            let all = bench.all();
            let check = |bench: &Bench, image: Option<u64>| {
                for &function in &all {
                    let at = bench.thunks()[0] + 16 * function as u64;
                    let index = bench.ids[function].index();
                    let middle = image.map_or(NOP, |image| jump(at + 6, image));
                    assert_eq!(bench.world.bytes(at, 16).unwrap(), thunk(index, middle));
                    let site = bench.site(function);
                    let expected = image.map_or(NOP, |_| call(site, at));
                    assert_eq!(bench.site_bytes(function), expected);
                }
            };
            let a = bench.attach(&all, &[program(PROGRAM, Cookies::Position)]).unwrap();
            let [(image_a, _)] = bench.emitted()[..] else { panic!("one image") };
            check(&bench, Some(image_a));

            let b = bench.attach(&all, &[program(OTHER, Cookies::Same(9))]).unwrap();
            let [_, (image_ab, _)] = bench.emitted()[..] else { panic!("two images") };
            check(&bench, Some(image_ab));
            for &function in &all {
                let expected = [run(PROGRAM, function as u64), run(OTHER, 9)];
                assert_eq!(bench.runs(function), expected);
            }

            bench.detach(&all, a).unwrap();
            let [.., (image_b, _)] = bench.emitted()[..] else { panic!("three images") };
            check(&bench, Some(image_b));
            bench.set_enabled(&all, b, false).unwrap();
            check(&bench, None);
            bench.set_enabled(&all, b, true).unwrap();
            check(&bench, Some(image_b));
            bench.detach(&all, b).unwrap();
            check(&bench, None);
            // No slot: the text is as the compiler left it.
            assert_eq!(before.differences(&bench.world.memory()), []);
        }
    }
}

#[test]
fn one_byte_nops_become_one_instruction_that_is_nops_at_every_byte() {
    for protocol in PROTOCOLS {
        let kinds = [
            Kind::PLAIN.nop(SiteNop::OneByte),
            Kind::of(IBT),
            Kind::PLAIN.shift(7).nop(SiteNop::OneByte),
        ];
        let mut bench = Bench::new(protocol, &kinds);
        let mut expected = bench.world.memory();
        for function in [0, 2] {
            expected.set(bench.site(function), &[0x66, 0x66, 0x66, 0x66, 0x90]);
        }
        bench.prepare(&[0, 1, 2]).unwrap();
        assert_eq!(expected.differences(&bench.world.memory()), []);
        assert_eq!(bench.synchronisations(), 1);
        // Once is enough.
        bench.world.arm(crate::fake::Failing::None);
        bench.prepare(&[2, 1, 0]).unwrap();
        assert_eq!(bench.stores() + bench.synchronisations(), 0);
        assert_eq!(expected.differences(&bench.world.memory()), []);

        let lanes = bench.attach(&[0, 1], &[program(PROGRAM, Cookies::Position)]).unwrap();
        assert_eq!(bench.runs(0), [run(PROGRAM, 0)]);
        assert_eq!(bench.runs(1), [run(PROGRAM, 1)]);
        bench.detach(&[0, 1], lanes).unwrap();
        assert_eq!(bench.site_bytes(0), [0x66, 0x66, 0x66, 0x66, 0x90]);
        assert_eq!(bench.site_bytes(1), NOP);
    }
}

/// What the protocols store, and in which order: `pass` by `pass`, every site in each.
#[test]
fn stores_come_in_three_passes_with_a_synchronisation_after_each() {
    use crate::fake::Event;
    let first = images_of(0);
    let site = [0x1000_0010, 0x1000_0050];
    let calls = site.map(|site| call(site, first));
    let store = |address, bytes: &[u8]| Event::Store { address, bytes: bytes.to_vec() };
    let pass = |from: usize, to: usize| {
        let stores = site.iter().zip(&calls);
        let stores = stores.map(move |(&site, call)| store(site + from as u64, &call[from..to]));
        stores.collect::<Vec<_>>()
    };
    let guard = |bytes: &[u8]| site.map(|site| store(site, bytes)).to_vec();
    let short = [guard(&[0xeb, 0x03]), pass(2, 5), pass(0, 2)];
    let breakpoint = [guard(&[0xcc]), pass(1, 5), pass(0, 1)];
    for (protocol, passes) in [(Protocol::ShortJump, short), (Protocol::Breakpoint, breakpoint)] {
        let mut bench = Bench::of(protocol, Kind::PLAIN, 2);
        let slots = [0, 1]
            .map(|function| store(bench.slot(function), &slot_of(bench.ids[function].index())));
        let _lanes = bench.attach(&[1, 0], &[program(PROGRAM, Cookies::Same(0))]).unwrap();
        let [slot_0, slot_1] = slots;
        // Slots in the order of the list, sites by address.
        let mut expected = vec![Event::Open, slot_1, slot_0, Event::Close, Event::Open];
        for pass in passes {
            expected.extend(pass);
            expected.push(Event::Synchronise);
        }
        expected.push(Event::Close);
        let events = bench.world.state().events.clone();
        let patching = |event: &&Event| !matches!(event, Event::Allocate { .. } | Event::Commit);
        let found: Vec<_> = events.iter().filter(patching).cloned().collect();
        assert_eq!(found, expected);
    }
}
