//! What is done to a function's text once, before anything is attached to it.

use super::engine::Outcome;
use super::land::check;
use super::{AttachError, Embedder, Engine, FunctionId, Parts, SiteNop};
use crate::metadata::SlotState;
use crate::patch::{CheckedBatch, Cores, PatchError, Poke, Protocol, SITE_LEN, Text};
use crate::sync::Ordering;

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
    /// [`AttachError::Patch`] if a site cannot be read or does not hold what its registration
    /// said; [`AttachError::Text`] if the sites cannot be written or the cores synchronised:
    /// then they hold what they held. [`AttachError::Text`], too, with what `settle` says:
    /// then they hold the new nops, which do no harm, and nothing can be attached until this
    /// is called again.
    pub unsafe fn prepare(
        &mut self,
        functions: &[FunctionId],
        pokes: &mut [Poke],
        settle: impl FnOnce(&[Poke]) -> Result<(), E::Error>,
    ) -> Outcome<(), E> {
        let count = self.unprepared(functions, pokes)?;
        if count == 0 {
            return Ok(());
        }
        let Parts { text, cores, .. } = &mut self.parts;
        // One byte at a time is an order of stores that no site is too unaligned for.
        let batch = check::<E>(text, Protocol::Breakpoint, pokes, count)?;
        text.open(batch.pokes()).map_err(|cause| AttachError::Text(cause.into()))?;
        let done = match store_nops(text, &batch, |poke| poke.new) {
            Ok(()) => cores.synchronise().map_err(Into::into),
            Err(cause) => Err(cause.into()),
        };
        let undone = match done {
            Ok(()) => Ok(()),
            Err(_) => store_nops(text, &batch, |poke| poke.old),
        };
        text.close();
        match (done, undone, batch.pokes().first()) {
            (Ok(()), ..) => {}
            (Err(_), Err(_), Some(first)) => {
                return Err(AttachError::Patch(PatchError::Stuck { site: first.site }));
            }
            (Err(cause), ..) => return Err(AttachError::Text(cause)),
        }
        self.mark(functions, SiteNop::OneByte, SiteNop::Unsettled);
        settle(pokes.get(..count).unwrap_or(&[])).map_err(AttachError::Text)?;
        self.mark(functions, SiteNop::Unsettled, SiteNop::Prefixed);
        Ok(())
    }

    /// Whether one of `functions` stands there as its compiler left it, though this engine has
    /// changed it: their text was unloaded, and loaded again to the same place.
    pub fn was_reloaded(&self, functions: &[FunctionId]) -> bool {
        functions.iter().any(|id| {
            let Some((info, record)) = self.functions.get(id.0).zip(self.records.get(id.0)) else {
                return false;
            };
            let Some(class) = self.class_of(info) else { return false };
            let text = &self.parts.text;
            if matches!(info.nop(), Some(SiteNop::Prefixed | SiteNop::Unsettled)) {
                let found = text.read(class.layout.site(info.entry()).get());
                return found.is_ok_and(|found| found == SiteNop::OneByte.bytes());
            }
            let slot = class.layout.slot_kind().zip(class.layout.slot(info.entry()));
            slot.filter(|_| record.set.load(Ordering::Relaxed) != 0).is_some_and(|(kind, slot)| {
                let found = text.read(slot.get());
                found.is_ok_and(|found| SlotState::read(kind, found) == SlotState::Vacant)
            })
        })
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
}

/// Stores each site's `bytes`, where the nops that it had and those that it gets differ.
fn store_nops<T: Text>(
    text: &mut T,
    batch: &CheckedBatch<'_>,
    bytes: impl Fn(&Poke) -> [u8; SITE_LEN],
) -> Result<(), T::Error> {
    for poke in batch.pokes() {
        let places = (poke.site.get()..).zip(bytes(poke)).zip(poke.old.iter().zip(&poke.new));
        for ((address, byte), (old, new)) in places {
            if old != new {
                // SAFETY: the site is open, and any mixture of old and new bytes is nops.
                unsafe { text.store_byte(address, byte) }?;
            }
        }
    }
    Ok(())
}
