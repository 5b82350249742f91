//! Programs at the exit of a function: a call that has come in through a thunk leaves through
//! it, whatever the function has got meanwhile.

use fentry::fault::Fault;
use fentry::layout::x86_64::PLAIN;
use fentry::patch::Protocol::{Breakpoint, ShortJump};

use crate::operator::Operator;
use crate::plan::{Break, Plan};

/// A program at the exit comes, goes, and is retired.
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
    preemptions: Some(5),
};

fn detach(operator: &mut Operator) {
    operator.register(0);
    let lanes = operator.attach_exit(&[0], 0, &[10]);
    operator.detach(&[0], lanes);
    assert_eq!(operator.quiesce(), 1);
    operator.drop_program(0);
}

/// A program at the exit gets one at the entry beside it, and goes: the patch site leads to one
/// thunk, to another, and then to an image.
const SWAP: Plan = Plan {
    script: swap,
    lists: &[
        [&[], &[], &[]],
        [&[(0, 10)], &[], &[]],
        [&[(1, 21), (0, 10)], &[], &[]],
        [&[(1, 21)], &[], &[]],
    ],
    ..DETACH
};

fn swap(operator: &mut Operator) {
    operator.register(0);
    let first = operator.attach_exit(&[0], 0, &[10]);
    let _second = operator.attach(&[0], 1, &[21]);
    operator.detach(&[0], first);
    assert_eq!(operator.quiesce(), 2);
    operator.drop_program(0);
}

/// A program at the exit goes while the function runs, and is there when it returns. Rests on
/// the thunk's being told of as long as it is somebody's return address.
#[test]
fn a_program_at_the_exit_is_retired() {
    DETACH.shows(0, &[&[], &[(0, 10)]]);
}

/// The same by the breakpoint.
#[test]
fn a_program_at_the_exit_is_retired_by_the_breakpoint() {
    Plan { protocol: Breakpoint, ..DETACH }.shows(0, &[&[], &[(0, 10)]]);
}

/// The same of a function whose state is kept on the ordinary stack.
#[test]
fn a_program_at_the_exit_is_retired_from_the_stack() {
    Plan { stack_arguments: Some(1), ..DETACH }.shows(0, &[&[], &[(0, 10)]]);
}

/// What a call runs at the exit is of the list that it has run at the entry.
#[test]
fn a_call_leaves_as_it_has_come_in() {
    SWAP.shows(0, &[&[], &[(0, 10)], &[(1, 21)], &[(1, 21), (0, 10)]]);
}

/// Mutant: a core that executes the function is said to be outside, though it will return to
/// the thunk.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_at_no_return_address() {
    DETACH.broken(Break::ReturnAddresses).explore();
}

/// Mutant: all is said to be quiescent while a core is inside.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_at_nobody() {
    SWAP.broken(Break::Quiescence).explore();
}

/// Mutant: `detach` returns while a core may still fetch the jump.
#[test]
#[should_panic(expected = "after change 2 and before 2 ran [(0, 10)]")]
fn mutant_without_synchronisations() {
    DETACH.broken(Break::SkipFrom(4)).explore();
}
