//! Exit thunks: one for each function of each set that has programs at the exit.
//!
//! A set's thunks never change. A call that has come in through a thunk leaves through the same
//! thunk, and so through the exit programs of the set that it came in by, whatever the function
//! has got meanwhile.
//!
//! A thunk is found from the index by arithmetic: the set has a column of blocks, and each block
//! memory for the thunks of [`THUNKS`] neighbouring indexes.

use super::engine::{MAX_FUNCTIONS, Outcome};
use super::set::Form;
use super::thunk_block::{BLOCK_SIZE, THUNKS, ThunkBlock, place};
use super::{AttachError, Embedder, Emitted, Engine, FunctionId, ImageMemory};
use crate::addr::Origin;
use crate::emit::x86_64::{EXIT_THUNK_SIZE, exit_thunk_hardened};
use crate::encode::CodeBuffer;
use crate::metadata::Column;

impl<E: Embedder> Engine<E> {
    /// The exit thunk of the function `id` in this set, emitted if it is not yet there.
    pub(super) fn exit_thunk(
        &mut self,
        id: FunctionId,
        number: u32,
        origin: Origin,
    ) -> Outcome<u64, E> {
        let unknown = || AttachError::UnknownFunction { index: id.0 };
        let (block, bit, offset) = place(id.0);
        let Some(set) = self.sets.get_mut(number) else { return Err(unknown()) };
        if let Some(found) = set.thunks.get(block).filter(|found| found.emitted & bit != 0) {
            return Ok(found.address.wrapping_add(offset));
        }
        let class = self.classes.get(usize::from(set.class)).and_then(Option::as_ref);
        let region = class.ok_or_else(unknown)?.region;
        let (images, tables) = (&mut self.parts.images, &mut self.parts.tables);
        if set.thunks.capacity() == 0 {
            let blocks = Column::reserve(tables, MAX_FUNCTIONS.div_ceil(THUNKS));
            set.thunks = blocks.map_err(AttachError::table)?;
        }
        set.thunks.ready(tables, block.saturating_add(1)).map_err(AttachError::table)?;
        let Some(found) = set.thunks.get_mut(block) else { return Err(unknown()) };
        if found.address == 0 {
            let memory = images.allocate(region, BLOCK_SIZE);
            found.address = memory.map_err(|cause| AttachError::no_image(region, cause))?;
        }
        let thunk = found.address.wrapping_add(offset);
        let replaced = set.programs.as_slice().iter().find(|entry| entry.replaces());
        let bodies = set.bodies;
        let mut bytes = [0; EXIT_THUNK_SIZE];
        let mut code = CodeBuffer::new(&mut bytes, thunk);
        let origin = replaced.map_or(origin, |_| Origin::new(set.image));
        exit_thunk_hardened(&mut code, id.0, bodies, origin, &self.parts.hardening)?;
        // SAFETY: from `allocate`; nothing leads to this thunk, which was not there.
        unsafe { images.write(thunk, &bytes) }
            .map_err(|cause| AttachError::no_image(region, cause))?;
        images.emitted(thunk, &bytes, Emitted::ExitThunk { index: id.0, kept: bodies.kept });
        found.emitted |= bit;
        Ok(thunk)
    }

    /// The exit thunk that the function with `index` has in this set, if it has one there.
    pub(super) fn exit_thunk_of(&self, index: u32, number: u32) -> Option<u64> {
        let (block, bit, offset) = place(index);
        let block = self.sets.get(number)?.thunks.get(block)?;
        (block.emitted & bit != 0).then(|| block.address.wrapping_add(offset))
    }

    /// Whether functions lead to this set by exit thunks.
    pub(super) fn has_exit_thunks(&self, number: u32) -> bool {
        self.sets.get(number).is_some_and(|set| set.form == Form::Exit)
    }

    /// Notes that a core may be inside of the function's thunk, though the function does not
    /// lead there.
    pub(super) fn leave_exit_thunk(&mut self, index: u32, number: u32) {
        let (block, bit, _) = place(index);
        let set = self.sets.get_mut(number);
        if let Some(block) = set.and_then(|set| set.thunks.get_mut(block)) {
            block.left |= bit;
        }
    }

    /// The addresses of the thunks of this set that functions have left, and may be inside of.
    pub(super) fn exit_thunks_left(&self, number: u32) -> impl Iterator<Item = u64> {
        let blocks = self.sets.get(number).map(|set| &set.thunks);
        let blocks =
            blocks.into_iter().flat_map(|blocks| (0..blocks.len()).map(|at| blocks.get(at)));
        blocks.flatten().filter(|block| block.left != 0).flat_map(|block| {
            let left = (0..THUNKS).filter(|&at| block.left & (1 << at) != 0);
            left.map(|at| block.address.wrapping_add(place(at).2))
        })
    }

    /// Notes that nobody is inside of a thunk of this set that its function has left.
    pub(super) fn settle_exit_thunks(&mut self, number: u32) {
        let Some(set) = self.sets.get_mut(number) else { return };
        for block in 0..set.thunks.len() {
            if let Some(block) = set.thunks.get_mut(block) {
                block.left = 0;
            }
        }
    }

    /// Frees the thunks of this set.
    ///
    /// # Safety
    /// No function has the set, so that no patch site leads to them, and no core is inside.
    pub(super) unsafe fn free_exit_thunks(&mut self, number: u32) {
        let Some(set) = self.sets.get_mut(number) else { return };
        for block in 0..set.thunks.len() {
            let Some(block) = set.thunks.get_mut(block).filter(|block| block.address != 0) else {
                continue;
            };
            // SAFETY: allocated with this size; the rest is the caller's contract.
            unsafe { self.parts.images.free(block.address, BLOCK_SIZE) };
            *block = ThunkBlock { address: 0, emitted: 0, left: 0 };
        }
    }
}
