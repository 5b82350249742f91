//! From an edit to text: planned, checked, landed, and then either true or taken back.

use core::sync::atomic::Ordering;

use super::engine::Outcome;
use super::{AttachError, Edit, Embedder, Engine, FunctionId, Parts};
use crate::patch::{Batch, CheckedBatch, PatchError, Poke, Protocol};

impl<E: Embedder> Engine<E> {
    /// Applies one edit to every function's list of programs, in one batch.
    ///
    /// # Safety
    /// As [`attach`](Self::attach) or [`detach`](Self::detach), whichever the edit is.
    pub(super) unsafe fn edit(
        &mut self,
        functions: &[FunctionId],
        edit: Edit<'_>,
        pokes: &mut [Poke],
    ) -> Outcome<(), E> {
        if functions.is_empty() {
            return Err(AttachError::NoFunctions);
        }
        self.edits = self.edits.wrapping_add(1).max(1);
        let planned = self.plan(functions, edit, pokes).map_err(|error| match error {
            AttachError::Scratch { .. } => {
                AttachError::Scratch { needed: self.pokes_needed(functions) }
            }
            other => other,
        })?;
        let batch = check::<E>(&self.parts.text, self.protocol, pokes, planned.pokes)?;
        if planned.vacant_slots {
            // SAFETY: every site of `functions` that has a slot to write is in the batch.
            unsafe { self.write_slots(functions, batch.pokes()) }?;
        }
        let Parts { text, cores, .. } = &mut self.parts;
        // SAFETY: the sites are one instruction each (`plan` refuses others) and change to
        // calls of images and thunks that are emitted, or back to nops; the rest is the
        // caller's contract.
        match unsafe { batch.land(text, cores, self.traps) } {
            Ok(()) => {
                self.commit(functions);
                Ok(())
            }
            Err(error) => {
                self.take_back(functions, matches!(error, PatchError::Stuck { .. }));
                Err(AttachError::patch(error))
            }
        }
    }

    /// Makes what [`plan`](Self::plan) decided true of the records. Cannot fail: every set it
    /// needs has been made, and says so in its `next`.
    fn commit(&mut self, functions: &[FunctionId]) {
        for &id in functions {
            let Some(Change { had, from, next }) = self.change_of(id) else { continue };
            let lanes = self.sets.get(next).map_or(0, |set| set.programs.lanes());
            if let Some(record) = self.records.get(id.0) {
                record.set.store(next, Ordering::Relaxed);
                record.lanes.fetch_or(lanes, Ordering::Relaxed);
            }
            if had != 0
                && let Some(old) = self.sets.get_mut(from)
            {
                old.users = old.users.saturating_sub(1);
            }
            if let Some(new) = self.sets.get_mut(next) {
                new.users = new.users.saturating_add(1);
            }
        }
    }

    /// Remembers what a batch that did not land may have left behind. A core may have entered
    /// a new image before its site was taken back, and may still be about to read a slot or a
    /// cookie there. So slots keep their index, for good, and lanes are taken until
    /// quiescence. Where a site is `stuck`, it may lead to its image for ever.
    fn take_back(&mut self, functions: &[FunctionId], stuck: bool) {
        for &id in functions {
            let Some(Change { had, from, next }) = self.change_of(id) else { continue };
            let lanes = self.sets.get(next).map_or(0, |set| set.programs.lanes());
            if let Some(record) = self.records.get(id.0) {
                record.set.store(from, Ordering::Relaxed);
                record.lanes.fetch_or(lanes, Ordering::Relaxed);
            }
            if had == 0
                && let Some(old) = self.sets.get_mut(from)
            {
                old.users = old.users.saturating_add(1);
            }
            if stuck && let Some(new) = self.sets.get_mut(next) {
                new.users = new.users.saturating_add(1);
            }
        }
    }

    /// What the edit in progress makes of the function `id`.
    fn change_of(&self, id: FunctionId) -> Option<Change> {
        let (info, record) = self.functions.get(id.0).zip(self.records.get(id.0))?;
        let had = record.set.load(Ordering::Relaxed);
        let from = if had == 0 { self.class_of(info)?.empty } else { had };
        let old = self.sets.get(from).filter(|set| set.stamp == self.edits)?;
        Some(Change { had, from, next: old.next })
    }
}

/// A function's set, before and after an edit.
#[derive(Clone, Copy)]
struct Change {
    /// What its record says; 0 if its slot was never written.
    had: u32,
    from: u32,
    next: u32,
}

/// Checks the first `count` of `pokes` as a batch. If that fails, the others, which an earlier
/// batch may have used, tell of no conflict.
pub(super) fn check<'a, E: Embedder>(
    text: &E::Text,
    protocol: Protocol,
    pokes: &'a mut [Poke],
    count: usize,
) -> Outcome<CheckedBatch<'a>, E> {
    let (used, others) = pokes.split_at_mut(count.min(pokes.len()));
    Batch::new(protocol, used).check(text).map_err(|error| {
        others.fill(Poke::EMPTY);
        AttachError::check(error)
    })
}
