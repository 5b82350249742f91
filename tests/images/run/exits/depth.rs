//! Nesting, and what leaves the side stack in disorder: overflow, `longjmp`, tail calls.

use fentry::emit::Vectors;

use super::programs::{entries, exits, take_events};
use super::{Functions, check_pairs};
use crate::hooks::{
    FORMS, Form, Programs, SIDE_STACKS, give_side_stack, make_none, place, side_stack,
};

/// Hooks with the programs that note everything.
fn hook(functions: &Functions, form: Form, names: &[&str]) -> super::Hooks {
    let vectors = super::widest();
    let (entries, exits) = (entries(vectors), exits(vectors));
    let programs = Programs { entries: &entries, exits: &exits, ..Programs::none(vectors) };
    functions.hook(form, names, &programs)
}

#[test]
fn a_hundred_deep() {
    let functions = Functions::load("exits-deep");
    let down = functions.driver("drive_down");
    for form in FORMS {
        // One hundred and one calls of the one and one of the other: exactly enough.
        let side_stack = give_side_stack(102);
        let _hooks = hook(&functions, form, &["f_down", "f_leaf"]);
        for _ in 0..3 {
            assert_eq!(down(100), 5051, "{form:?}");
            let events = take_events();
            assert_eq!(events.len(), 2 * 102, "{form:?}");
            assert!(events[..102].iter().all(|event| !event.exit), "entries come first");
            check_pairs(&events);
            assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0), "{form:?}");
        }
    }
}

#[test]
fn calls_beyond_the_side_stack_run_unhooked_and_are_counted() {
    let functions = Functions::load("exits-overflow");
    let down = functions.driver("drive_down");
    for form in SIDE_STACKS {
        let side_stack = give_side_stack(10);
        let _hooks = hook(&functions, form, &["f_down", "f_leaf"]);
        for round in 1..=3 {
            assert_eq!(down(100), 5051, "{form:?}");
            let events = take_events();
            assert_eq!(events.len(), 2 * 10, "{form:?}");
            check_pairs(&events);
            assert_eq!(side_stack.overflowed(), 92 * round, "{form:?}");
            assert_eq!((side_stack.depth(), side_stack.abandoned()), (0, 0), "{form:?}");
        }
    }
}

#[test]
fn a_thread_without_a_side_stack_runs_unhooked() {
    let functions = Functions::load("exits-without");
    let down = functions.driver("drive_down");
    for form in SIDE_STACKS {
        for make in [None, Some(make_none as extern "C" fn() -> _)] {
            let vectors = Vectors::Xmm;
            let (entries, exits) = (entries(vectors), exits(vectors));
            let programs = Programs {
                side_stack: place(make, super::widest()),
                entries: &entries,
                exits: &exits,
                ..Programs::none(vectors)
            };
            let _hooks = functions.hook(form, &["f_down", "f_leaf"], &programs);
            assert_eq!(down(100), 5051, "{form:?}");
            assert_eq!(take_events(), [], "{form:?}");
            assert!(side_stack().is_none());
        }
    }
}

#[test]
fn longjmp_into_a_hooked_function_drops_the_frames_above_it() {
    let functions = Functions::load("exits-catches");
    let catches = functions.driver("drive_catches");
    for form in SIDE_STACKS {
        let side_stack = give_side_stack(64);
        let _hooks = hook(&functions, form, &["f_catches", "f_jumps"]);
        for round in 1..=5 {
            assert_eq!(catches(20), 200, "{form:?}");
            let events = take_events();
            // One entry and exit, and the entries of those that were left.
            let left = events[1..22].iter().all(|event| event.index == 1 && !event.exit);
            assert!(left, "{events:?}");
            check_pairs(&[events[0], events[22]]);
            assert_eq!(events.len(), 23, "{form:?}");
            assert_eq!(side_stack.abandoned(), 21 * round, "{form:?}");
            assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0), "{form:?}");
        }
    }
}

#[test]
fn frames_that_longjmp_left_are_dropped_by_the_next_call() {
    let functions = Functions::load("exits-jumps");
    let jumps = functions.driver("drive_jumps");
    for form in SIDE_STACKS {
        // Not enough for two rounds without the drop.
        let side_stack = give_side_stack(30);
        let _hooks = hook(&functions, form, &["f_leaf", "f_jumps"]);
        for round in 1..=5 {
            assert_eq!(jumps(20), 21, "{form:?}");
            let events = take_events();
            assert_eq!(events.len(), 23, "{form:?}");
            assert!(events[..21].iter().all(|event| event.index == 1 && !event.exit));
            check_pairs(&events[21..]);
            assert_eq!(side_stack.abandoned(), 21 * round, "{form:?}");
            assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0), "{form:?}");
        }
    }
}

#[test]
fn a_tail_call_keeps_the_frame_that_has_the_same_slot() {
    let functions = Functions::load("exits-tail");
    let tail = functions.driver("drive_tail");
    for form in SIDE_STACKS {
        let side_stack = give_side_stack(8);
        let hooks = hook(&functions, form, &["f_first", "f_middle", "f_last", "f_leaf"]);
        for _ in 0..3 {
            assert_eq!(tail(4), 15 * 1000 + 5, "{form:?}");
            let events = take_events();
            let order: Vec<_> = events.iter().map(|event| (event.index, event.exit)).collect();
            let nested = [0, 1, 2].map(|index| (index, false));
            let back = [2, 1, 0].map(|index| (index, true));
            assert_eq!(order, [&nested[..], &back, &[(3, false), (3, true)]].concat(), "{form:?}");
            check_pairs(&events);
            // They really are tail calls: these return to where the one before would return.
            if form == Form::SideStack {
                assert!(hooks.is_own(events[1].caller) && hooks.is_own(events[2].caller));
            }
            assert_ne!(events[0].caller, events[1].caller);
            assert_eq!((side_stack.depth(), side_stack.abandoned()), (0, 0), "{form:?}");
        }
    }
}
