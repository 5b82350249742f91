//! Retiring: what was detached goes when nobody is there any more, and not before.

use fentry::fault::Fault;
use fentry::layout::x86_64::{PLAIN, PLAIN_UNPADDED};
use fentry::patch::Protocol::{Breakpoint, ShortJump};

use crate::operator::Operator;
use crate::plan::{Break, Plan};

/// A program comes, goes, and is retired.
const DETACH: Plan = Plan {
    protocol: ShortJump,
    layout: PLAIN,
    stack_arguments: None,
    one_store: false,
    cores: &[&[0, 0]],
    script: detach,
    lists: &[[&[], &[], &[]], [&[(0, 10)], &[], &[]], [&[], &[], &[]]],
    breaks: Break::Nothing,
    fault: Fault::None,
    preemptions: None,
};

fn detach(operator: &mut Operator) {
    operator.register(0);
    let lanes = operator.attach(&[0], 0, &[10]);
    operator.detach(&[0], lanes);
    assert_eq!(operator.quiesce(), 1);
    operator.drop_program(0);
}

/// A second program comes, and the first one goes: three images in turn, two of which a core
/// may be in when they are left.
const SWAP: Plan = Plan {
    one_store: true,
    script: swap,
    lists: &[
        [&[], &[], &[]],
        [&[(0, 10)], &[], &[]],
        [&[(0, 10), (1, 21)], &[], &[]],
        [&[(1, 21)], &[], &[]],
    ],
    ..DETACH
};

fn swap(operator: &mut Operator) {
    operator.register(0);
    let first = operator.attach(&[0], 0, &[10]);
    let _second = operator.attach(&[0], 1, &[21]);
    operator.detach(&[0], first);
    assert_eq!(operator.quiesce(), 2);
    operator.drop_program(0);
}

/// An attachment is taken back as late as can be, and another one follows at once.
const TAKEN_BACK: Plan = Plan {
    script: take_back,
    lists: &[[&[], &[], &[]], [&[(0, 10)], &[], &[]], [&[], &[], &[]], [&[(1, 21)], &[], &[]]],
    breaks: Break::Fail(3),
    ..DETACH
};

fn take_back(operator: &mut Operator) {
    operator.register(0);
    operator.fail_to_attach(&[0], 0, &[10]);
    let _lanes = operator.attach(&[0], 1, &[21]);
    assert_eq!(operator.quiesce(), 1);
    operator.drop_program(0);
}

/// When `detach` has returned, no call that begins runs the program; when quiescence was told,
/// no call runs it any more, and none is in its image. Rests on a core's being seen outside
/// after the batch: then it has loaded, called and returned.
#[test]
fn a_detached_program_is_retired() {
    DETACH.shows(0, &[&[], &[(0, 10)]]);
}

/// The same by the breakpoint: no call goes past a program that is attached, and a trap that
/// leads to an image is like a call of it.
#[test]
fn a_detached_program_is_retired_by_the_breakpoint() {
    Plan { protocol: Breakpoint, ..DETACH }.shows(0, &[&[], &[(0, 10)]]);
}

/// The same with two cores, both of which may be in the image.
#[test]
fn a_program_is_retired_when_both_cores_have_left() {
    Plan { cores: &[&[0], &[0]], preemptions: Some(5), ..DETACH }.shows(0, &[&[], &[(0, 10)]]);
}

/// One list of programs becomes another in one store each. A call runs the one or the other
/// whole, none passes, and the program that went is retired from both of its images.
#[test]
fn a_list_is_swapped_in_one_store() {
    SWAP.shows(0, &[&[], &[(0, 10)], &[(0, 10), (1, 21)], &[(1, 21)]]);
}

/// The same in three passes.
#[test]
fn a_list_is_swapped_in_three_passes() {
    let swap = Plan { one_store: false, ..SWAP };
    swap.shows(0, &[&[], &[(0, 10)], &[(0, 10), (1, 21)], &[(1, 21)]]);
}

/// The same of a function without a slot: its patch site calls its thunk, and the thunk jumps to
/// the image, both of which change in the same batches.
#[test]
fn a_detached_program_is_retired_behind_a_thunk() {
    Plan { layout: PLAIN_UNPADDED, preemptions: Some(6), ..DETACH }.shows(0, &[&[], &[(0, 10)]]);
}

/// The patch site stays, and the thunk's jump gets another target in one store.
#[test]
fn a_list_is_swapped_behind_a_thunk() {
    let swap = Plan { layout: PLAIN_UNPADDED, preemptions: Some(6), ..SWAP };
    swap.shows(0, &[&[], &[(0, 10)], &[(0, 10), (1, 21)], &[(1, 21)]]);
}

/// A core that has entered an image before the batch was taken back finds its index, its
/// cookie and its program there.
#[test]
fn an_attachment_that_failed_is_retired() {
    TAKEN_BACK.shows(0, &[&[], &[(0, 10)], &[(1, 21)]]);
}

/// Mutant: the same behind a thunk, whose jump a core fetches after it has fetched the site.
#[test]
#[should_panic(expected = "after change 2 and before 2 ran [(0, 10)]")]
fn mutant_without_synchronisations_behind_a_thunk() {
    Plan { layout: PLAIN_UNPADDED, ..DETACH }.broken(Break::SkipFrom(4)).explore();
}

/// Mutant: all is said to be quiescent while a core is in the image.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_at_nobody() {
    DETACH.broken(Break::Quiescence).explore();
}

/// Mutant: the other core is not looked at.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_at_one_core() {
    Plan { cores: &[&[0], &[0]], preemptions: Some(5), ..DETACH }
        .broken(Break::OtherCores)
        .explore();
}

/// Mutant: a core in an image of an earlier list is not waited for.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_for_one_image() {
    SWAP.broken(Break::OtherImages).explore();
}

/// Mutant: `detach` returns while a core may still fetch the call.
#[test]
#[should_panic(expected = "after change 2 and before 2 ran [(0, 10)]")]
fn mutant_without_synchronisations() {
    DETACH.broken(Break::SkipFrom(4)).explore();
}

/// Mutant: the same after one store, to which the two synchronisations before it are nothing.
#[test]
#[should_panic(expected = "after change 3 and before 3 ran [(0, 10), (1, 21)]")]
fn mutant_without_the_last_synchronisation() {
    SWAP.broken(Break::Skip(9)).explore();
}

/// Mutant: after an attachment that failed, all is said to be quiescent.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_at_nobody_after_a_failure() {
    let script = |operator: &mut Operator| {
        operator.register(0);
        operator.fail_to_attach(&[0], 0, &[10]);
        operator.drop_program(0);
    };
    Plan { script, ..TAKEN_BACK }.explore();
}
