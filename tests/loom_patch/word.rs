//! Words: one store for each site, and no core ever sees a guard.

use fentry::encode::aarch64::{NOP, WORD};

use crate::plan::Break;
use crate::word_machine::Plan;

/// `bl`, neither half of which is the nop's.
const CALL: [u8; WORD] = [0xf1, 0xf2, 0x03, 0x94];
/// `bl` to elsewhere.
const OTHER_CALL: [u8; WORD] = [0xe1, 0xe2, 0x03, 0x94];

/// One core that executes the site twice while it is switched on.
const ON: Plan = Plan {
    stages: &[NOP, CALL],
    sites: 1,
    apart: false,
    cores: &[&[0, 0]],
    breaks: Break::Nothing,
};
/// The same while it is switched off.
const OFF: Plan = Plan { stages: &[CALL, NOP], ..ON };
/// The same while it is switched on, then gets another target.
const ON_AND_RETARGET: Plan = Plan { stages: &[NOP, CALL, OTHER_CALL], ..ON };
/// Two sites of one batch.
const TWO: Plan = Plan { sites: 2, cores: &[&[0, 1]], ..ON };
/// The same with a core that executes the first one twice: before a failure and after it.
const AGAIN: Plan = Plan { cores: &[&[0, 0]], ..TWO };

/// A nop becomes a call under a core that executes the site twice. It executes the nop or the
/// call, whatever its fetches and the caches do, and nothing but the call once `apply` has
/// returned.
#[test]
fn a_core_executes_nop_or_call_when_switched_on() {
    ON.explore(None).saw(2);
}

/// The same with a call that becomes a nop.
#[test]
fn a_core_executes_call_or_nop_when_switched_off() {
    OFF.explore(None).saw(2);
}

/// The same with two cores, which synchronise one after the other.
#[test]
fn two_cores_execute_whole_instructions() {
    Plan { cores: &[&[0, 0], &[0]], ..ON }.explore(Some(2)).saw(2);
}

/// The same with two sites of one batch, which has one synchronisation for both.
#[test]
fn two_sites_of_a_batch_change_together() {
    TWO.explore(Some(3)).saw(2);
}

/// A second batch begins as soon as the first has returned: a core is at most one behind.
#[test]
fn a_batch_follows_another() {
    ON_AND_RETARGET.explore(Some(3)).saw(3);
}

/// Two batches are under way at the same time, each with a flush and a synchronisation of its
/// own.
#[test]
fn two_batches_at_the_same_time() {
    Plan { apart: true, ..TWO }.explore(Some(2)).saw(2);
}

/// The second of two stores fails: the new instruction may have been seen at the first site,
/// never at the second, and nowhere once `apply` has returned.
#[test]
fn a_failed_store_is_taken_back() {
    TWO.broken(Break::Store(2)).explore(Some(2)).saw(2);
    AGAIN.broken(Break::Store(2)).explore(Some(3)).saw(2);
}

/// The first store fails, and there is nothing to take back.
#[test]
fn a_first_store_that_fails_changes_nothing() {
    let seen = AGAIN.broken(Break::Store(1)).explore(Some(3));
    seen.saw(1);
    assert_eq!(seen.stages[1].get(), 0, "a new instruction was seen");
}

/// The synchronisation fails, and reaches no core when it does.
#[test]
fn a_failed_synchronisation_is_taken_back() {
    TWO.broken(Break::Synchronise(1)).explore(Some(2)).saw(2);
    AGAIN.broken(Break::Synchronise(1)).explore(Some(3)).saw(2);
}

/// A batch that can neither go on nor back leaves the old instruction or the new one.
#[test]
fn a_batch_that_is_stuck_leaves_instructions() {
    TWO.broken(Break::StoresFrom(2)).explore(Some(2)).saw(2);
    TWO.broken(Break::SynchronisesFrom(1)).explore(Some(2)).saw(2);
}

/// Mutant: `apply` returns while a core may still execute the old instruction.
#[test]
#[should_panic(expected = "old instruction after the batch")]
fn mutant_without_the_synchronisation() {
    ON.broken(Break::Skip(1)).explore(None);
}

/// Mutant: cores synchronise, and find the old instruction in their caches again.
#[test]
#[should_panic(expected = "old instruction after the batch")]
fn mutant_without_the_flush() {
    ON.broken(Break::SkipFlush(1)).explore(None);
}

/// Mutant: a word becomes visible in two halves.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_with_a_split_word() {
    ON.broken(Break::Split).explore(None);
}

/// Mutant: the second batch relies on the synchronisation of the first.
#[test]
#[should_panic(expected = "old instruction after the batch")]
fn mutant_without_the_synchronisation_of_the_second_batch() {
    ON_AND_RETARGET.broken(Break::Skip(2)).explore(Some(3));
}

/// Mutant: of two batches at the same time, one relies on the other's synchronisation.
#[test]
#[should_panic(expected = "old instruction after the batch")]
fn mutant_that_synchronises_for_one_of_two() {
    Plan { apart: true, ..TWO }.broken(Break::SkipOfSecond).explore(Some(2));
}

/// Mutant: a failed batch returns while a core may still execute what was taken back.
#[test]
#[should_panic(expected = "new instruction after it was taken back")]
fn mutant_without_the_synchronisation_of_what_was_taken_back() {
    AGAIN.broken(Break::StoreAndSkip(2, 1)).explore(Some(3));
}

/// Mutant: what was taken back is not flushed, and a cache has written the new instruction back.
#[test]
#[should_panic(expected = "new instruction after it was taken back")]
fn mutant_without_the_flush_of_what_was_taken_back() {
    AGAIN.broken(Break::StoreAndSkipFlush(2, 1)).explore(Some(3));
}
