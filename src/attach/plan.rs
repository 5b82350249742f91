//! From an edit to a batch: which set each function gets, and which bytes that takes.

use super::edit::EditError;
use super::engine::Outcome;
use super::function::FunctionInfo;
use super::leads::{Leads, Site, jump_poke};
use super::set::{Form, Set};
use super::{AttachError, Edit, Embedder, Engine, FunctionId};
use crate::emit::EmitError;
use crate::layout::EntryLayout;
use crate::metadata::SlotState;
use crate::patch::{Poke, Text};
use crate::sync::Ordering;

/// What [`Engine::plan`] found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    /// Pokes that were written.
    pub pokes: usize,
    /// Whether a slot needs its index.
    pub vacant_slots: bool,
}

/// An edit's effect on the functions of one class that have one set, kept while neighbours
/// are the same: a batch of many functions is mostly one step.
#[derive(Clone, Copy)]
struct Step {
    class: u16,
    /// The set that their records name: 0 if nothing was ever attached.
    had: u32,
    layout: EntryLayout,
    old: Leads,
    new: Leads,
}

impl<E: Embedder> Engine<E> {
    /// Decides what every function gets and fills `pokes` with what that takes. Emits the
    /// images and thunks that are new; changes no text and no record.
    pub(super) fn plan(
        &mut self,
        functions: &[FunctionId],
        edit: Edit<'_>,
        pokes: &mut [Poke],
    ) -> Outcome<Planned, E> {
        let mut planned = Planned { pokes: 0, vacant_slots: false };
        let mut step: Option<Step> = None;
        for &id in functions {
            let (Some(info), Some(record)) = (self.functions.get(id.0), self.records.get(id.0))
            else {
                return Err(AttachError::UnknownFunction { index: id.0 });
            };
            let (entry, class, thunk, nop) = (info.entry(), info.class, info.thunk(), info.nop());
            let had = record.set.load(Ordering::Relaxed);
            let Some(nop) = nop.filter(|nop| nop.is_one_instruction()) else {
                return Err(self.not_patchable(id));
            };
            let step = match step {
                Some(step) if step.class == class && step.had == had => step,
                _ => *step.insert(self.step(id, class, had, &edit)?),
            };
            let has_entry_thunk = [step.old.form, step.new.form].contains(&Form::Entry);
            let entry_thunk = match step.layout.slot_kind().zip(step.layout.slot(entry)) {
                Some((kind, slot)) => {
                    let found = self.parts.text.read(slot.get());
                    let found = found.map_err(|cause| AttachError::Text(cause.into()))?;
                    match SlotState::read(kind, found) {
                        SlotState::Index(index) if index == id.0 => {}
                        SlotState::Vacant if had == 0 => planned.vacant_slots = true,
                        _ => return Err(AttachError::SlotTaken { slot, found }),
                    }
                    None
                }
                None if !has_entry_thunk => None,
                None => match thunk {
                    Some(thunk) => Some(thunk),
                    None => Some(self.add_thunk(id, class)?),
                },
            };
            let leads = [&step.old, &step.new];
            let site = Site { at: step.layout.site(entry), nop: nop.bytes(), entry_thunk };
            planned.add(pokes, self.site_poke(id, &step.layout, &site, leads)?)?;
            if let Some(thunk) = entry_thunk {
                let poke = jump_poke(thunk, leads);
                planned.add(pokes, poke.map_err(EmitError::Encode)?)?;
            }
        }
        Ok(planned)
    }

    /// Why nothing can be attached to this function.
    #[cold]
    fn not_patchable(&self, id: FunctionId) -> AttachError<E::Error> {
        let known = self.functions.get(id.0).filter(|info| info.nop().is_some());
        match known.map(FunctionInfo::entry) {
            Some(entry) => AttachError::NotPrepared { entry },
            None => AttachError::UnknownFunction { index: id.0 },
        }
    }

    /// What the edit makes of the function `id` and others of its class and set.
    fn step(&mut self, id: FunctionId, class: u16, had: u32, edit: &Edit<'_>) -> Outcome<Step, E> {
        let unknown = || AttachError::UnknownFunction { index: id.0 };
        let of_class = self.classes.get(usize::from(class)).and_then(Option::as_ref);
        let of_class = of_class.ok_or_else(unknown)?;
        let (layout, from) = (of_class.layout, if had == 0 { of_class.empty } else { had });
        let old = self.sets.get(from).ok_or_else(unknown)?;
        let leads =
            |number, set: &Set| Leads { set: number, form: set.form, image: set.bodies.enter };
        let old_leads = leads(from, old);
        let next = if old.stamp == self.edits {
            old.next
        } else {
            let programs = edit.apply(&old.programs).map_err(|error| {
                let entry = self.entry(id).unwrap_or(crate::addr::Entry::new(0));
                match error {
                    EditError::Full => AttachError::TooManyPrograms { entry },
                    EditError::Sessions => AttachError::TooManySessions { entry },
                    EditError::Replaced => AttachError::Replaced { entry },
                    EditError::NotThere => AttachError::NotAttached { entry },
                }
            })?;
            let next = match self.find_set(class, &programs) {
                Some(next) => next,
                None => self.add_set(class, &programs)?,
            };
            let old = self.sets.get_mut(from).ok_or_else(unknown)?;
            old.next = next;
            old.stamp = self.edits;
            next
        };
        let new = leads(next, self.sets.get(next).ok_or_else(unknown)?);
        Ok(Step { class, had, layout, old: old_leads, new })
    }
}

impl Planned {
    fn add<X>(&mut self, pokes: &mut [Poke], poke: Poke) -> Result<(), AttachError<X>> {
        let needed = self.pokes.saturating_add(1);
        let Some(place) = pokes.get_mut(self.pokes) else {
            return Err(AttachError::Scratch { needed });
        };
        *place = poke;
        self.pokes = needed;
        Ok(())
    }
}
