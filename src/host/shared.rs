//! The state and its lock: what the front door and every link share.

use core::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::error::AttachError;
use super::program::Keep;
use super::state::State;
use crate::attach::{FunctionId, Lanes};

/// The state of this process, behind its lock.
pub(super) struct Shared(Mutex<State>);

impl Shared {
    pub const fn new(state: State) -> Self {
        Self(Mutex::new(state))
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

    /// Does something under the lock, and drops without it what may be dropped by then.
    pub fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        let done = mem::take(&mut state.done);
        drop(state);
        drop(done);
        result
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves the engine whole: its operations have no half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
