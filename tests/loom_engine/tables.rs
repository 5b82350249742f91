//! The record table and the columns of cookies, against cores that find their cookies there.

use fentry::attach::Lanes;
use fentry::fault::Fault;
use fentry::layout::x86_64::PLAIN;
use fentry::patch::Protocol::ShortJump;

use crate::operator::Operator;
use crate::plan::{Break, Plan};

/// Of two functions that are known one gets a program, then a third becomes known, whose
/// record and cookie are in memory that was not committed before.
const GROW: Plan = Plan {
    protocol: ShortJump,
    layout: PLAIN,
    stack_arguments: None,
    one_store: false,
    cores: &[&[0, 2]],
    script: grow,
    lists: &[
        [&[], &[], &[]],
        [&[(0, 10)], &[], &[]],
        [&[(0, 10), (1, 21)], &[], &[]],
        [&[(0, 10), (1, 21)], &[], &[(0, 12)]],
        [&[(0, 10), (1, 21)], &[], &[(0, 12), (1, 23)]],
    ],
    breaks: Break::Nothing,
    fault: Fault::None,
    preemptions: None,
};

fn grow(operator: &mut Operator) {
    operator.register(0);
    operator.register(1);
    let _first = operator.attach(&[0], 0, &[10]);
    let _second = operator.attach(&[0], 1, &[21]);
    operator.register(2);
    let _third = operator.attach(&[2], 0, &[12]);
    let _fourth = operator.attach(&[2], 1, &[23]);
}

/// A program goes, another comes before all is quiescent, and a third one afterwards.
const LANES: Plan = Plan {
    cores: &[&[0, 0]],
    script: lanes,
    lists: &[
        [&[], &[], &[]],
        [&[(0, 10)], &[], &[]],
        [&[], &[], &[]],
        [&[(1, 21)], &[], &[]],
        [&[(1, 21), (2, 32)], &[], &[]],
    ],
    ..GROW
};

/// One program goes and the next comes at once. Gives the lanes of both.
fn in_turn(operator: &mut Operator) -> [Lanes; 2] {
    operator.register(0);
    let first = operator.attach(&[0], 0, &[10]);
    operator.detach(&[0], first);
    [first, operator.attach(&[0], 1, &[21])]
}

fn lanes(operator: &mut Operator) {
    let [first, second] = in_turn(operator);
    assert_ne!(first, second, "a lane whose cookie may still be read");
    operator.quiesce();
    let third = operator.attach(&[0], 2, &[32]);
    assert_eq!(first, third, "a lane whose cookie nobody reads any more");
}

/// A program goes, and the same comes again before all is quiescent.
const AGAIN: Plan = Plan {
    script: again,
    lists: &[[&[], &[], &[]], [&[(0, 10)], &[], &[]], [&[], &[], &[]], [&[(0, 10)], &[], &[]]],
    ..LANES
};

fn again(operator: &mut Operator) {
    operator.register(0);
    let first = operator.attach(&[0], 0, &[10]);
    operator.detach(&[0], first);
    assert_eq!(operator.attach(&[0], 0, &[10]), first, "the lane that has the cookie already");
    assert_eq!(operator.quiesce(), 0, "the image is in use again");
}

/// A function is unloaded, and another one gets its index.
const REUSE: Plan = Plan {
    cores: &[&[0, 1]],
    script: |operator| reuse(operator, |operator| assert_eq!(operator.quiesce(), 1), |_| ()),
    lists: &[[&[], &[], &[]], [&[(0, 10)], &[], &[]], [&[], &[], &[]], [&[], &[(1, 21)], &[]]],
    ..GROW
};

fn reuse(
    operator: &mut Operator,
    before_it_is_forgotten: impl FnOnce(&mut Operator),
    after_its_index_is_used: impl FnOnce(&mut Operator),
) {
    let index = operator.register(0);
    let lanes = operator.attach(&[0], 0, &[10]);
    operator.detach(&[0], lanes);
    operator.unload(0);
    before_it_is_forgotten(operator);
    operator.forget(0);
    assert_eq!(operator.register(1), index, "a vacant index is given out again");
    let _lanes = operator.attach(&[1], 1, &[21]);
    after_its_index_is_used(operator);
}

/// Records and columns grow while a core reads what is there already, and a core that is led
/// to what is new finds its index and its cookies. Rests on this: what was stored before a
/// batch's first synchronisation is loaded by a core after it.
#[test]
fn a_table_grows_under_its_readers() {
    let seen = GROW.explore();
    assert_eq!(seen.lists(0), [vec![], vec![(0, 10)], vec![(0, 10), (1, 21)]]);
    assert_eq!(seen.lists(2), [vec![], vec![(0, 12)], vec![(0, 12), (1, 23)]]);
}

/// A core in the image of a program that was detached finds that program's cookie, whatever is
/// attached meanwhile.
#[test]
fn a_lane_is_used_again_when_nobody_reads_it() {
    LANES.shows(0, &[&[], &[(0, 10)], &[(1, 21)], &[(1, 21), (2, 32)]]);
}

/// A program that comes again finds its image and its cookies there, with cores inside or not.
#[test]
fn a_lane_is_used_again_for_the_same_cookies() {
    AGAIN.shows(0, &[&[], &[(0, 10)]]);
}

/// No core finds the cookie of the function that got an index in the place of that of the one
/// that had it.
#[test]
fn an_index_is_used_again_when_nobody_has_it() {
    let seen = REUSE.explore();
    assert_eq!(seen.lists(0), [vec![], vec![(0, 10)]]);
    assert_eq!(seen.lists(1), [vec![], vec![(1, 21)]]);
}

/// Mutant: cookies and records become visible when the batch is over.
#[test]
#[should_panic(expected = "ran [(1, 0)]")]
fn mutant_with_late_cookies() {
    Plan { fault: Fault::Late, ..REUSE }.explore();
}

/// Mutant: a core is led to an image with nothing that orders its loads after the cookies.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_without_synchronisations() {
    GROW.broken(Break::SkipFrom(1)).explore();
}

/// Mutant: a record forgets which of its lanes are still read.
#[test]
#[should_panic(expected = "ran [(0, 21)]")]
fn mutant_with_lanes_that_are_forgotten() {
    let script = |operator: &mut Operator| {
        let _lanes = in_turn(operator);
    };
    Plan { script, fault: Fault::Overwrite, ..LANES }.explore();
}

/// Mutant: an index is given to another function while a core may still have it.
#[test]
#[should_panic(expected = "ran [(0, ")]
fn mutant_with_an_index_that_is_used_again_early() {
    let script = |operator: &mut Operator| {
        reuse(
            operator,
            |_| (),
            |operator| {
                operator.quiesce();
            },
        );
    };
    Plan { script, ..REUSE }.explore();
}
