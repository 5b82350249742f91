//! Quiescence: every thread has been seen outside of what was detached.

use core::cell::Cell;
use core::ops::Range;
use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

use super::{Retired, State};
use crate::host::discover;
use crate::host::error::SynchronizeError;
use crate::host::threads::{self, ThreadsError, Verdict};
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
        let _ = discover::while_loaded(|loaded| self.drop_unloaded(loaded));
        let unloaded = self.unloaded.len();
        let watched = self.watched();
        if !watched.is_empty() {
            let deadline = Instant::now() + patience;
            let failed = SynchronizeError::Threads;
            let mut outside = Outside::new(own_from).map_err(failed)?;
            while let Some(tid) = outside.look(&watched).map_err(failed)? {
                if Instant::now() > deadline {
                    return Err(SynchronizeError::Inside { tid });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // SAFETY: after the last detach, under the lock that is still held, every thread has
        // been seen outside of all images that functions have stopped leading to, and without a
        // return address there: so it is in none of their programs either.
        unsafe { self.engine.quiesced() };
        // Text of modules that were unloaded is not written to, nor is that of others while it
        // may be unloaded; if they cannot be listed, none.
        let _ = discover::while_loaded(|loaded| {
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

/// The threads that have been seen outside. Once is enough: whoever enters emitted code after
/// that enters what is attached now. So busy threads need not all be outside at one moment.
///
/// A thread that was started since may have the id of one that has ended. It began outside.
struct Outside {
    tids: Cell<Vec<i32>>,
    own_from: u64,
}

impl Outside {
    fn new(own_from: u64) -> Result<Self, ThreadsError> {
        // Room for threads that are started meanwhile: while they are held, nothing allocates.
        // One for which there is none has to be seen again.
        let tids = Vec::with_capacity(threads::thread_count()? * 2 + 64);
        Ok(Self { tids: Cell::new(tids), own_from })
    }

    /// Looks at every thread. One that was not yet seen outside of the watched ranges, or
    /// without a return address there, if there is one.
    fn look(&mut self, watched: &[Range<u64>]) -> Result<Option<i32>, ThreadsError> {
        // Nothing but threads' ids leaves the judge: the word that was found on a stack, were
        // it kept on this one, would be found there the next time.
        let inside = Cell::new(None);
        threads::inspect_callers(self.own_from, watched, |seen| {
            let mut outside = self.tids.take();
            if !outside.contains(&seen.tid) {
                if !seen.is_outside() {
                    inside.set(Some(seen.tid));
                } else if outside.len() < outside.capacity() {
                    outside.push(seen.tid);
                }
            }
            self.tids.set(outside);
            Verdict::LEAVE
        })?;
        Ok(inside.get())
    }
}
