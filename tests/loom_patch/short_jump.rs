//! The short jump: `eb 03` guards the tail, and no core ever traps.

use fentry::patch::Protocol::ShortJump;

use crate::plan::{Break, CALL, NOP, Plan, Seen};

/// One core that executes the site twice while it is switched on.
const ON: Plan = Plan::one(ShortJump, &[NOP, CALL], &[&[0, 0]]);
/// The same while it is switched off.
const OFF: Plan = Plan::one(ShortJump, &[CALL, NOP], &[&[0, 0]]);

/// A model in which some core did not see some state proves nothing of it.
fn saw_every_state(seen: &Seen) {
    for (what, count) in
        [("old", &seen.stages[0]), ("guard", &seen.guard), ("new", &seen.stages[1])]
    {
        assert_ne!(count.get(), 0, "no execution of the model saw the {what} instruction");
    }
}

/// A nop becomes a call under a core that executes the site twice. It decodes the nop, the
/// jump or the call, whatever mixture of stores its fetches see, and nothing but the call
/// once `apply` has returned. Rests on the manuals' rule for cross-modifying code: what a
/// core decodes was there when it last serialised, or was stored since in one access.
#[test]
fn a_core_decodes_nop_jump_or_call_when_switched_on() {
    saw_every_state(&ON.explore(None));
}

/// The same with a call that becomes a nop.
#[test]
fn a_core_decodes_call_jump_or_nop_when_switched_off() {
    saw_every_state(&OFF.explore(None));
}

/// The same with two cores, which synchronise one after the other.
#[test]
fn two_cores_decode_whole_instructions() {
    saw_every_state(&Plan::one(ShortJump, &[NOP, CALL], &[&[0, 0], &[0]]).explore(Some(3)));
}

/// Two sites in one batch: no site's pass may run ahead of another's synchronisation.
#[test]
fn two_sites_of_a_batch_change_together() {
    let batch = Plan { sites: 2, ..Plan::one(ShortJump, &[NOP, CALL], &[&[0, 1]]) };
    saw_every_state(&batch.explore(None));
}

/// Mutant: tails are written while a core may still hold the old start.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_first_synchronisation() {
    ON.broken(Break::Skip(1)).explore(None);
}

/// Mutant: heads are written while a core may still hold an old tail.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_second_synchronisation() {
    ON.broken(Break::Skip(2)).explore(None);
}

/// Mutant: `apply` returns while a core may still hold the jump.
#[test]
#[should_panic(expected = "guard after the batch")]
fn mutant_without_the_third_synchronisation() {
    ON.broken(Break::Skip(3)).explore(None);
}

/// Mutant: the jump becomes visible byte by byte, as it may at a site that straddles two
/// 8-byte words, which is why `check` refuses one.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_with_a_split_pair() {
    ON.broken(Break::Split).explore(None);
}

/// Mutant: the tail is stored after the head.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_with_late_tails() {
    OFF.broken(Break::LateTails).explore(None);
}
