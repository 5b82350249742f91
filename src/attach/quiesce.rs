//! How an embedder knows that no core is inside of what was left.

use core::fmt::{Debug, Display};
use core::ops::Range;

use super::{Embedder, Engine};

/// What waits for quiescence: a kernel for its grace period (Linux: `synchronize_rcu_tasks`), a
/// process until it has looked at its threads.
///
/// # Safety
/// An implementer promises that, when [`wait`](Self::wait) has returned `Ok`, every core and
/// thread has been seen outside of the `code` that it was given, and without a return address
/// there, at some time since it was called; or that none which was inside will ever run again.
pub unsafe trait Quiesce {
    /// Why one may still be inside.
    type Error: Debug + Display;

    /// Waits, as long as it thinks right. `code` is in no order.
    ///
    /// # Errors
    /// The embedder's; then nothing is freed.
    fn wait(&mut self, code: &mut dyn Iterator<Item = Range<u64>>) -> Result<(), Self::Error>;
}

impl<E: Embedder> Engine<E> {
    /// Waits for quiescence, and [frees](Self::quiesced) what nothing leads to any more. Gives
    /// the number of images that were freed.
    ///
    /// # Errors
    /// What `quiesce` says; then nothing was freed, and it may be tried again.
    pub fn retire<Q: Quiesce>(&mut self, quiesce: &mut Q) -> Result<usize, Q::Error> {
        quiesce.wait(&mut self.code_left())?;
        // SAFETY: seen outside of all code that was left (`Quiesce`), and nothing was attached
        // or detached meanwhile: this engine is borrowed exclusively.
        Ok(unsafe { self.quiesced() })
    }
}
