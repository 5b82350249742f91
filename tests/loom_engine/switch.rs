//! Programs that are switched off and on while cores call their function.

use fentry::fault::Fault;
use fentry::layout::x86_64::PLAIN;
use fentry::patch::Protocol::{Breakpoint, ShortJump};

use crate::operator::Operator;
use crate::plan::{Break, Plan};

/// A function's only program is switched off and on.
const ONE: Plan = Plan {
    protocol: ShortJump,
    layout: PLAIN,
    stack_arguments: None,
    one_store: false,
    cores: &[&[0, 0]],
    script: one,
    lists: &[[&[], &[], &[]], [&[(0, 10)], &[], &[]], [&[], &[], &[]], [&[(0, 10)], &[], &[]]],
    breaks: Break::Nothing,
    fault: Fault::None,
    preemptions: None,
};

fn one(operator: &mut Operator) {
    operator.register(0);
    let lanes = operator.attach(&[0], 0, &[10]);
    operator.set_enabled(&[0], lanes, false);
    operator.set_enabled(&[0], lanes, true);
    assert_eq!(operator.quiesce(), 0, "the image is in use again");
}

/// The same, with quiescence between the two: the image goes, and another one comes.
const ONE_AND_QUIESCENCE: Plan = Plan { script: one_and_quiescence, ..ONE };

fn one_and_quiescence(operator: &mut Operator) {
    operator.register(0);
    let lanes = operator.attach(&[0], 0, &[10]);
    operator.set_enabled(&[0], lanes, false);
    assert_eq!(operator.quiesce(), 1);
    operator.set_enabled(&[0], lanes, true);
}

/// The first of two programs is switched off and on, each time in one store.
const FIRST: Plan = Plan {
    one_store: true,
    script: first,
    lists: &[
        [&[], &[], &[]],
        [&[(0, 10)], &[], &[]],
        [&[(0, 10), (1, 21)], &[], &[]],
        [&[(1, 21)], &[], &[]],
        [&[(0, 10), (1, 21)], &[], &[]],
    ],
    ..ONE
};

fn first(operator: &mut Operator) {
    operator.register(0);
    let lanes = operator.attach(&[0], 0, &[10]);
    let _others = operator.attach(&[0], 1, &[21]);
    operator.set_enabled(&[0], lanes, false);
    operator.set_enabled(&[0], lanes, true);
}

/// When switching off has returned, no call that begins runs the program; when switching on
/// has returned, every call does.
#[test]
fn a_program_is_switched_off_and_on() {
    ONE.shows(0, &[&[], &[(0, 10)]]);
}

/// The same by the breakpoint.
#[test]
fn a_program_is_switched_off_and_on_by_the_breakpoint() {
    Plan { protocol: Breakpoint, ..ONE }.shows(0, &[&[], &[(0, 10)]]);
}

/// The same while a core may be in the image that goes, or in the one that comes.
#[test]
fn a_program_that_is_off_has_no_image() {
    ONE_AND_QUIESCENCE.shows(0, &[&[], &[(0, 10)]]);
}

/// The other program of a function runs at every call, and the order stays.
#[test]
fn one_of_two_programs_is_switched_off_and_on() {
    FIRST.shows(0, &[&[], &[(0, 10)], &[(0, 10), (1, 21)], &[(1, 21)]]);
}

/// Mutant: switching off returns while a core may still fetch the call.
#[test]
#[should_panic(expected = "after change 2 and before 2 ran [(0, 10)]")]
fn mutant_without_synchronisations() {
    let script = |operator: &mut Operator| {
        operator.register(0);
        let lanes = operator.attach(&[0], 0, &[10]);
        operator.set_enabled(&[0], lanes, false);
    };
    Plan { script, ..ONE }.broken(Break::SkipFrom(4)).explore();
}

/// Mutant: switching on returns while a core may still fetch the jump or the nop.
#[test]
#[should_panic(expected = "after change 3 and before 3 ran []")]
fn mutant_without_the_last_synchronisation() {
    ONE.broken(Break::Skip(9)).explore();
}

/// Mutant: the image of a program that is off goes while a core is there.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_that_looks_at_nobody() {
    ONE_AND_QUIESCENCE.broken(Break::Quiescence).explore();
}
