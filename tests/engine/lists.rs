//! Lists of programs: order, lanes, cookies, limits.

use fentry::attach::{AttachError, Attachment, Cookies, Lanes, MAX_PROGRAMS, ProgramKind};
use fentry::emit::Vectors;
use fentry::layout::x86_64::{IBT, IBT_UNPADDED, PLAIN_UNPADDED};
use fentry::metadata::LANES;
use fentry::patch::Protocol;

use crate::bench::{Bench, Kind, program, run};
use crate::decode::Run;

/// The address of a program, by a number of ours; every other one is out of a call's reach.
const fn target(number: usize) -> u64 {
    let number = number as u64;
    if number.is_multiple_of(2) {
        0x1900_0000 + 0x100 * number
    } else {
        0x7f00_0000_0000 + 0x100 * number
    }
}

fn mixed() -> Bench {
    let kinds = [
        Kind::PLAIN,
        Kind::of(IBT),
        Kind::of(PLAIN_UNPADDED),
        Kind::of(IBT_UNPADDED),
        Kind::PLAIN.region(1),
    ];
    Bench::new(Protocol::ShortJump, &kinds)
}

/// Every order of 0, 1, 2, 3.
fn orders() -> Vec<[usize; 4]> {
    let digits = |number: usize| [number / 64, number / 16 % 4, number / 4 % 4, number % 4];
    let all_differ = |order: &[usize; 4]| (0..4).all(|digit| order.contains(&digit));
    (0..256).map(digits).filter(all_differ).collect()
}

#[test]
fn programs_run_in_the_order_of_attaching_and_go_in_any_order() {
    assert_eq!(orders().len(), 24);
    for order in orders() {
        let mut bench = mixed();
        let all = bench.all();
        let mut left: Vec<(usize, Lanes)> = Vec::new();
        let check = |bench: &Bench, left: &[(usize, Lanes)]| {
            for &function in &all {
                let cookie = |number: usize| 100 * number as u64 + function as u64;
                let expected = left.iter().map(|&(number, _)| run(target(number), cookie(number)));
                assert_eq!(bench.runs(function), expected.collect::<Vec<_>>());
            }
        };
        for number in 0..4 {
            let cookies: Vec<_> =
                all.iter().map(|&function| 100 * number as u64 + function as u64).collect();
            let attachment = program(target(number), Cookies::Each(&cookies));
            left.push((number, bench.attach(&all, &[attachment]).unwrap()));
            check(&bench, &left);
        }
        for gone in order {
            let at = left.iter().position(|&(number, _)| number == gone).unwrap();
            let (_, lanes) = left.remove(at);
            bench.detach(&all, lanes).unwrap();
            check(&bench, &left);
        }
    }
}

#[test]
fn one_attachment_of_several_programs_is_one_thing() {
    let mut bench = mixed();
    let all = bench.all();
    let data = [None, Some(0xffff_fff0), Some(0xffff_ffff_ffff_fff0)];
    let vectors = [Vectors::Untouched, Vectors::Zmm, Vectors::Xmm];
    let attachments: Vec<_> = (0..3)
        .map(|number| Attachment {
            target: target(number),
            kind: ProgramKind::Entry,
            data: data[number],
            vectors: vectors[number],
            cookies: Cookies::Same(number as u64),
        })
        .collect();
    let expected: Vec<_> = (0..3)
        .map(|number| Run { target: target(number), cookie: number as u64, data: data[number] })
        .collect();
    let before = bench.attach(&all, &[program(target(8), Cookies::Position)]).unwrap();
    let lanes = bench.attach(&all, &attachments).unwrap();
    for &function in &all {
        assert_eq!(bench.runs(function)[0], run(target(8), function as u64));
        assert_eq!(bench.runs(function)[1..], expected);
    }
    bench.detach(&all, before).unwrap();
    assert!(all.iter().all(|&function| bench.runs(function) == expected));
    bench.detach(&all, lanes).unwrap();
    assert!(all.iter().all(|&function| bench.runs(function).is_empty()));
}

#[test]
fn a_disabled_program_keeps_its_place() {
    let mut bench = mixed();
    let all = bench.all();
    let mut lanes = Vec::new();
    for number in 0..3 {
        let attachment = program(target(number), Cookies::Same(number as u64));
        lanes.push(bench.attach(&all, &[attachment]).unwrap());
    }
    let check = |bench: &Bench, numbers: &[usize]| {
        let expected: Vec<_> =
            numbers.iter().map(|&number| run(target(number), number as u64)).collect();
        assert!(all.iter().all(|&function| bench.runs(function) == expected), "{numbers:?}");
    };
    bench.set_enabled(&all, lanes[1], false).unwrap();
    check(&bench, &[0, 2]);
    bench.set_enabled(&all, lanes[1], false).unwrap();
    check(&bench, &[0, 2]);
    bench.set_enabled(&all, lanes[0], false).unwrap();
    check(&bench, &[2]);
    bench.detach(&all, lanes[2]).unwrap();
    check(&bench, &[]);
    bench.set_enabled(&all, lanes[1], true).unwrap();
    check(&bench, &[1]);
    bench.set_enabled(&all, lanes[0], true).unwrap();
    check(&bench, &[0, 1]);
    // Detaching what is disabled is detaching.
    bench.set_enabled(&all, lanes[0], false).unwrap();
    bench.detach(&all, lanes[0]).unwrap();
    let error = bench.set_enabled(&all, lanes[0], true);
    assert_eq!(error, Err(AttachError::NotAttached { entry: bench.functions[0].entry }));
    check(&bench, &[1]);
}

#[test]
fn sixteen_programs_fit_and_the_next_is_refused_with_its_function() {
    assert_eq!(MAX_PROGRAMS, 16);
    let mut bench = mixed();
    for number in 0..16 {
        let attachment = program(target(number), Cookies::Same(number as u64));
        // Function 0 has none of them, so that it is not the one that is refused.
        let _lanes = bench.attach(&[1, 2], &[attachment]).unwrap();
    }
    let expected: Vec<_> = (0..16).map(|number| run(target(number), number as u64)).collect();
    let text = bench.world.text();
    let error = bench.attach(&[0, 1, 2], &[program(target(16), Cookies::Same(16))]);
    let refused = AttachError::TooManyPrograms { entry: bench.functions[1].entry };
    assert_eq!(error, Err(refused));
    bench.quiesced();
    assert_eq!(text.differences(&bench.world.text()), []);
    assert_eq!(bench.runs(0), []);
    assert_eq!(bench.runs(1), expected);
    assert_eq!(bench.runs(2), expected);

    let attachments = [program(target(0), Cookies::Same(0)); 17];
    let error = bench.attach(&[3, 4], &attachments);
    let refused = AttachError::TooManyPrograms { entry: bench.functions[3].entry };
    assert_eq!(error, Err(refused));
    let _lanes = bench.attach(&[3, 4], &attachments[..16]).unwrap();
    assert_eq!(bench.runs(3), [run(target(0), 0); 16]);
}

#[test]
fn a_program_can_go_from_some_of_its_functions() {
    let mut bench = mixed();
    let all = bench.all();
    let lanes = bench.attach(&all, &[program(target(0), Cookies::Position)]).unwrap();
    bench.detach(&[1, 3], lanes).unwrap();
    for function in all {
        let expected = [run(target(0), function as u64)];
        let expected = if [1, 3].contains(&function) { &[][..] } else { &expected };
        assert_eq!(bench.runs(function), expected);
    }
    // One of them does not have it any more: then none is detached from.
    let error = bench.detach(&[0, 1], lanes);
    assert_eq!(error, Err(AttachError::NotAttached { entry: bench.functions[1].entry }));
    assert_eq!(bench.runs(0), [run(target(0), 0)]);
}

#[test]
fn every_lane_has_its_own_cookies_and_comes_back_after_quiescence() {
    assert_eq!(LANES, 32);
    let mut bench = mixed();
    let all = bench.all();
    let stays = bench.attach(&all, &[program(target(0), Cookies::Same(0xabcd))]).unwrap();
    for round in 0..3_u64 {
        // One lane is taken, and each of the others can be used once.
        let mut used = vec![stays];
        for lane in 1..32 {
            let cookies: Vec<_> =
                all.iter().map(|&function| round << 32 | lane << 8 | function as u64).collect();
            let attachment = program(target(1), Cookies::Each(&cookies));
            let lanes = bench.attach(&all, &[attachment]).unwrap();
            assert!(!used.contains(&lanes), "a lane whose cookies may still be read");
            used.push(lanes);
            for &function in &all {
                let expected = [run(target(0), 0xabcd), run(target(1), cookies[function])];
                assert_eq!(bench.runs(function), expected);
            }
            bench.detach(&all, lanes).unwrap();
        }
        let attachment = program(target(1), Cookies::Same(0));
        assert_eq!(bench.attach(&all, &[attachment]), Err(AttachError::NoLane));
        assert!(all.iter().all(|&function| bench.runs(function) == [run(target(0), 0xabcd)]));
        bench.quiesced();
    }
}

#[test]
fn a_lane_must_be_free_in_all_functions() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 2);
    let attachments = [program(target(0), Cookies::Same(1)); 16];
    let others = [program(target(0), Cookies::Same(2)); 16];
    let first = bench.attach(&[0], &attachments).unwrap();
    bench.detach(&[0], first).unwrap();
    // The lower half may still be read on function 0, so both get the upper half.
    let second = bench.attach(&[0, 1], &others).unwrap();
    assert_ne!(first, second);
    bench.detach(&[0, 1], second).unwrap();
    // Function 1 has the lower half free, function 0 nothing.
    let lower = bench.attach(&[1], &attachments).unwrap();
    assert_eq!(lower, first);
    let third = program(target(0), Cookies::Same(3));
    assert_eq!(bench.attach(&[0, 1], &[third]), Err(AttachError::NoLane));
    assert_eq!(bench.attach(&[0], &[third]), Err(AttachError::NoLane));
    bench.detach(&[1], lower).unwrap();
    bench.quiesced();
    let _lanes = bench.attach(&[0, 1], &[third]).unwrap();
    assert_eq!(bench.runs(0), [run(target(0), 3)]);
}

#[test]
fn a_lane_that_has_the_cookies_already_is_used_again_at_once() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 3);
    let wanted = program(target(0), Cookies::Each(&[7, 8]));
    let first = bench.attach(&[0, 1], &[wanted]).unwrap();
    bench.detach(&[0, 1], first).unwrap();
    for _ in 0..100 {
        let again = bench.attach(&[0, 1], &[wanted]).unwrap();
        assert_eq!(again, first);
        bench.detach(&[0, 1], again).unwrap();
    }
    // Function 2 does not have its cookie there.
    let three = program(target(0), Cookies::Each(&[7, 8, 9]));
    let wider = bench.attach(&[0, 1, 2], &[three]).unwrap();
    assert_ne!(wider, first);
    assert_eq!(bench.runs(2), [run(target(0), 9)]);
    // While a lane is in use, it is nobody else's, whatever its cookies.
    let beside = bench.attach(&[0, 1], &[wanted]).unwrap();
    assert_eq!(beside, first);
    let third = bench.attach(&[0, 1], &[wanted]).unwrap();
    assert!(third != first && third != wider);
    bench.detach(&[0, 1], beside).unwrap();
    // One other cookie, and it must wait.
    let other = program(target(0), Cookies::Each(&[7, 80]));
    let other = bench.attach(&[0, 1], &[other]).unwrap();
    assert_ne!(other, first);
}
