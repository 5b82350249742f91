//! From an edit to a batch: which set each function gets, and which bytes that takes.

use core::sync::atomic::Ordering;

use super::engine::Outcome;
use super::set::Programs;
use super::{AttachError, Edit, Embedder, Engine, FunctionId, ImageMemory};
use crate::addr::PatchSite;
use crate::attach::edit::EditError;
use crate::emit::x86_64::{EntryBody, THUNK_JUMP};
use crate::emit::{CookiePlace, EmitError, IndexFrom, ProgramCall, Stride, Vectors};
use crate::encode::CodeBuffer;
use crate::encode::x86_64::{NOP5, call_bytes, jmp_bytes};
use crate::metadata::SlotState;
use crate::patch::{Poke, SITE_LEN, Text};

use super::MAX_PROGRAMS;

/// Bytes of the largest image.
const MAX_IMAGE: usize = EntryBody::max_size(MAX_PROGRAMS);

/// What [`Engine::plan`] found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    /// Pokes that were written.
    pub pokes: usize,
    /// Whether a slot needs its index.
    pub vacant_slots: bool,
}

/// An edit's effect on the functions of one set, kept while neighbours have the same set.
#[derive(Clone, Copy)]
struct Step {
    from: u32,
    old_image: u64,
    new_image: u64,
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
            let unknown = AttachError::UnknownFunction { index: id.0 };
            let (Some(info), Some(record)) = (self.functions.get(id.0), self.records.get(id.0))
            else {
                return Err(unknown);
            };
            let entry = info.entry();
            let Some(nop) = info.nop() else { return Err(unknown) };
            if !nop.is_one_instruction() {
                return Err(AttachError::NotPrepared { entry });
            }
            let Some(class) = self.class_of(info).copied() else { return Err(unknown) };
            let fresh = record.set.load(Ordering::Relaxed);
            let from = if fresh == 0 { class.empty } else { fresh };
            let (class_number, thunk) = (info.class, info.thunk());
            let step = match step {
                Some(step) if step.from == from => step,
                _ => {
                    let made =
                        self.step(from, class_number, &edit).map_err(|error| match error {
                            StepError::Edit(EditError::Full) => {
                                AttachError::TooManyPrograms { entry }
                            }
                            StepError::Edit(EditError::NotThere) => {
                                AttachError::NotAttached { entry }
                            }
                            StepError::Other(error) => error,
                        })?;
                    *step.insert(made)
                }
            };
            let site = class.layout.site(entry);
            if let (Some(kind), Some(slot)) = (class.layout.slot_kind(), class.layout.slot(entry)) {
                let found = self.parts.text.read(slot.get());
                let found = found.map_err(|cause| AttachError::Text(cause.into()))?;
                match SlotState::read(kind, found) {
                    SlotState::Index(index) if index == id.0 => {}
                    SlotState::Vacant if fresh == 0 => planned.vacant_slots = true,
                    _ => return Err(AttachError::SlotTaken { slot, found }),
                }
                let old = site_bytes(site, step.old_image, nop.bytes())?;
                let new = site_bytes(site, step.new_image, nop.bytes())?;
                planned.add(pokes, Poke::new(site, old, new))?;
            } else {
                let thunk = match thunk {
                    Some(thunk) => thunk,
                    None => self.add_thunk(id, class_number)?,
                };
                let through = |image| if image == 0 { 0 } else { thunk };
                let old = site_bytes(site, through(step.old_image), nop.bytes())?;
                let new = site_bytes(site, through(step.new_image), nop.bytes())?;
                planned.add(pokes, Poke::new(site, old, new))?;
                let jump = PatchSite::new(thunk.wrapping_add(THUNK_JUMP as u64));
                let old = jump_bytes(jump, step.old_image)?;
                let new = jump_bytes(jump, step.new_image)?;
                planned.add(pokes, Poke::new(jump, old, new))?;
            }
        }
        Ok(planned)
    }

    /// What the edit makes of the functions that have the set `from`.
    fn step(&mut self, from: u32, class: u16, edit: &Edit<'_>) -> Result<Step, StepError<E>> {
        let unknown = || StepError::Other(AttachError::UnknownFunction { index: from });
        let old = self.sets.get(from).ok_or_else(unknown)?;
        let old_image = old.image;
        let next = if old.stamp == self.edits {
            old.next
        } else {
            let programs = edit.apply(&old.programs).map_err(StepError::Edit)?;
            let next = match self.find_set(class, &programs) {
                Some(next) => next,
                None => self.add_set(class, &programs).map_err(StepError::Other)?,
            };
            let old = self.sets.get_mut(from).ok_or_else(unknown)?;
            old.next = next;
            old.stamp = self.edits;
            next
        };
        let new_image = self.sets.get(next).ok_or_else(unknown)?.image;
        Ok(Step { from, old_image, new_image })
    }

    /// The set of this class with these programs, if there is one.
    fn find_set(&self, class: u16, programs: &Programs) -> Option<u32> {
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
        let return_to_entry = class.layout.return_to_entry();
        let size = EntryBody::max_size(count);
        let image = self.parts.images.allocate(class.region, size);
        let image = image.map_err(|cause| AttachError::Images(cause.into()))?;
        let calls = calls.get(..count).unwrap_or(&[]);
        let mut bytes = [0; MAX_IMAGE];
        let mut code = CodeBuffer::new(&mut bytes, image);
        let body = EntryBody { index, return_to_entry, vectors, calls };
        let written = body.emit(&mut code).map_err(AttachError::Emit).and_then(|()| {
            // SAFETY: allocated above; nothing leads there yet.
            unsafe { self.parts.images.write(image, code.written()) }
                .map_err(|cause| AttachError::Images(cause.into()))
        });
        match written {
            Ok(()) => Ok((image, size as u32)),
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

/// Why a step could not be made.
enum StepError<E: Embedder> {
    /// The edit does not apply to the functions of this set.
    Edit(EditError),
    Other(AttachError<E::Error>),
}

impl Planned {
    fn add<X>(&mut self, pokes: &mut [Poke], poke: Poke) -> Result<(), AttachError<X>> {
        let needed = self.pokes.saturating_add(1);
        *pokes.get_mut(self.pokes).ok_or(AttachError::Scratch { needed })? = poke;
        self.pokes = needed;
        Ok(())
    }
}

/// The bytes of a site that calls `target`, or holds `nop` if that is 0.
fn site_bytes<X>(
    site: PatchSite,
    target: u64,
    nop: [u8; SITE_LEN],
) -> Result<[u8; SITE_LEN], AttachError<X>> {
    match target {
        0 => Ok(nop),
        target => Ok(call_bytes(site.get(), target).map_err(EmitError::Encode)?),
    }
}

/// The bytes of a thunk's jump to `image`, or of the nop that stands there for none.
fn jump_bytes<X>(jump: PatchSite, image: u64) -> Result<[u8; SITE_LEN], AttachError<X>> {
    match image {
        0 => Ok(NOP5),
        image => Ok(jmp_bytes(jump.get(), image).map_err(EmitError::Encode)?),
    }
}
