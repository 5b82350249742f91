//! What operations cost, counted: synchronisations, images, memory.

use fentry::attach::Cookies;
use fentry::layout::x86_64::{IBT, PLAIN_UNPADDED};
use fentry::patch::Protocol;

use crate::bench::{Bench, Kind, program, run};
use crate::fake::Failing;

const A: u64 = 0x1900_0000;
const B: u64 = 0x1900_1000;

#[test]
fn a_batch_of_any_size_has_three_synchronisations() {
    for protocol in [Protocol::ShortJump, Protocol::Breakpoint] {
        for (kind, count) in [
            (Kind::PLAIN, 1),
            (Kind::PLAIN, 2),
            (Kind::PLAIN, 10_000),
            (Kind::of(PLAIN_UNPADDED), 1_000),
        ] {
            let mut bench = Bench::of(protocol, kind, count);
            let all = bench.all();
            let lanes = bench.attach(&all, &[program(A, Cookies::Position)]).unwrap();
            assert_eq!(bench.synchronisations(), 3, "attaching to {count}");
            bench.world.arm(Failing::None);
            bench.set_enabled(&all, lanes, false).unwrap();
            assert_eq!(bench.synchronisations(), 3, "disabling on {count}");
            bench.world.arm(Failing::None);
            bench.set_enabled(&all, lanes, true).unwrap();
            bench.world.arm(Failing::None);
            bench.detach(&all, lanes).unwrap();
            assert_eq!(bench.synchronisations(), 3, "detaching from {count}");
        }
    }
}

/// A function that has programs and gets others is never without: its call becomes another in
/// one store. Where five bytes cannot be stored at once, it is guarded as ever.
#[test]
fn a_changed_set_is_one_store_where_the_site_allows_it() {
    let kinds = [Kind::PLAIN, Kind::of(IBT), Kind::of(PLAIN_UNPADDED), Kind::PLAIN.shift(12)];
    for (kind, at_once) in kinds.into_iter().zip([true, true, true, false]) {
        let mut bench = Bench::of(Protocol::ShortJump, kind, 3);
        let all = bench.all();
        let a = bench.attach(&all, &[program(A, Cookies::Position)]).unwrap();
        for step in 0..3 {
            bench.world.arm(Failing::None);
            match step {
                0 => _ = bench.attach(&all, &[program(B, Cookies::Position)]).unwrap(),
                1 => bench.set_enabled(&all, a, false).unwrap(),
                _ => bench.set_enabled(&all, a, true).unwrap(),
            }
            let lengths = bench.store_lengths();
            if at_once {
                assert_eq!(lengths, [5; 3], "{kind:?}");
            } else {
                assert_eq!(lengths, [2, 2, 2, 3, 3, 3, 2, 2, 2], "{kind:?}");
            }
            assert_eq!(bench.synchronisations(), 3);
        }
    }
}

#[test]
fn one_image_for_one_program_set_however_many_functions() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 1_000);
    let all = bench.all();
    let a = bench.attach(&all, &[program(A, Cookies::Position)]).unwrap();
    assert_eq!(bench.emitted().len(), 1);
    // Half of them get another program, and then the other half.
    let (even, odd): (Vec<_>, Vec<_>) = all.iter().partition(|&&function| function % 2 == 0);
    let b = bench.attach(&even, &[program(B, Cookies::Position)]).unwrap();
    assert_eq!(bench.emitted().len(), 2, "one more, for A and B");
    let b_too = bench.attach(&odd, &[program(B, Cookies::Position)]).unwrap();
    assert_eq!(bench.emitted().len(), 2, "the same programs in the same lanes");
    assert_eq!(b, b_too);
    for function in [0, 1, 998, 999] {
        let expected = [run(A, function as u64), run(B, function as u64 / 2)];
        assert_eq!(bench.runs(function), expected);
    }
    // Removing A leaves one set, and going back to A alone needs no image at all.
    bench.detach(&all, a).unwrap();
    assert_eq!(bench.emitted().len(), 3);
    bench.detach(&all, b).unwrap();
    assert_eq!(bench.emitted().len(), 3);
    assert!(all.iter().all(|&function| bench.runs(function).is_empty()));
}

#[test]
fn functions_of_many_sets_get_one_image_for_each_set() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 60);
    let all = bench.all();
    // Three sets, the functions of which are dealt like cards.
    for set in 0..3 {
        let functions: Vec<_> = (set..60).step_by(3).collect();
        let target = A + 0x100 * set as u64;
        let _lanes = bench.attach(&functions, &[program(target, Cookies::Same(1))]).unwrap();
    }
    bench.world.arm(Failing::None);
    let _lanes = bench.attach(&all, &[program(B, Cookies::Position)]).unwrap();
    assert_eq!(bench.emitted().len(), 3);
    assert_eq!(bench.synchronisations(), 3);
    for function in all {
        let first = run(A + 0x100 * (function as u64 % 3), 1);
        assert_eq!(bench.runs(function), [first, run(B, function as u64)]);
    }
}

/// 16 bytes for each function, in pieces of 64, and for good.
#[test]
fn thunks_take_16_bytes_a_function_in_whatever_order() {
    let unpadded = Kind::of(PLAIN_UNPADDED);
    let one_after_another = vec![unpadded; 640];
    let by_turns = (0..640).map(|position| unpadded.region(position % 2)).collect::<Vec<_>>();
    for kinds in [one_after_another, by_turns] {
        let mut bench = Bench::new(Protocol::ShortJump, &kinds);
        let all = bench.all();
        for _ in 0..3 {
            let lanes = bench.attach(&all, &[program(A, Cookies::Position)]).unwrap();
            for function in [0, 1, 63, 64, 65, 639] {
                assert_eq!(bench.runs(function), [run(A, function as u64)]);
            }
            bench.detach(&all, lanes).unwrap();
        }
        assert_eq!(bench.thunks().len(), 10);
    }
}

#[test]
fn disabling_makes_no_image_where_nothing_remains_and_enabling_finds_the_old_one() {
    let mut bench = Bench::new(Protocol::ShortJump, &[Kind::PLAIN, Kind::of(IBT)]);
    let lanes = bench.attach(&[0, 1], &[program(A, Cookies::Same(1))]).unwrap();
    let images = bench.emitted().len();
    assert_eq!(images, 2, "one for each layout");
    bench.set_enabled(&[0, 1], lanes, false).unwrap();
    bench.set_enabled(&[0, 1], lanes, true).unwrap();
    assert_eq!(bench.emitted().len(), images);
}
