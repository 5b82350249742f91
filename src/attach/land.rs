//! From an edit to text: planned, checked, landed, and then either true or taken back.

use super::engine::Outcome;
use super::{AttachError, Edit, Embedder, Engine, FunctionId, Parts};
use crate::patch::{Batch, CheckedBatch, PatchError, Poke, Protocol};
use crate::sync::Ordering;

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
        self.settle_records(
            functions,
            |change| change.next,
            |had, change| Users {
                gone: if had == 0 { None } else { Some(change.from) },
                come: Some(change.next),
                left: change.from,
            },
        );
    }

    /// Remembers what a batch that did not land may have left behind. A core may have entered
    /// a new image before its site was taken back, and may still be about to read a slot or a
    /// cookie there. So slots keep their index and lanes are taken until quiescence. Where a
    /// site is `stuck`, it may lead to its image for ever.
    fn take_back(&mut self, functions: &[FunctionId], stuck: bool) {
        self.settle_records(
            functions,
            |change| change.from,
            |had, change| Users {
                gone: None,
                come: if had == 0 { Some(change.from) } else { None },
                left: change.next,
            },
        );
        if stuck {
            self.settle_records(
                functions,
                |change| change.from,
                |_, change| Users { gone: None, come: Some(change.next), left: change.next },
            );
        }
    }

    /// Gives every record its `set`, and the lanes that a core may read from now on, and
    /// counts the sets' users.
    fn settle_records(
        &mut self,
        functions: &[FunctionId],
        set: impl Fn(&Change) -> u32,
        users: impl Fn(u32, &Change) -> Users,
    ) {
        // Neighbours mostly have the same set: what is true of a set is looked up once a run.
        let mut functions = functions.iter().peekable();
        while let Some(&first) = functions.peek() {
            let Some((class, had)) = self.class_and_set(*first) else {
                functions.next();
                continue;
            };
            let change = self.change_of(class, had);
            let left = change.filter(|change| change.from != change.next);
            let left = left.map(|change| users(had, &change).left);
            let left_thunks = left.filter(|&set| self.has_exit_thunks(set));
            let mut run = 0_u32;
            while let Some(id) = functions
                .next_if(|id| self.class_and_set(**id).is_some_and(|of_it| of_it == (class, had)))
            {
                if let (Some(change), Some(record)) = (&change, self.records.get(id.0)) {
                    record.set.store(set(change), Ordering::Relaxed);
                    record.lanes.fetch_or(change.lanes, Ordering::Relaxed);
                    run += 1;
                }
                if let Some(left) = left_thunks {
                    self.leave_exit_thunk(id.0, left);
                }
            }
            let Some(change) = change else { continue };
            let Users { gone, come, .. } = users(had, &change);
            if let Some(left) = left.and_then(|left| self.sets.get_mut(left)) {
                left.left = true;
            }
            if let Some(gone) = gone.and_then(|gone| self.sets.get_mut(gone)) {
                gone.users = gone.users.saturating_sub(run);
            }
            if let Some(come) = come.and_then(|come| self.sets.get_mut(come)) {
                come.users = come.users.saturating_add(run);
            }
        }
    }

    /// A function's class, and the set that its record names: 0 if its slot was never written.
    fn class_and_set(&self, id: FunctionId) -> Option<(u16, u32)> {
        let (info, record) = self.functions.get(id.0).zip(self.records.get(id.0))?;
        Some((info.class, record.set.load(Ordering::Relaxed)))
    }

    /// What the edit in progress makes of the functions of a class that have a set.
    fn change_of(&self, class: u16, had: u32) -> Option<Change> {
        let empty = || self.classes.get(usize::from(class))?.as_ref().map(|class| class.empty);
        let from = if had == 0 { empty()? } else { had };
        let next = self.sets.get(from).filter(|set| set.stamp == self.edits)?.next;
        let lanes = self.sets.get(next)?.programs.lanes();
        Some(Change { from, next, lanes })
    }
}

/// The set of some functions, before and after an edit.
#[derive(Clone, Copy)]
struct Change {
    from: u32,
    next: u32,
    /// The lanes that the image of `next` reads.
    lanes: u32,
}

/// The sets that lose and get users, and the one that a core may be in though the function
/// does not have it now.
struct Users {
    gone: Option<u32>,
    come: Option<u32>,
    left: u32,
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
