//! What was detached stays until quiescence, and then goes; nothing else does.

use fentry::attach::{AttachError, Cookies};
use fentry::layout::x86_64::{IBT, PLAIN_UNPADDED};
use fentry::patch::{PatchError, Protocol};

use crate::bench::{Bench, Kind, program, run, slot_of};
use crate::decode;
use crate::fake::Failing;

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

/// A bench on which attaching A to function 0 with cookie 1 failed as late as can be: the site
/// was written and taken back. A core may have entered the image meanwhile.
fn failed_to_attach() -> Bench {
    for step in 0.. {
        let mut bench = mixed();
        bench.world.arm(Failing::At(step));
        let error = bench.attach(&[0], &[program(A, Cookies::Same(1))]).unwrap_err();
        bench.world.disarm();
        // Two synchronisations, the third, which fails, and three on the way back.
        let synchronise = matches!(error, AttachError::Patch(PatchError::Synchronise(_)));
        if synchronise && bench.synchronisations() == 5 {
            return bench;
        }
    }
    unreachable!("some step is the third synchronisation")
}

#[test]
fn a_core_inside_a_failed_attachment_still_finds_its_index_and_its_cookie() {
    let mut bench = failed_to_attach();
    let [.., (image, _)] = bench.emitted()[..] else { panic!("an image") };
    // The core that is inside finds what it would have found.
    assert_eq!(bench.slot_bytes(0), slot_of(bench.ids[0].index()));
    let inside = |bench: &Bench| {
        let function = &bench.functions[0];
        decode::runs_in(&bench.world, function, bench.ids[0].index(), image)
    };
    assert_eq!(inside(&bench), [run(A, 1)]);
    // Another program gets another lane, and another image.
    let lanes = bench.attach(&[0], &[program(A, Cookies::Same(2))]).unwrap();
    assert_eq!(inside(&bench), [run(A, 1)]);
    assert_eq!(bench.runs(0), [run(A, 2)]);
    bench.detach(&[0], lanes).unwrap();
    assert_eq!(bench.quiesced(), 2);
    assert_eq!(bench.images(), 0);
}

#[test]
fn a_slot_that_a_core_may_read_is_not_taken_back_by_a_later_failure() {
    let mut bench = failed_to_attach();
    let ours = slot_of(bench.ids[0].index());
    for step in 0.. {
        bench.world.arm(Failing::At(step));
        let attached = bench.attach(&[0, 1, 2], &[program(B, Cookies::Same(2))]);
        bench.world.disarm();
        assert_eq!(bench.slot_bytes(0), ours, "step {step}: {attached:?}");
        if attached.is_ok() {
            break;
        }
    }
}

/// Functions of a module that is unloaded: their indexes go to others, who must not inherit.
#[test]
fn forgotten_functions_leave_nothing_to_those_that_get_their_indexes() {
    let mut bench = mixed();
    let lanes = bench.attach(&[0, 1, 3], &[program(A, Cookies::Same(1))]).unwrap();
    let gone = bench.ids(&[3, 0]);
    // The text of functions 0 and 3 is another's from now on.
    for function in [0, 3] {
        bench.world.overwrite(bench.site(function), &[0x0f, 0x1f, 0x44, 0, 0]);
    }
    bench.world.overwrite(bench.slot(0), &[0x90; 5]);
    // SAFETY: no core is anywhere.
    unsafe { bench.engine.forget(&gone) };
    assert_eq!(bench.quiesced(), 1, "the image that only function 3 had");
    assert_eq!(bench.runs(1), [run(A, 1)]);
    for &id in &gone {
        assert_eq!(bench.engine.entry(id), None);
    }
    let unknown = AttachError::UnknownFunction { index: gone[1].index() };
    assert_eq!(bench.attach(&[0], &[program(A, Cookies::Same(1))]), Err(unknown));

    for function in [0, 3] {
        bench.ids[function] = bench.engine.register(&bench.functions[function]).unwrap();
    }
    let mut again = bench.ids(&[3, 0]);
    again.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(again, gone);
    // All lanes are free: 16 and 16.
    for _ in 0..2 {
        let lanes = bench.attach(&[0, 3], &[program(B, Cookies::Same(2)); 16]).unwrap();
        assert_eq!(bench.runs(0), [run(B, 2); 16]);
        assert_eq!(bench.runs(3), [run(B, 2); 16]);
        bench.detach(&[0, 3], lanes).unwrap();
    }
    bench.detach(&[1], lanes).unwrap();
    bench.quiesced();
    assert_eq!(bench.images(), 0);
}
