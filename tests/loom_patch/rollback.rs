//! Taking a batch back: a store or a synchronisation fails, at every step there is.
//!
//! What the cores may see is the same as in a batch that lands; what they must not see is a
//! new instruction at a site whose head was never stored, or anything but the old one once
//! `apply` has returned.

use fentry::patch::Protocol::{Breakpoint, ShortJump};

use crate::plan::{Break, CALL, NOP, Plan};

/// Two sites, so that a pass can fail between them, and a core that executes both.
const JUMP: Plan = Plan { sites: 2, ..Plan::one(ShortJump, &[NOP, CALL], &[&[0, 1]]) };
const TRAP: Plan = Plan { sites: 2, ..Plan::one(Breakpoint, &[NOP, CALL], &[&[0, 1]]) };
/// The same with a core that executes the first site twice: before a failure and after it.
const AGAIN: Plan = Plan { sites: 2, ..Plan::one(ShortJump, &[NOP, CALL], &[&[0, 0]]) };

/// Stores of a batch of two sites: one for each site in each of three passes.
const STORES: usize = 6;
/// Synchronisations of a batch.
const SYNCHRONISATIONS: usize = 3;

/// Runs `plan` and demands that it has shown the old instruction, the guard where one was
/// stored, and the new instruction exactly where a head was.
fn shows(plan: Plan, guarded: bool, headed: bool) {
    let seen = plan.explore(Some(3));
    assert_ne!(seen.stages[0].get(), 0, "{:?}: nobody saw the old instruction", plan.breaks);
    assert_eq!(seen.guard.get() != 0, guarded, "{:?}: guards", plan.breaks);
    assert_eq!(seen.stages[1].get() != 0, headed, "{:?}: new instructions", plan.breaks);
}

/// The short jump, with each of its stores failing.
#[test]
fn a_failed_store_is_taken_back_from_the_short_jump() {
    for number in 1..=STORES {
        shows(JUMP.broken(Break::Store(number)), number > 1, number > 5);
        shows(AGAIN.broken(Break::Store(number)), number > 1, number > 5);
    }
}

/// The breakpoint, with each of its stores failing. A core that traps meanwhile behaves as
/// the new instruction, for that is what its handler was told to do from the first `int3` on.
#[test]
fn a_failed_store_is_taken_back_from_the_breakpoint() {
    for number in 1..=STORES {
        shows(TRAP.broken(Break::Store(number)), number > 1, number > 5);
    }
}

/// Both, with each synchronisation failing, and reaching no core when it does.
#[test]
fn a_failed_synchronisation_is_taken_back() {
    for number in 1..=SYNCHRONISATIONS {
        shows(JUMP.broken(Break::Synchronise(number)), true, number > 2);
        shows(TRAP.broken(Break::Synchronise(number)), true, number > 2);
    }
}

/// A batch that can neither go on nor back stays where it is: sites are old, new, or guarded
/// by a jump, which are all instructions.
#[test]
fn a_batch_that_is_stuck_leaves_instructions() {
    for number in 2..=STORES {
        shows(JUMP.broken(Break::StoresFrom(number)), true, number > 5);
    }
    for number in 1..=SYNCHRONISATIONS {
        shows(JUMP.broken(Break::SynchronisesFrom(number)), true, number > 2);
    }
}

/// Mutant: the last store fails, and after the first site has been guarded again its old tail
/// is written while a core may still hold the new head.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_synchronisation_before_the_tails() {
    AGAIN.broken(Break::StoreAndSkip(STORES, 3)).explore(Some(3));
}

/// Mutant: the old head is written while a core may still hold the new tail.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_synchronisation_after_the_tails() {
    AGAIN.broken(Break::StoreAndSkip(STORES, 4)).explore(Some(3));
}

/// Mutant: a tail was stored, the next was not, and the old head comes at once.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_without_the_synchronisation_after_the_tails_of_an_unheaded_batch() {
    AGAIN.broken(Break::StoreAndSkip(4, 3)).explore(Some(3));
}

/// Mutant: `apply` returns while a core may still hold the guard.
#[test]
#[should_panic(expected = "guard after the batch")]
fn mutant_without_the_last_synchronisation() {
    AGAIN.broken(Break::StoreAndSkip(STORES, 5)).explore(Some(3));
}

/// Mutant: the same for the breakpoint.
#[test]
#[should_panic(expected = "torn instruction")]
fn mutant_of_the_breakpoint_without_the_synchronisation_after_the_tails() {
    TRAP.broken(Break::StoreAndSkip(STORES, 4)).explore(Some(3));
}
