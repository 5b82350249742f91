//! Writing slots: a function's index on its first attachment, and its nops back at the end.

use super::engine::Outcome;
use super::{AttachError, Embedder, Engine, FunctionId};
use crate::encode::x86_64::NOP1X5;
use crate::metadata::SlotState;
use crate::patch::{PatchError, Poke, Text};
use crate::sync::Ordering;

/// Which slots are written, and what with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slots {
    /// Those that were never written get their index.
    Fill,
    /// Those that were never written get their nops: what a failed `Fill` needs.
    Clear,
    /// Those of functions without a program get their nops.
    Vacate,
}

impl<E: Embedder> Engine<E> {
    /// Writes their index to the slots of those functions whose slot was never written: to all
    /// of them or to none.
    ///
    /// # Safety
    /// `pokes` has the site of each of them.
    pub(super) unsafe fn write_slots(
        &mut self,
        functions: &[FunctionId],
        pokes: &[Poke],
    ) -> Outcome<(), E> {
        let failed = |cause: <E::Text as Text>::Error| AttachError::Text(cause.into());
        self.parts.text.open(pokes).map_err(failed)?;
        // SAFETY: the text is open for the sites of all that will be written (contract).
        let written = unsafe { self.store_slots(functions, Slots::Fill) };
        let undone = match written {
            Ok(()) => Ok(()),
            // SAFETY: as above. No batch has landed that leads to an image which reads them.
            Err(_) => unsafe { self.store_slots(functions, Slots::Clear) },
        };
        self.parts.text.close();
        match (undone, pokes.first()) {
            (Err(_), Some(first)) => {
                Err(AttachError::Patch(PatchError::Stuck { site: first.site }))
            }
            _ => written.map_err(failed),
        }
    }

    /// Gives the padding its nops back, of those of `functions` that have no program any more:
    /// their text is then as it was before anything was attached. `pokes` needs room for one
    /// for each function.
    ///
    /// # Safety
    /// All is [quiescent](Engine::quiesced), the functions' text is still there, and nobody
    /// else patches it meanwhile.
    ///
    /// # Errors
    /// [`AttachError::Scratch`], or [`AttachError::Text`] if the text cannot be written; what
    /// was written until then stays so.
    pub unsafe fn vacate(
        &mut self,
        functions: &[FunctionId],
        pokes: &mut [Poke],
    ) -> Outcome<(), E> {
        let mut count = 0;
        for &id in functions {
            if let Some(info) = self.functions.get(id.0)
                && let Some(class) = self.class_of(info)
            {
                let scratch = AttachError::Scratch { needed: functions.len() };
                let poke = pokes.get_mut(count).ok_or(scratch)?;
                *poke = Poke { site: class.layout.site(info.entry()), ..Poke::EMPTY };
                count += 1;
            }
        }
        let failed = |cause: <E::Text as Text>::Error| AttachError::Text(cause.into());
        self.parts.text.open(pokes.get(..count).unwrap_or(&[])).map_err(failed)?;
        // SAFETY: the text is open for the site of each, and nobody reads the slots of those
        // without a program any more (contract).
        let written = unsafe { self.store_slots(functions, Slots::Vacate) };
        self.parts.text.close();
        written.map_err(failed)
    }

    /// Stores what `slots` says.
    ///
    /// # Safety
    /// The text before each function's site is open, and no slot that loses its index is read
    /// any more.
    unsafe fn store_slots(
        &mut self,
        functions: &[FunctionId],
        slots: Slots,
    ) -> Result<(), <E::Text as Text>::Error> {
        for &id in functions {
            let Some((info, record)) = self.functions.get(id.0).zip(self.records.get(id.0)) else {
                continue;
            };
            let Some(class) = self.class_of(info).copied() else { continue };
            let Some((kind, slot)) = class.layout.slot_kind().zip(class.layout.slot(info.entry()))
            else {
                continue;
            };
            let set = record.set.load(Ordering::Relaxed);
            let bytes = match slots {
                Slots::Fill if set == 0 => SlotState::bytes(kind, id.0),
                Slots::Clear if set == 0 => NOP1X5,
                Slots::Vacate if set == class.empty => {
                    let found = SlotState::read(kind, self.parts.text.read(slot.get())?);
                    if found != SlotState::Index(id.0) {
                        continue;
                    }
                    NOP1X5
                }
                _ => continue,
            };
            // SAFETY: the slot is in the padding before a site that is open (contract), and
            // nobody executes padding. Nobody reads it either: nothing was ever attached here,
            // or all that was is gone (contract).
            unsafe { self.parts.text.store_unexecuted(slot.get(), bytes) }?;
            if slots == Slots::Vacate {
                record.set.store(0, Ordering::Relaxed);
                if let Some(empty) = self.sets.get_mut(class.empty) {
                    empty.users = empty.users.saturating_sub(1);
                }
            }
        }
        Ok(())
    }
}
