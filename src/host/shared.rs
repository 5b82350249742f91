//! The state and its lock: what the front door and every link share.

use core::cell::Cell;
use core::mem;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;
use std::vec::Vec;

use super::error::{AttachError, SynchronizeError};
use super::functions::Catalogue;
use super::lock::{Guard, Lock, Unavailable};
use super::program::Keep;
use super::state::State;
use super::threads;
use crate::attach::{FunctionId, Lanes};

/// How long [`Shared::synchronize`] waits for a thread that is inside.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it keeps the lock meanwhile, at first; then twice as long each time. Threads that
/// wait for the lock do not move, and one of them may seem to be inside.
const HOLD: Duration = Duration::from_millis(50);

std::thread_local! {
    /// Whether this thread is dropping what was retired.
    static DROPPING: Cell<bool> = const { Cell::new(false) };
}

/// The state of this process, behind its lock.
pub(super) struct Shared {
    state: Lock<State>,
    /// A copy of the state's, for those who only read it: also where the lock is their own.
    catalogue: Lock<Arc<Catalogue>>,
    /// A copy of the state's.
    retirements: AtomicU64,
    /// The process whose hooks these are: this one, or one that has forked it.
    owner: AtomicU32,
}

/// Whether what was retired is gone.
pub(super) enum Progress {
    Gone,
    /// A thread seems to be inside.
    Inside(i32),
    /// Another thread drops it.
    Dropping,
}

impl Shared {
    pub fn new(state: State) -> Self {
        Self {
            catalogue: Lock::new(Arc::clone(&state.catalogue)),
            state: Lock::new(state),
            retirements: AtomicU64::new(0),
            owner: AtomicU32::new(std::process::id()),
        }
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
        })?
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
        })?
    }

    /// As [`Process::synchronize`](super::Process::synchronize), for a caller whose stack
    /// pointer was `caller`.
    pub fn synchronize(&self, caller: u64) -> Result<(), SynchronizeError> {
        let deadline = Instant::now() + PATIENCE;
        let upto = self.retirements();
        let mut hold = HOLD;
        // Once in any case: modules may have been unloaded.
        let mut progress = self.quiesce(caller, hold)?;
        loop {
            let error = match progress {
                Progress::Gone => match self.progress(upto)? {
                    Progress::Gone => return Ok(()),
                    // The two would wait for each other.
                    _ if DROPPING.get() => return Ok(()),
                    _ => SynchronizeError::Dropping,
                },
                // It does not move while it waits.
                Progress::Inside(tid) if threads::is_own(tid) => {
                    return Err(SynchronizeError::Inside { tid });
                }
                Progress::Inside(tid) => SynchronizeError::Inside { tid },
                Progress::Dropping => SynchronizeError::Dropping,
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(1));
            if matches!(progress, Progress::Inside(_)) {
                hold *= 2;
                progress = self.quiesce(caller, hold)?;
            }
        }
    }

    /// Tries to free what was retired.
    pub fn quiesce(&self, caller: u64, hold: Duration) -> Result<Progress, SynchronizeError> {
        match self.locked(|state| state.quiesce(caller, hold))? {
            Ok(()) => Ok(Progress::Gone),
            Err(SynchronizeError::Inside { tid }) => Ok(Progress::Inside(tid)),
            Err(error) => Err(error),
        }
    }

    /// Whether the first `upto` retirements are over, as far as is known. `Inside` names nobody.
    pub fn progress(&self, upto: u64) -> Result<Progress, Unavailable> {
        let state = self.lock()?;
        Ok(if state.gone < upto {
            Progress::Inside(0)
        } else if state.dropping.iter().any(|&from| from < upto) {
            Progress::Dropping
        } else {
            Progress::Gone
        })
    }

    /// How much has been retired.
    pub fn retirements(&self) -> u64 {
        self.retirements.load(Ordering::Acquire)
    }

    /// What is known to be loaded. Empty where a signal handler interrupts its being read.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.lock().map_or_else(|_| Arc::default(), |catalogue| Arc::clone(&catalogue))
    }

    /// Does something under the lock, and drops without it what may be dropped by then.
    pub fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, Unavailable> {
        let mut state = self.lock()?;
        state.called_from = threads::stack_pointer();
        let result = work(&mut state);
        self.retirements.store(state.retirements, Ordering::Release);
        let catalogue = Arc::clone(&state.catalogue);
        let before = self.catalogue.lock().map(|mut known| mem::replace(&mut *known, catalogue));
        let done = mem::take(&mut state.done);
        if done.is_empty() {
            return Ok(result);
        }
        let from = done.iter().map(|retired| retired.number).min().unwrap_or(0);
        state.dropping.push(from);
        drop(state);
        let _dropping = Dropping { shared: self, from, outer: DROPPING.replace(true) };
        drop((before, done));
        Ok(result)
    }

    fn lock(&self) -> Result<Guard<'_, State>, Unavailable> {
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != std::process::id() {
            return Err(Unavailable::Forked { owner });
        }
        // A panic under the lock leaves the engine whole: its operations have no half-way.
        self.state.lock()
    }

    /// Whether the calling thread has the lock.
    pub fn is_locked_here(&self) -> bool {
        self.state.is_own()
    }

    /// Before `fork`: waits until nothing is half-way, and keeps it so. Whether it could.
    pub fn before_fork(&self) -> bool {
        let (Ok(mut state), Ok(catalogue)) = (self.lock(), self.catalogue.lock()) else {
            return false;
        };
        state.copy_images();
        mem::forget((state, catalogue));
        true
    }

    /// After `fork`, in both processes.
    ///
    /// # Safety
    /// The calling thread's [`before_fork`](Self::before_fork) was `true`, or it is the only
    /// thread of a child.
    pub unsafe fn after_fork(&self, in_child: bool, prepared: bool) {
        if prepared {
            // SAFETY: `before_fork` has forgotten its guard, so this thread has it; in the
            // child, nobody else is there.
            let state = unsafe { self.state.get() };
            if !in_child {
                state.drop_copies();
            } else if state.adopt_copies().is_ok() {
                // Who dropped closures is in the parent, and the closures that are half dropped.
                state.dropping.clear();
                self.owner.store(std::process::id(), Ordering::Relaxed);
            }
        }
        // SAFETY: as above; where nothing was prepared, this is the only thread of a child.
        unsafe {
            self.catalogue.release();
            self.state.release();
        }
    }
}

/// A thread that drops what was retired, until it is done, or a `drop` panics.
struct Dropping<'a> {
    shared: &'a Shared,
    from: u64,
    outer: bool,
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        DROPPING.set(self.outer);
        if let Ok(mut state) = self.shared.lock()
            && let Some(found) = state.dropping.iter().position(|&from| from == self.from)
        {
            state.dropping.swap_remove(found);
        }
    }
}
