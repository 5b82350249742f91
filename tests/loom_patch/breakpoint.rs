//! The breakpoint: `int3` guards the tail, and a core that meets it asks the resolver.

use fentry::patch::Protocol::Breakpoint;

use crate::plan::{Break, CALL, NOP, Plan, Seen};

/// One core that executes the site twice while it is switched on.
const ON: Plan = Plan::one(Breakpoint, &[NOP, CALL], &[&[0, 0]]);
/// The same while it is switched off.
const OFF: Plan = Plan::one(Breakpoint, &[CALL, NOP], &[&[0, 0]]);

/// A model in which some core did not see some state proves nothing of it.
fn saw_every_state(seen: &Seen) {
    let Seen { stages: [old, new, _], guard, emulated, retried, .. } = seen;
    for (what, count) in [("old", old), ("guard", guard), ("new", new)] {
        assert_ne!(count.get(), 0, "no execution of the model saw the {what} instruction");
    }
    assert_ne!(emulated.get(), 0, "no trap was resolved during the batch");
    assert_ne!(retried.get(), 0, "no trap was resolved after the batch");
}

/// A nop becomes a call, byte by byte, under a core that executes the site twice. It decodes
/// the nop, `int3` or the call, and nothing but the call once `apply` has returned. A trap is
/// resolved as the call while the batch is there, and retried when it is over, and what is
/// retried is the call. Rests on the manuals' rule for cross-modifying code, and on one byte
/// being one access at any alignment.
#[test]
fn a_core_decodes_nop_trap_or_call_when_switched_on() {
    saw_every_state(&ON.explore(Some(4)));
}

/// The same with a call that becomes a nop; a trap goes on behind the site.
#[test]
fn a_core_decodes_call_trap_or_nop_when_switched_off() {
    saw_every_state(&OFF.explore(Some(4)));
}

/// One core that executes the site once, in every order there is.
#[test]
fn a_core_decodes_whole_instructions_in_every_order() {
    saw_every_state(&Plan::one(Breakpoint, &[NOP, CALL], &[&[0]]).explore(None));
}

/// Two cores, which synchronise one after the other and may both be in the resolver.
#[test]
fn two_cores_trap_at_the_same_time() {
    saw_every_state(&Plan::one(Breakpoint, &[NOP, CALL], &[&[0], &[0]]).explore(Some(3)));
}

/// Two sites in one batch: no site's pass may run ahead of another's synchronisation, and a
/// trap is resolved as the instruction of its own site.
#[test]
fn two_sites_of_a_batch_change_together() {
    let batch = Plan { sites: 2, ..Plan::one(Breakpoint, &[NOP, CALL], &[&[0, 1]]) };
    saw_every_state(&batch.explore(Some(3)));
}

/// Mutant: tails are written while a core may still hold the old first byte.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_first_synchronisation() {
    ON.broken(Break::Skip(1)).explore(Some(4));
}

/// Mutant: heads are written while a core may still hold an old tail.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_second_synchronisation() {
    ON.broken(Break::Skip(2)).explore(Some(4));
}

/// Mutant: `apply` returns while a core may still hold the `int3`.
#[test]
#[should_panic(expected = "guard after the batch")]
fn mutant_without_the_third_synchronisation() {
    ON.broken(Break::Skip(3)).explore(Some(4));
}

/// Mutant: the tail is stored after the first byte.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_with_late_tails() {
    OFF.broken(Break::LateTails).explore(Some(4));
}

/// Mutant: the `int3` becomes visible before the batch does, so that the resolver does not
/// know it. Rests on the order of stores, which `Text` promises.
#[test]
#[should_panic(expected = "our own trap was passed on")]
fn mutant_with_a_guard_that_overtakes_the_batch() {
    ON.broken(Break::Overtake).explore(Some(4));
}
