//! A link: what attaching gives, and dropping detaches.

use core::fmt;
use core::mem;
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use super::error::AttachError;
use super::program::Keep;
use super::shared::Shared;
use crate::attach::{FunctionId, Lanes};

/// Programs attached to functions. Dropping it detaches them.
#[must_use = "the programs are detached at once when the link is not kept"]
pub struct Link {
    shared: &'static Shared,
    functions: Arc<[FunctionId]>,
    lanes: Lanes,
    keep: Vec<Keep>,
    attached: bool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(
        shared: &'static Shared,
        functions: Arc<[FunctionId]>,
        lanes: Lanes,
        keep: Vec<Keep>,
    ) -> Self {
        Self { shared, functions, lanes, keep, attached: true }
    }

    /// How many functions the programs are attached to.
    #[must_use]
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Whether there is none; never so for a link that [`Process::attach`](super::Process::attach) gave.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// How often its programs were skipped, because their thread was inside a program already:
    /// [`Recursion::Skip`](super::Recursion::Skip).
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.keep.iter().map(|code| code.skipped()).sum()
    }

    /// Switches the programs off. They keep their place among the functions' programs.
    ///
    /// # Errors
    /// [`AttachError`]; then they are still on.
    pub fn disable(&self) -> Result<(), AttachError> {
        self.shared.set_enabled(&self.functions, self.lanes, false)
    }

    /// Switches the programs on again.
    ///
    /// # Errors
    /// [`AttachError`]; then they are still off.
    pub fn enable(&self) -> Result<(), AttachError> {
        self.shared.set_enabled(&self.functions, self.lanes, true)
    }

    /// Detaches the programs. When this returns, no later call runs them; a thread may still
    /// be in one, until [`Process::synchronize`](super::Process::synchronize) has returned.
    ///
    /// # Errors
    /// [`DetachError`], with the link: everything is still attached.
    pub fn detach(mut self) -> Result<(), Box<DetachError>> {
        match self.try_detach() {
            Ok(()) => Ok(()),
            Err(cause) => Err(Box::new(DetachError { link: self, cause })),
        }
    }

    /// Leaves the programs attached for ever.
    pub fn leak(mut self) {
        self.attached = false;
        mem::forget(mem::take(&mut self.keep));
    }

    fn try_detach(&mut self) -> Result<(), AttachError> {
        if self.attached {
            self.shared.detach(&self.functions, self.lanes, &mut self.keep)?;
            self.attached = false;
        }
        Ok(())
    }
}

impl Drop for Link {
    /// Detaches the programs. If that fails, they stay attached, and their data with them;
    /// [`detach`](Link::detach) tells why. So they do where the link is dropped by what interrupts
    /// an operation of its own thread.
    fn drop(&mut self) {
        if self.try_detach().is_err() {
            mem::forget(mem::take(&mut self.keep));
        }
    }
}

/// Why programs are still attached, and the link that says where.
#[derive(Debug)]
pub struct DetachError {
    /// The link. It may be tried again, or leaked; dropped, it tries once more.
    pub link: Link,
    /// Why.
    pub cause: AttachError,
}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "still attached: {}", self.cause)
    }
}

impl core::error::Error for DetachError {}
