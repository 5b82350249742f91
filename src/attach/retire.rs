//! Retiring: when what was detached may go.

use core::ops::Range;

use super::set::Set;
use super::{Embedder, Engine, FunctionId, ImageMemory, Region};
use crate::emit::x86_64::EXIT_THUNK_SIZE;
use crate::sync::Ordering;

impl<E: Embedder> Engine<E> {
    /// Forgets functions, whose indexes may then be given to others.
    ///
    /// # Safety
    /// No core runs or will run the functions, their thunks or an image they led to, or has
    /// one of them as a return address: their text is gone, and all is [quiescent](Self::quiesced),
    /// or they were never attached to.
    pub unsafe fn forget(&mut self, functions: &[FunctionId]) {
        for &id in functions {
            let known = self.functions.get_mut(id.0).filter(|info| info.nop().is_some());
            let Some((info, record)) = known.zip(self.records.get(id.0)) else { continue };
            info.set_nop(None);
            record.cookie.store(0, Ordering::Relaxed);
            record.lanes.store(0, Ordering::Relaxed);
            let set = record.set.swap(0, Ordering::Relaxed);
            if let Some(set) = self.sets.get_mut(set).filter(|_| set != 0) {
                set.users = set.users.saturating_sub(1);
            }
            // SAFETY: registered until now, and nothing finds it any more (contract).
            unsafe { self.records.release(id.0) };
        }
    }

    /// Forgets the thunk memory of a region, which the embedder may then take back: all of the
    /// region's functions are [forgotten](Self::forget).
    ///
    /// # Safety
    /// They are, so that none of them has a thunk there, and all is quiescent, or they never had
    /// one.
    pub unsafe fn forget_region(&mut self, region: Region) {
        for class in self.classes.iter_mut().flatten() {
            if class.region == region {
                class.thunks = None;
            }
        }
    }

    /// The emitted code that a core may be in for a function that does not lead there any more,
    /// in no order: images, and exit thunks. A core that is in other is there for what is
    /// attached, or was never there.
    ///
    /// A function with programs at its exit returns to its thunk. So a core that has such a
    /// thunk's address as a return address is inside, for as long as the function runs.
    pub fn code_left(&self) -> impl Iterator<Item = Range<u64>> {
        let left = |&(_, set): &(u32, &Set)| set.live && set.left && set.image != 0;
        let sets =
            (1..self.sets.bound()).filter_map(|number| Some((number, self.sets.get(number)?)));
        sets.filter(left).flat_map(|(number, set)| {
            let image = set.image..set.image.saturating_add(set.image_size.into());
            let thunk = |at: u64| at..at.saturating_add(EXIT_THUNK_SIZE as u64);
            core::iter::once(image).chain(self.exit_thunks_left(number).map(thunk))
        })
    }

    /// Frees what nothing leads to any more: images of sets that no function has, and lanes of
    /// programs that were detached. Gives the number of images that were freed.
    ///
    /// Once it has returned, the data of detached programs may go, too, and of those that
    /// failed to be attached.
    ///
    /// # Safety
    /// Since the last [`attach`](Self::attach), [`detach`](Self::detach) or
    /// [`set_enabled`](Self::set_enabled) returned, whatever it returned, every core and thread
    /// has been seen outside of the [code left](Self::code_left), and without a return
    /// address there; or none that was inside has run again, or ever will.
    pub unsafe fn quiesced(&mut self) -> usize {
        for index in 0..self.records.bound() {
            let Some((info, record)) = self.functions.get(index).zip(self.records.get(index))
            else {
                break;
            };
            let set = record.set.load(Ordering::Relaxed);
            // The table uses the set of a vacant record for itself.
            if info.nop().is_some() && set != 0 {
                let lanes = self.sets.get(set).map_or(0, |set| set.programs.lanes());
                record.lanes.store(lanes, Ordering::Relaxed);
            }
        }
        let mut freed = 0;
        for number in 1..self.sets.bound() {
            let Some(set) = self.sets.get_mut(number) else { break };
            if core::mem::take(&mut set.left) {
                self.settle_exit_thunks(number);
            }
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
            // SAFETY: as above: no function has the set, and no core is inside of what was left.
            unsafe { self.free_exit_thunks(number) };
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
