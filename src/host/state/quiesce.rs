//! Quiescence: every thread has been seen outside of what was detached.

use core::ops::Range;
use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

use super::{Retired, State, while_loaded};
use crate::attach::Quiesce;
use crate::host::error::SynchronizeError;
use crate::host::threads::{Deaf, Survey};
use crate::patch::Poke;

impl State {
    /// Waits until every thread has been seen outside of what was detached, lets the engine
    /// free what is unused, and gives the padding back.
    ///
    /// Waits so long at most. Of the calling thread's stack, `own_from` and what is above it is
    /// looked at.
    pub fn quiesce(&mut self, own_from: u64, patience: Duration) -> Result<(), SynchronizeError> {
        // If what is loaded cannot be listed, nothing is found to be unloaded, and nothing of
        // it goes.
        let _ = while_loaded(|loaded| self.drop_unloaded(loaded));
        let unloaded = self.unloaded.len();
        let gone = |region| self.unloaded.iter().any(|known| known.region == region);
        let mut looking = Looking {
            unloaded: self.engine.parts().images.ranges(gone),
            own_from,
            deadline: Instant::now() + patience,
            deaf: core::mem::take(&mut self.deaf),
        };
        // Under the lock that is still held: nothing is attached or detached meanwhile.
        let retired = self.engine.retire(&mut looking);
        self.deaf = looking.deaf;
        retired?;
        // Text of modules that were unloaded is not written to, nor is that of others while it
        // may be unloaded; if they cannot be listed, none.
        let _ = while_loaded(|loaded| {
            if self.drop_unloaded(loaded).is_ok() {
                for Retired { functions, .. } in &self.retired {
                    let mut pokes = std::vec![Poke::EMPTY; functions.len()];
                    // SAFETY: quiescent as of now; the text refuses what is no longer loaded.
                    // Where it does, slots keep their index, which does no harm.
                    let _ = unsafe { self.engine.vacate(functions, &mut pokes) };
                }
                // SAFETY: every thread has been seen outside of what was emitted for these, and
                // without their text, none gets there.
                unsafe { self.forget_unloaded(unloaded) };
            }
        });
        self.done.append(&mut self.retired);
        self.gone = self.retirements;
        Ok(())
    }
}

/// Looks at every thread of this process.
struct Looking {
    /// Memory of modules that were unloaded: none of it may be used any more.
    unloaded: Vec<Range<u64>>,
    own_from: u64,
    deadline: Instant,
    deaf: Deaf,
}

// SAFETY: a survey gives no thread only when every thread has been seen outside of the ranges
// that are watched, and without an address there on its stack that it may return to.
unsafe impl Quiesce for Looking {
    type Error = SynchronizeError;

    fn wait(&mut self, code: &mut dyn Iterator<Item = Range<u64>>) -> Result<(), SynchronizeError> {
        let watched = watched(&self.unloaded, code);
        if watched.is_empty() {
            return Ok(());
        }
        let failed = SynchronizeError::Threads;
        let mut survey = Survey::begin(core::mem::take(&mut self.deaf)).map_err(failed)?;
        let inside = survey.look(self.own_from, &watched, self.deadline);
        self.deaf = survey.end();
        match inside.map_err(failed)? {
            Some(tid) => Err(SynchronizeError::Inside { tid }),
            None => Ok(()),
        }
    }
}

/// Where no thread may be for what was detached or unloaded to go, sorted. A thread in a program
/// that is attached, or in a function that has programs at its exit, is in nobody's way.
fn watched(unloaded: &[Range<u64>], code: &mut dyn Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut watched = unloaded.to_vec();
    // An address on a stack counts if it is strictly inside, and a handler of a signal that came
    // before the first instruction of an image returns to its very start.
    watched.extend(code.map(|code| code.start.saturating_sub(1)..code.end));
    watched.sort_unstable_by_key(|range| range.start);
    watched.dedup_by(|next, before| {
        let joined = next.start <= before.end;
        if joined {
            before.end = before.end.max(next.end);
        }
        joined
    });
    watched
}
