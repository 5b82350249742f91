//! Sets and their images: found if there is one, made if there is none.

use core::sync::atomic::Ordering;

use super::engine::Outcome;
use super::set::Programs;
use super::{AttachError, Embedder, Emitted, Engine, ImageMemory, MAX_PROGRAMS};
use crate::emit::x86_64::EntryBody;
use crate::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use crate::encode::CodeBuffer;

/// Bytes of the largest image.
const MAX_IMAGE: usize = EntryBody::max_size(MAX_PROGRAMS);

impl<E: Embedder> Engine<E> {
    /// The set of this class with these programs, if there is one.
    pub(super) fn find_set(&self, class: u16, programs: &Programs) -> Option<u32> {
        let hash = programs.hash(class);
        (1..self.sets.bound()).find(|&number| {
            self.hashes.get(number).is_some_and(|found| found.load(Ordering::Relaxed) == hash)
                && self
                    .sets
                    .get(number)
                    .is_some_and(|set| set.live && set.class == class && set.programs == *programs)
        })
    }

    /// Makes a set and emits its image.
    pub(super) fn add_set(&mut self, class: u16, programs: &Programs) -> Outcome<u32, E> {
        let (image, image_size) = self.emit_image(class, programs)?;
        let memory = &mut self.parts.tables;
        let number = self.sets.allocate(memory);
        let number = number.and_then(|number| {
            self.hashes.ready(memory, self.sets.bound()).inspect_err(|_| {
                // SAFETY: given out just now, and told to nobody.
                unsafe { self.sets.release(number) };
            })?;
            Ok(number)
        });
        let number = match number {
            Ok(number) => number,
            Err(error) => {
                if image != 0 {
                    // SAFETY: allocated above; nothing leads there.
                    unsafe { self.parts.images.free(image, image_size as usize) };
                }
                return Err(AttachError::table(error));
            }
        };
        if let Some(hash) = self.hashes.get(number) {
            hash.store(programs.hash(class), Ordering::Relaxed);
        }
        if let Some(set) = self.sets.get_mut(number) {
            set.programs = *programs;
            set.image = image;
            set.image_size = image_size;
            set.class = class;
            set.users = 0;
            set.stamp = 0;
            set.live = true;
            set.left = false;
        }
        Ok(number)
    }

    /// Emits the image of these programs; nothing if none is enabled.
    fn emit_image(&mut self, class: u16, programs: &Programs) -> Outcome<(u64, u32), E> {
        const UNUSED: ProgramCall = ProgramCall {
            target: 0,
            data: None,
            cookie: CookiePlace { column: 0, stride: Stride::Eight },
        };
        let mut calls = [UNUSED; MAX_PROGRAMS];
        let mut count = 0;
        let mut vectors = Vectors::Untouched;
        for program in programs.as_slice().iter().filter(|program| program.enabled) {
            let cookie = self.cookie_place(program.lane).ok_or(AttachError::NoLane)?;
            if let Some(call) = calls.get_mut(count) {
                let data = program.has_data.then_some(program.data);
                *call = ProgramCall { target: program.target, data, cookie };
                count += 1;
            }
            vectors = vectors.max(program.vectors());
        }
        let class = self.classes.get(usize::from(class)).and_then(Option::as_ref);
        let Some(class) = class.filter(|_| count > 0) else { return Ok((0, 0)) };
        let index = match class.layout.return_to_index() {
            Some(return_to_index) => IndexFrom::Slot { return_to_index },
            None => IndexFrom::Thunk,
        };
        let (return_to_entry, region) = (class.layout.return_to_entry(), class.region);
        let size = EntryBody::max_size(count);
        let image = self.parts.images.allocate(region, size);
        let image = image.map_err(|cause| AttachError::no_image(region, cause))?;
        let calls = calls.get(..count).unwrap_or(&[]);
        let mut bytes = [0; MAX_IMAGE];
        let mut code = CodeBuffer::new(&mut bytes, image);
        let body = EntryBody { index, return_to_entry, vectors, calls };
        let written = body.emit(&mut code).map_err(AttachError::Emit).and_then(|()| {
            // SAFETY: allocated above; nothing leads there yet.
            unsafe { self.parts.images.write(image, code.written()) }
                .map_err(|cause| AttachError::no_image(region, cause))
        });
        match written {
            Ok(()) => {
                self.parts.images.emitted(image, code.written(), Emitted::Image { calls });
                Ok((image, size as u32))
            }
            Err(error) => {
                // SAFETY: as above.
                unsafe { self.parts.images.free(image, size) };
                Err(error)
            }
        }
    }

    /// Where emitted code finds the cookies of `lane`.
    fn cookie_place(&self, lane: u8) -> Option<CookiePlace> {
        match usize::from(lane).checked_sub(1) {
            None => Some(CookiePlace { column: self.records.address(), stride: Stride::Sixteen }),
            Some(column) => {
                let column = self.columns.get(column)?.as_ref()?.address();
                Some(CookiePlace { column, stride: Stride::Eight })
            }
        }
    }
}
