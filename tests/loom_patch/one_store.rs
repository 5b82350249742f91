//! One store of a whole site: a call gets another target, and no core ever sees a guard.

use fentry::patch::Protocol::ShortJump;

use crate::plan::{Break, CALL, NOP, OTHER_CALL, Plan, Seen};

/// One core that executes the site twice while its call gets another target.
const RETARGET: Plan =
    Plan { one_store: true, ..Plan::one(ShortJump, &[CALL, OTHER_CALL], &[&[0, 0]]) };
/// The same with two sites.
const TWO: Plan = Plan { sites: 2, cores: &[&[0, 1]], ..RETARGET };

/// Only the old and the new call may be seen, and both must be.
fn saw_both(seen: &Seen) {
    let [old, new, _] = &seen.stages;
    for (what, count) in [("old", old), ("new", new)] {
        assert_ne!(count.get(), 0, "no execution of the model saw the {what} call");
    }
    assert_eq!(seen.guard.get(), 0, "a guard where none was needed");
}

/// A core decodes the old call or the new one, and nothing but the new one once `apply` has
/// returned. Rests on the store's being one access that a fetch sees whole or not at all, which
/// is what an embedder promises of `can_store_site`.
#[test]
fn a_core_decodes_one_call_or_the_other() {
    saw_both(&RETARGET.explore(None));
}

/// The same with two cores, which synchronise one after the other.
#[test]
fn two_cores_decode_one_call_or_the_other() {
    saw_both(&Plan { cores: &[&[0, 0], &[0]], ..RETARGET }.explore(Some(4)));
}

/// The same with two sites.
#[test]
fn two_calls_of_a_batch_get_other_targets() {
    saw_both(&TWO.explore(None));
}

/// Where a nop becomes a call, the site is written in three passes, though it could be stored
/// at once: what a core decodes may begin at any of its bytes.
#[test]
fn a_nop_is_not_replaced_in_one_store() {
    let seen = Plan { stages: &[NOP, CALL], ..RETARGET }.explore(None);
    assert_ne!(seen.guard.get(), 0, "no execution of the model saw the guard");
}

/// The store at the second site fails, and the first one gets its old target back.
#[test]
fn a_failed_store_is_taken_back() {
    saw_both(&TWO.broken(Break::Store(2)).explore(None));
    saw_both(&TWO.broken(Break::Synchronise(3)).explore(None));
}

/// Mutant: the site becomes visible byte by byte.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_with_a_split_site() {
    RETARGET.broken(Break::Split).explore(None);
}

/// Mutant: `apply` returns while a core may still hold the old call.
#[test]
#[should_panic(expected = "old instruction after the batch")]
fn mutant_without_the_last_synchronisation() {
    RETARGET.broken(Break::Skip(3)).explore(None);
}
