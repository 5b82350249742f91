//! What was detached stays until quiescence, and then goes; nothing else does.

use fentry::attach::Cookies;
use fentry::layout::x86_64::{IBT, PLAIN_UNPADDED};
use fentry::patch::Protocol;

use crate::bench::{Bench, Kind, program, run};

const A: u64 = 0x1900_0000;
const B: u64 = 0x1900_1000;

fn mixed() -> Bench {
    let kinds = [Kind::PLAIN, Kind::PLAIN, Kind::of(IBT), Kind::of(PLAIN_UNPADDED)];
    Bench::new(Protocol::ShortJump, &kinds)
}

/// Linux: "bpf: Skip detached progs in trampoline images that are still in use" and "Wait for
/// an RCU tasks grace period before freeing trampoline progs": images of any number of past
/// generations may have a thread inside.
#[test]
fn images_of_every_generation_stay_until_quiescence() {
    let mut bench = mixed();
    let all = bench.all();
    let mut generations = 0;
    for generation in 0..8 {
        let attachment = program(A + 0x100 * generation, Cookies::Same(generation));
        let lanes = bench.attach(&all, &[attachment]).unwrap();
        generations += 3;
        assert_eq!(bench.images(), generations);
        bench.detach(&all, lanes).unwrap();
    }
    assert_eq!(bench.quiesced(), generations);
    assert_eq!(bench.images(), 0);
    assert_eq!(bench.quiesced(), 0);
}

#[test]
fn an_image_stays_while_one_function_has_it() {
    let mut bench = mixed();
    let a = bench.attach(&[0, 1], &[program(A, Cookies::Position)]).unwrap();
    bench.detach(&[0], a).unwrap();
    assert_eq!(bench.quiesced(), 0);
    assert_eq!(bench.runs(1), [run(A, 1)]);
    let b = bench.attach(&[1], &[program(B, Cookies::Same(3))]).unwrap();
    assert_eq!(bench.quiesced(), 1, "the image of A alone");
    assert_eq!(bench.runs(1), [run(A, 1), run(B, 3)]);
    bench.detach(&[1], a).unwrap();
    bench.detach(&[1], b).unwrap();
    assert_eq!(bench.quiesced(), 2);
    assert_eq!(bench.images(), 0);
}

/// Linux: "jump_label: Fix static_key_slow_dec() yet again": counts that an operation which
/// changes nothing gets wrong.
#[test]
fn switching_twice_in_one_direction_counts_once() {
    let mut bench = mixed();
    let all = bench.all();
    let lanes = bench.attach(&all, &[program(A, Cookies::Position)]).unwrap();
    for _ in 0..3 {
        bench.set_enabled(&all, lanes, true).unwrap();
    }
    // Too low a count would free the image here.
    bench.detach(&[0], lanes).unwrap();
    assert_eq!(bench.quiesced(), 0);
    assert_eq!(bench.runs(1), [run(A, 1)]);
    for _ in 0..3 {
        bench.set_enabled(&[1, 2, 3], lanes, false).unwrap();
    }
    assert_eq!(bench.quiesced(), 3);
    bench.set_enabled(&[1, 2, 3], lanes, true).unwrap();
    assert_eq!(bench.runs(1), [run(A, 1)]);
    bench.detach(&[1, 2, 3], lanes).unwrap();
    // Too high a count would keep it for ever.
    assert_eq!(bench.quiesced(), 3);
    assert_eq!(bench.images(), 0);
}

#[test]
fn a_detached_image_that_is_wanted_again_before_quiescence_is_used_again() {
    let mut bench = mixed();
    let lanes = bench.attach(&[0], &[program(A, Cookies::Same(1))]).unwrap();
    let [(image, _)] = bench.emitted()[..] else { panic!("one image") };
    bench.set_enabled(&[0], lanes, false).unwrap();
    // On another function, the same program has the same lane.
    let again = bench.attach(&[1], &[program(A, Cookies::Same(2))]).unwrap();
    assert_eq!(bench.emitted(), [(image, bench.world.state().images[&image])]);
    assert_eq!(bench.quiesced(), 0, "function 1 has it");
    assert_eq!(bench.runs(1), [run(A, 2)]);
    bench.set_enabled(&[0], lanes, true).unwrap();
    assert_eq!(bench.runs(0), [run(A, 1)]);
    bench.detach(&[0], lanes).unwrap();
    bench.detach(&[1], again).unwrap();
    assert_eq!(bench.quiesced(), 1);
}

#[test]
fn numbers_of_retired_sets_are_given_out_again() {
    let mut bench = mixed();
    let sets = |bench: &Bench| {
        let shown = format!("{:?}", bench.engine);
        let (_, sets) = shown.split_once("sets: ").unwrap();
        sets.split(|digit: char| !digit.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap()
    };
    let cycle = |bench: &mut Bench| {
        let lanes = bench.attach(&[0, 2, 3], &[program(A, Cookies::Same(1))]).unwrap();
        bench.detach(&[0, 2, 3], lanes).unwrap();
        bench.quiesced();
    };
    cycle(&mut bench);
    let once = sets(&bench);
    for _ in 0..10 {
        cycle(&mut bench);
    }
    assert_eq!(sets(&bench), once);
}
