//! Waiting for quiescence without blocking.

use core::fmt;
use core::time::Duration;

use super::error::SynchronizeError;
use super::shared::{Progress, Shared};
use super::threads;

/// What had been detached when it was made by [`Process::quiescence`](super::Process::quiescence),
/// until it is gone.
///
/// [`Process::synchronize`](super::Process::synchronize) without waiting: ask now and then, from
/// an event loop or a timer, on any thread. Whoever synchronizes meanwhile does the same work, and
/// the next [`poll`](Self::poll) says so.
#[must_use = "nothing happens until it is polled"]
#[derive(Clone, Copy)]
pub struct Quiescence {
    shared: &'static Shared,
    upto: u64,
}

impl fmt::Debug for Quiescence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quiescence").field("upto", &self.upto).finish_non_exhaustive()
    }
}

impl Quiescence {
    pub(super) fn new(shared: &'static Shared) -> Self {
        Self { shared, upto: shared.retirements() }
    }

    /// Looks once at every thread, and frees what no thread is inside of. Gives `true` when that
    /// is everything: no thread is in those programs, and their closures have been dropped.
    ///
    /// Waits for nobody who is inside; for a thread that is busy, until it has answered or for a
    /// millisecond. The closures that are free to go are dropped by the calling thread.
    ///
    /// # Errors
    /// [`SynchronizeError`], but not that a thread is still inside.
    // Little, so that nothing is left on the stack between its caller and what looks at it.
    #[inline(never)]
    pub fn poll(&self) -> Result<bool, SynchronizeError> {
        let caller = threads::stack_pointer();
        if matches!(self.shared.progress(self.upto)?, Progress::Inside(_)) {
            self.shared.quiesce(caller, Duration::from_millis(1))?;
        }
        Ok(matches!(self.shared.progress(self.upto)?, Progress::Gone))
    }
}
