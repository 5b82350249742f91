//! Quiescence: every thread has been seen outside of what was detached.

use core::ops::Range;
use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

use super::{Retired, State, while_loaded};
use crate::host::error::SynchronizeError;
use crate::host::threads::Survey;
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
        let watched = self.watched();
        if !watched.is_empty() {
            let deadline = Instant::now() + patience;
            let failed = SynchronizeError::Threads;
            let deaf = core::mem::take(&mut self.deaf);
            let mut survey = Survey::begin(deaf).map_err(failed)?;
            let inside = survey.look(own_from, &watched, deadline);
            self.deaf = survey.end();
            if let Some(tid) = inside.map_err(failed)? {
                return Err(SynchronizeError::Inside { tid });
            }
        }
        // SAFETY: after the last detach, under the lock that is still held, every thread has
        // been seen outside of all images that functions have stopped leading to, and without a
        // return address there: so it is in none of their programs either.
        unsafe { self.engine.quiesced() };
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

    /// Where no thread may be for what was detached or unloaded to go, sorted: the code that was
    /// left, and all of the memory of modules that were unloaded. A thread in a program that is
    /// attached, or in a function that has programs at its exit, is in nobody's way.
    fn watched(&self) -> Vec<Range<u64>> {
        let unloaded = |region| self.unloaded.iter().any(|known| known.region == region);
        let mut watched = self.engine.parts().images.ranges(|region, _| unloaded(region));
        // An address on a stack counts if it is strictly inside, and a handler of a signal that
        // came before the first instruction of an image returns to its very start.
        let left = self.engine.code_left();
        watched.extend(left.map(|code| code.start.saturating_sub(1)..code.end));
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
}
