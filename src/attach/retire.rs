//! Retiring: when what was detached may go.

use core::sync::atomic::Ordering;

use super::{Embedder, Engine, ImageMemory};

impl<E: Embedder> Engine<E> {
    /// Frees what nothing leads to any more: images of sets that no function has, and lanes of
    /// programs that were detached. Gives the number of images that were freed.
    ///
    /// Once it has returned, the data of detached programs may go, too.
    ///
    /// # Safety
    /// Since the last [`detach`](Self::detach) or [`set_enabled`](Self::set_enabled) returned,
    /// every core and thread has been seen outside of every image and thunk, and without a
    /// return address there; or none that was inside has run again, or ever will.
    pub unsafe fn quiesced(&mut self) -> usize {
        for index in 0..self.records.bound() {
            let Some(record) = self.records.get(index) else { break };
            let set = record.set.load(Ordering::Relaxed);
            if set != 0 {
                let lanes = self.sets.get(set).map_or(0, |set| set.programs.lanes());
                record.lanes.store(lanes, Ordering::Relaxed);
            }
        }
        let mut freed = 0;
        for number in 1..self.sets.bound() {
            let Some(set) = self.sets.get(number) else { break };
            let class = self.classes.get(usize::from(set.class)).and_then(Option::as_ref);
            let is_empty_set = class.is_some_and(|class| class.empty == number);
            if !set.live || set.users != 0 || is_empty_set {
                continue;
            }
            let (image, size) = (set.image, set.image_size as usize);
            if image != 0 {
                // SAFETY: no record has this set, so no patch site or thunk leads to its image,
                // and no core is inside (contract).
                unsafe { self.parts.images.free(image, size) };
                freed += 1;
            }
            if let Some(hash) = self.hashes.get(number) {
                hash.store(0, Ordering::Relaxed);
            }
            if let Some(set) = self.sets.get_mut(number) {
                set.live = false;
            }
            // SAFETY: live until now, and no record names it.
            unsafe { self.sets.release(number) };
        }
        freed
    }
}
