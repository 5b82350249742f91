//! Thunks: memory for them, and which function has which.

use super::engine::{Outcome, ThunkChunk};
use super::{AttachError, Embedder, Emitted, Engine, FunctionId, ImageMemory};
use crate::emit::EmitError;
use crate::emit::x86_64::{THUNK_SIZE, entry_thunk};
use crate::encode::{CodeBuffer, EncodeError};

/// Thunks that are allocated at once.
const THUNKS: usize = 64;

impl<E: Embedder> Engine<E> {
    /// Gives the function `id`, of this class, a thunk for good.
    pub(super) fn add_thunk(&mut self, id: FunctionId, class: u16) -> Outcome<u64, E> {
        let unknown = AttachError::UnknownFunction { index: id.0 };
        let class = self.classes.get_mut(usize::from(class)).and_then(Option::as_mut);
        let (Some(class), Some(info)) = (class, self.functions.get_mut(id.0)) else {
            return Err(unknown);
        };
        let (images, region) = (&mut self.parts.images, class.region);
        let chunk = match class.thunks.filter(|chunk| chunk.left > 0) {
            Some(chunk) => chunk,
            None => {
                let next = images.allocate(region, THUNKS * THUNK_SIZE);
                let next = next.map_err(|cause| AttachError::no_image(region, cause))?;
                *class.thunks.insert(ThunkChunk { next, left: THUNKS })
            }
        };
        let thunk = chunk.next;
        let mut bytes = [0; THUNK_SIZE];
        entry_thunk(&mut CodeBuffer::new(&mut bytes, thunk), id.0)?;
        // SAFETY: from `allocate`, and no function has this thunk yet.
        unsafe { images.write(thunk, &bytes) }
            .map_err(|cause| AttachError::no_image(region, cause))?;
        images.emitted(thunk, &bytes, Emitted::EntryThunk { index: id.0 });
        if !info.set_thunk(thunk) {
            let out_of_range = EncodeError::OutOfRange { from: info.entry, to: thunk };
            return Err(EmitError::Encode(out_of_range).into());
        }
        let next = thunk.wrapping_add(THUNK_SIZE as u64);
        class.thunks = Some(ThunkChunk { next, left: chunk.left - 1 });
        Ok(thunk)
    }
}
