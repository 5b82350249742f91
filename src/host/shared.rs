//! The state and its lock: what the front door and every link share.

use core::cell::Cell;
use core::mem;
use core::time::Duration;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::vec::Vec;

use super::error::{AttachError, SynchronizeError};
use super::program::Keep;
use super::state::State;
use crate::attach::{FunctionId, Lanes};

/// How long [`Shared::synchronize`] waits for a thread that is inside.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it keeps the lock meanwhile. Threads that wait for the lock do not move, and one of
/// them may seem to be inside.
const HOLD: Duration = Duration::from_millis(50);

std::thread_local! {
    /// Whether this thread is dropping what was retired.
    static DROPPING: Cell<bool> = const { Cell::new(false) };
}

/// The state of this process, behind its lock.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Told when a thread has dropped what was retired.
    dropped: Condvar,
}

impl Shared {
    pub const fn new(state: State) -> Self {
        Self { state: Mutex::new(state), dropped: Condvar::new() }
    }

    pub fn detach(
        &self,
        functions: &Arc<[FunctionId]>,
        lanes: Lanes,
        keep: &mut Vec<Keep>,
    ) -> Result<(), AttachError> {
        self.locked(|state| {
            state.operate(functions, |engine, pokes| {
                // SAFETY: the modules stay loaded while a link exists (contract of `attach`),
                // and the engine is the only one that patches them.
                unsafe { engine.detach(functions, lanes, pokes) }
            })?;
            state.retire(functions, mem::take(keep));
            Ok(())
        })
    }

    pub fn set_enabled(
        &self,
        functions: &[FunctionId],
        lanes: Lanes,
        enabled: bool,
    ) -> Result<(), AttachError> {
        self.locked(|state| {
            state.operate(functions, |engine, pokes| {
                // SAFETY: as in `detach`; whoever attached the programs said that they may run.
                unsafe { engine.set_enabled(functions, lanes, enabled, pokes) }
            })
        })
    }

    /// As [`Process::synchronize`](super::Process::synchronize), for a caller whose stack
    /// pointer was `caller`.
    pub fn synchronize(&self, caller: u64) -> Result<(), SynchronizeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.locked(|state| state.quiesce(caller, HOLD)) {
                Err(SynchronizeError::Inside { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        // Another thread may have found the same closures free to be dropped, and be at it. Not
        // if this is in one's `drop`: the two would wait for each other.
        if !DROPPING.get() {
            let state = self.lock();
            let dropped = self.dropped.wait_while(state, |state| state.dropping != 0);
            drop(dropped.unwrap_or_else(PoisonError::into_inner));
        }
        Ok(())
    }

    /// Does something under the lock, and drops without it what may be dropped by then.
    pub fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        let done = mem::take(&mut state.done);
        if !done.is_empty() {
            state.dropping += 1;
            drop(state);
            let _dropping = Dropping { shared: self, outer: DROPPING.replace(true) };
            drop(done);
        }
        result
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves the engine whole: its operations have no half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that drops what was retired, until it is done, or a `drop` panics.
struct Dropping<'a> {
    shared: &'a Shared,
    outer: bool,
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        DROPPING.set(self.outer);
        self.shared.lock().dropping -= 1;
        self.shared.dropped.notify_all();
    }
}
