//! What is done to a function's text once, before anything is attached to it.

use core::sync::atomic::Ordering;

use super::engine::Outcome;
use super::{AttachError, Embedder, Engine, FunctionId, Parts, SiteNop};
use crate::encode::x86_64::NOP1X5;
use crate::metadata::SlotState;
use crate::patch::{Batch, CheckedBatch, Cores, Poke, Protocol, Text};

/// What [`Engine::write_slots`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slots {
    /// Gives functions that nothing was ever attached to their index.
    Fill,
    /// Undoes that.
    TakeBack,
    /// Gives functions that have no program any more their nops back.
    Vacate,
}

impl<E: Embedder> Engine<E> {
    /// Makes the patch sites of `functions` one instruction each, where a compiler left five
    /// one-byte nops, and leaves the others alone. `pokes` needs room for one for each function.
    ///
    /// The nops become `66 66 66 66 90`. Of that instruction every suffix is a nop too, and so
    /// is every mixture of its bytes with the old ones: whatever a thread fetches and wherever
    /// it stands, it executes nops, so this is safe at any time. What is *not* safe is to
    /// rewrite the site again while a thread still stands in its middle, which it may after a
    /// preemption of any length. `settle` is asked, after all cores have synchronised, to see
    /// to it that none does; it gets the sites.
    ///
    /// # Safety
    /// - The functions are where their registration said, with that layout, and their text
    ///   stays. Nobody else patches them meanwhile.
    /// - If `settle` returns `Ok`, no thread has a site's bytes but the first as its next
    ///   instruction, or as an instruction that it will ever return to.
    ///
    /// # Errors
    /// [`AttachError::Patch`] if a site cannot be read or written or does not hold what its
    /// registration said; or what `settle` says. In the latter case the sites hold the new
    /// nops, which do no harm, and nothing can be attached until this is called again.
    pub unsafe fn prepare(
        &mut self,
        functions: &[FunctionId],
        pokes: &mut [Poke],
        settle: impl FnOnce(&[Poke]) -> Result<(), E::Error>,
    ) -> Outcome<(), E> {
        let count = self.unprepared(functions, pokes)?;
        let pokes = pokes.get_mut(..count).unwrap_or(&mut []);
        if pokes.is_empty() {
            return Ok(());
        }
        let Parts { text, cores, .. } = &mut self.parts;
        // One byte at a time is an order of stores that no site is too unaligned for.
        let batch = Batch::new(Protocol::Breakpoint, pokes);
        let batch = batch.check(text).map_err(AttachError::check)?;
        text.open(batch.pokes()).map_err(|cause| AttachError::Text(cause.into()))?;
        let stored = store_prefixes(text, &batch);
        text.close();
        stored.map_err(|cause| AttachError::Text(cause.into()))?;
        cores.synchronise().map_err(|cause| AttachError::Text(cause.into()))?;
        self.mark(functions, SiteNop::OneByte, SiteNop::Unsettled);
        settle(pokes).map_err(AttachError::Text)?;
        self.mark(functions, SiteNop::Unsettled, SiteNop::Prefixed);
        Ok(())
    }

    /// Fills `pokes` with the sites that are not yet one instruction to every thread.
    fn unprepared(&self, functions: &[FunctionId], pokes: &mut [Poke]) -> Outcome<usize, E> {
        let mut count = 0;
        for &id in functions {
            let unknown = AttachError::UnknownFunction { index: id.0 };
            let Some(info) = self.functions.get(id.0) else { return Err(unknown) };
            let (Some(nop), Some(class)) = (info.nop(), self.class_of(info)) else {
                return Err(unknown);
            };
            if nop.is_one_instruction() {
                continue;
            }
            let site = class.layout.site(info.entry());
            let scratch = AttachError::Scratch { needed: functions.len() };
            let poke = pokes.get_mut(count).ok_or(scratch)?;
            *poke = Poke::new(site, nop.bytes(), SiteNop::Prefixed.bytes());
            count += 1;
        }
        Ok(count)
    }

    /// Changes the nop of those functions that have `from` to `to`.
    fn mark(&mut self, functions: &[FunctionId], from: SiteNop, to: SiteNop) {
        for id in functions {
            if let Some(info) = self.functions.get_mut(id.0)
                && info.nop() == Some(from)
            {
                info.set_nop(Some(to));
            }
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
    /// [`AttachError::Scratch`], or [`AttachError::Text`] if the text cannot be written.
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
                *poke = Poke::new(class.layout.site(info.entry()), NOP1X5, NOP1X5);
                count += 1;
            }
        }
        // SAFETY: the pokes have the site of each; nobody reads the slots any more (contract).
        unsafe { self.write_slots(functions, pokes.get(..count).unwrap_or(&[]), Slots::Vacate) }
    }

    /// Writes slots.
    ///
    /// # Safety
    /// `pokes` has the site of each function that has a slot to be written, and no slot that
    /// loses its index is read any more.
    pub(super) unsafe fn write_slots(
        &mut self,
        functions: &[FunctionId],
        pokes: &[Poke],
        slots: Slots,
    ) -> Outcome<(), E> {
        let failed = |cause: <E::Text as Text>::Error| AttachError::Text(cause.into());
        self.parts.text.open(pokes).map_err(failed)?;
        let mut written = Ok(());
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
                Slots::TakeBack if set == 0 => NOP1X5,
                Slots::Vacate if set == class.empty => {
                    let found = self.parts.text.read(slot.get());
                    match found.map(|found| SlotState::read(kind, found)) {
                        Ok(SlotState::Index(index)) if index == id.0 => NOP1X5,
                        _ => continue,
                    }
                }
                _ => continue,
            };
            // SAFETY: the slot is in the padding before a site that is open (contract), and
            // nobody executes padding. Nobody reads it either: nothing is attached here.
            written = unsafe { self.parts.text.store_unexecuted(slot.get(), bytes) };
            if written.is_err() {
                break;
            }
            if slots == Slots::Vacate {
                record.set.store(0, Ordering::Relaxed);
                if let Some(empty) = self.sets.get_mut(class.empty) {
                    empty.users = empty.users.saturating_sub(1);
                }
            }
        }
        self.parts.text.close();
        written.map_err(failed)
    }
}

/// Stores the bytes in which the prefixed nop differs from five one-byte nops.
fn store_prefixes<T: Text>(text: &mut T, batch: &CheckedBatch<'_>) -> Result<(), T::Error> {
    for poke in batch.pokes() {
        for ((address, &new), &old) in (poke.site.get()..).zip(&poke.new).zip(&poke.old) {
            if new != old {
                // SAFETY: the site is open, and any mixture of old and new bytes is nops.
                unsafe { text.store_byte(address, new) }?;
            }
        }
    }
    Ok(())
}
