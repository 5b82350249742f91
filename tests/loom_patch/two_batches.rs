//! Two batches: one that begins as soon as another has returned, at the same site, and two at
//! the same time, at sites of their own.

use fentry::patch::Protocol::{Breakpoint, ShortJump};

use crate::plan::{Break, CALL, NOP, OTHER_CALL, Plan, Seen};

/// A site is switched on and off again by the short jump, under a core that executes it twice.
const JUMP: Plan = Plan::one(ShortJump, &[NOP, CALL, NOP], &[&[0, 0]]);
/// The same by the breakpoint.
const TRAP: Plan = Plan::one(Breakpoint, &[NOP, CALL, NOP], &[&[0, 0]]);
/// A nop becomes a call in three passes, and that another call in one store.
const ON_AND_RETARGET: Plan = Plan { one_store: true, stages: &[NOP, CALL, OTHER_CALL], ..JUMP };
/// A call becomes another in one store, and that a nop in three passes.
const RETARGET_AND_OFF: Plan = Plan { one_store: true, stages: &[CALL, OTHER_CALL, NOP], ..JUMP };
/// Two threads switch a site on each, at the same time, under a core that executes both.
const JUMPS_APART: Plan =
    Plan { sites: 2, apart: true, ..Plan::one(ShortJump, &[NOP, CALL], &[&[0, 1]]) };
const TRAPS_APART: Plan = Plan { protocol: Breakpoint, ..JUMPS_APART };

/// A model in which some core did not see each of so many instructions proves nothing of them.
fn saw(seen: &Seen, stages: usize) {
    assert_ne!(seen.guard.get(), 0, "no execution of the model saw a guard");
    for (stage, count) in seen.stages[..stages].iter().enumerate() {
        assert_ne!(count.get(), 0, "no execution of the model saw instruction {stage}");
    }
}

/// A core that is two batches behind decodes no mixture of three instructions: the second
/// batch begins when every core has synchronised after the first.
#[test]
fn the_short_jump_follows_itself() {
    saw(&JUMP.explore(Some(5)), 2);
}

/// The same by the breakpoint. A trap of the first batch may be handled in the second.
#[test]
fn the_breakpoint_follows_itself() {
    let seen = TRAP.explore(Some(4));
    saw(&seen, 2);
    assert_ne!(seen.retried.get(), 0, "no trap was resolved after its batch");
}

/// One store follows three passes.
#[test]
fn one_store_follows_the_short_jump() {
    saw(&ON_AND_RETARGET.explore(None), 3);
}

/// Three passes follow one store.
#[test]
fn the_short_jump_follows_one_store() {
    saw(&RETARGET_AND_OFF.explore(Some(5)), 3);
}

/// Two batches are under way at the same time, each with synchronisations of its own.
#[test]
fn two_short_jumps_at_the_same_time() {
    saw(&JUMPS_APART.explore(Some(4)), 2);
}

/// The same by the breakpoint, with a resolver for each: what one does not know the other does.
#[test]
fn two_breakpoints_at_the_same_time() {
    saw(&TRAPS_APART.explore(Some(3)), 2);
}

/// Mutant: the second batch writes its tail while a core may hold what the first one stored.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_first_synchronisation_of_the_second_batch() {
    RETARGET_AND_OFF.broken(Break::Skip(4)).explore(Some(4));
}

/// Mutant: the second batch trusts that the first one has synchronised the cores.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_synchronisations_of_the_second_batch() {
    JUMP.broken(Break::SkipFrom(4)).explore(Some(4));
}

/// Mutant: the second batch, of one store, returns while a core may still hold the first call.
#[test]
#[should_panic(expected = "old instruction after the batch")]
fn mutant_without_the_last_synchronisation_of_one_store() {
    ON_AND_RETARGET.broken(Break::Skip(6)).explore(Some(4));
}

/// Mutant: of two batches at the same time, one relies on the other's synchronisations.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_that_synchronises_for_one_of_two() {
    JUMPS_APART.broken(Break::SkipOfSecond).explore(Some(3));
}

/// Mutant: two batches at the same time have one resolver, which knows one of them.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_with_one_resolver_for_two() {
    TRAPS_APART.broken(Break::OneResolver).explore(Some(2));
}
