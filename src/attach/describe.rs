//! What is told of functions after they were registered.

use super::engine::Outcome;
use super::{AttachError, Embedder, Engine, FunctionId};
use crate::sync::Ordering;

impl<E: Embedder> Engine<E> {
    /// Says how many arguments these functions have on the stack, in words of 8 bytes, or that
    /// it is not known: see [`FunctionSpec`](super::FunctionSpec).
    ///
    /// # Safety
    /// Each function has no more than that, and its callers have made room for as many.
    ///
    /// # Errors
    /// [`AttachError::Attached`] if one of them has programs, [`AttachError::UnknownFunction`],
    /// [`AttachError::TooManyClasses`], [`AttachError::Table`]; of the functions before the one
    /// it is about, it is known then.
    pub unsafe fn set_stack_arguments(
        &mut self,
        functions: &[FunctionId],
        words: Option<u8>,
    ) -> Outcome<(), E> {
        for &id in functions {
            let unknown = || AttachError::UnknownFunction { index: id.0 };
            let known = self.functions.get(id.0).filter(|info| info.nop().is_some());
            let entry = known.map(|info| info.entry()).ok_or_else(unknown)?;
            if self.is_attached(id) {
                return Err(AttachError::Attached { entry });
            }
            let class = known.and_then(|info| self.class_of(info)).copied().ok_or_else(unknown)?;
            let number = self.class(&class.layout, class.region, words)?;
            let to = self.classes.get(usize::from(number)).and_then(Option::as_ref);
            let empty = to.ok_or_else(unknown)?.empty;
            let (Some(info), Some(record)) = (self.functions.get_mut(id.0), self.records.get(id.0))
            else {
                return Err(unknown());
            };
            info.class = number;
            // Its slot has its index, then it is a user of its class's empty set.
            if record.set.load(Ordering::Relaxed) != 0 {
                record.set.store(empty, Ordering::Relaxed);
                if let Some(set) = self.sets.get_mut(class.empty) {
                    set.users = set.users.saturating_sub(1);
                }
                if let Some(set) = self.sets.get_mut(empty) {
                    set.users = set.users.saturating_add(1);
                }
            }
        }
        Ok(())
    }
}
