//! Sets and their images: found if there is one, made if there is none.

use super::engine::{Class, Outcome};
use super::set::{Form, Programs, Role, SetEntry};
use super::{AttachError, Embedder, Emitted, Engine, ImageMemory, MAX_PROGRAMS};
use crate::emit::x86_64::{
    Bodies, EntryBody, FrameBodies, HARDENED_REPLACEMENT_SIZE, Hardening, Kept, Marks,
    REPLACEMENT_SIZE, SideStackBodies, replacement, replacement_hardened,
};
use crate::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use crate::encode::CodeBuffer;
use crate::sync::Ordering;

/// Bytes of the largest image.
const MAX_IMAGE: usize =
    HARDENED_REPLACEMENT_SIZE + FrameBodies::max_hardened_size(MAX_PROGRAMS, MAX_PROGRAMS, u8::MAX);
static_assertions::const_assert!(MAX_IMAGE >= EntryBody::max_hardened_size(MAX_PROGRAMS));
static_assertions::const_assert!(
    MAX_IMAGE
        >= HARDENED_REPLACEMENT_SIZE
            + SideStackBodies::max_hardened_size(MAX_PROGRAMS, MAX_PROGRAMS)
);

/// An image, emitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub form: Form,
    /// Where its memory begins.
    pub address: u64,
    pub size: u32,
    pub bodies: Bodies,
}

impl Image {
    const NOTHING: Self = Self {
        form: Form::Nothing,
        address: 0,
        size: 0,
        bodies: Bodies { enter: 0, exit: 0, kept: Kept::OnSideStack },
    };
}

/// The programs of a set that are enabled, by when they run.
#[derive(Debug)]
struct Calls {
    entries: Calling,
    modify: Calling,
    exits: Calling,
    replacement: Option<u64>,
    vectors: Vectors,
    sessions: u8,
}

/// Programs that run one after the other.
#[derive(Debug)]
struct Calling {
    calls: [ProgramCall; MAX_PROGRAMS],
    len: usize,
}

impl Calling {
    const UNUSED: ProgramCall = ProgramCall {
        target: 0,
        data: None,
        cookie: CookiePlace { column: 0, stride: Stride::Eight },
        session: None,
    };
    const NONE: Self = Self { calls: [Self::UNUSED; MAX_PROGRAMS], len: 0 };

    fn push(&mut self, call: ProgramCall) {
        if let Some(place) = self.calls.get_mut(self.len) {
            *place = call;
            self.len += 1;
        }
    }

    fn as_slice(&self) -> &[ProgramCall] {
        self.calls.get(..self.len).unwrap_or(&[])
    }
}

impl Calls {
    const NONE: Self = Self {
        entries: Calling::NONE,
        modify: Calling::NONE,
        exits: Calling::NONE,
        replacement: None,
        vectors: Vectors::Untouched,
        sessions: 0,
    };

    fn add(&mut self, program: &SetEntry, cookie: CookiePlace) {
        let data = program.has_data.then_some(program.data);
        let call = |target, session| ProgramCall { target, data, cookie, session };
        match program.role {
            Role::Entry => self.entries.push(call(program.target, None)),
            Role::ModifyReturn => self.modify.push(call(program.target, None)),
            Role::Exit => self.exits.push(call(program.target, None)),
            Role::Session => {
                let session = Some(self.sessions);
                self.sessions += 1;
                self.entries.push(call(program.target, session));
                self.exits.push(call(program.exit, session));
            }
            Role::Replace => {
                self.replacement = Some(program.target);
                return;
            }
        }
        self.vectors = self.vectors.max(program.vectors());
    }

    fn form(&self) -> Form {
        match (self.entries.len, self.modify.len + self.exits.len, self.replacement) {
            (0, 0, None) => Form::Nothing,
            (0, 0, Some(_)) => Form::Replace,
            (_, 0, None) if self.sessions == 0 => Form::Entry,
            _ => Form::Exit,
        }
    }

    /// Bytes that the image can take at the most.
    fn max_size(&self, stack_arguments: Option<u8>, hardening: &Hardening) -> usize {
        let (entries, exits) = (self.entries.len + self.modify.len, self.exits.len);
        let [plain, hardened] = match (self.form(), stack_arguments) {
            (Form::Nothing | Form::Replace, _) => [0; 2],
            (Form::Entry, _) => {
                [EntryBody::max_size(entries), EntryBody::max_hardened_size(entries)]
            }
            (Form::Exit, Some(words)) => [
                FrameBodies::max_size(entries, exits, words),
                FrameBodies::max_hardened_size(entries, exits, words),
            ],
            (Form::Exit, None) => [
                SideStackBodies::max_size(entries, exits),
                SideStackBodies::max_hardened_size(entries, exits),
            ],
        };
        let (bodies, replacement) = if hardening.mitigations().is_empty() {
            (plain, REPLACEMENT_SIZE)
        } else {
            (hardened, HARDENED_REPLACEMENT_SIZE)
        };
        match self.form() {
            Form::Nothing | Form::Entry => bodies,
            Form::Exit | Form::Replace => bodies + replacement,
        }
    }
}

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
        let image = self.emit_image(class, programs)?;
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
                if image.address != 0 {
                    // SAFETY: allocated above; nothing leads there.
                    unsafe { self.parts.images.free(image.address, image.size as usize) };
                }
                return Err(AttachError::table(error));
            }
        };
        if let Some(hash) = self.hashes.get(number) {
            hash.store(programs.hash(class), Ordering::Relaxed);
        }
        if let Some(set) = self.sets.get_mut(number) {
            set.programs = *programs;
            set.image = image.address;
            set.image_size = image.size;
            set.bodies = image.bodies;
            set.form = image.form;
            set.class = class;
            set.users = 0;
            set.stamp = 0;
            set.live = true;
            set.left = false;
        }
        Ok(number)
    }

    /// Emits the image of these programs; nothing if none is enabled.
    fn emit_image(&mut self, class: u16, programs: &Programs) -> Outcome<Image, E> {
        let mut calls = Calls::NONE;
        for program in programs.as_slice().iter().filter(|program| program.enabled) {
            calls.add(program, self.cookie_place(program.lane).ok_or(AttachError::NoLane)?);
        }
        let class = self.classes.get(usize::from(class)).and_then(Option::as_ref).copied();
        let Some(class) = class.filter(|_| calls.form() != Form::Nothing) else {
            return Ok(Image::NOTHING);
        };
        let region = class.region;
        let size = calls.max_size(class.stack_arguments, &self.parts.hardening);
        let address = self.parts.images.allocate(region, size);
        let address = address.map_err(|cause| AttachError::no_image(region, cause))?;
        let mut bytes = [0; MAX_IMAGE];
        let mut code = CodeBuffer::new(&mut bytes, address);
        let written = self.emit_bodies(&class, &calls, &mut code).and_then(|bodies| {
            // SAFETY: allocated above; nothing leads there yet.
            unsafe { self.parts.images.write(address, code.written()) }
                .map_err(|cause| AttachError::no_image(region, cause))?;
            Ok(bodies)
        });
        match written {
            Ok((bodies, marks)) => {
                let what = Emitted::Image {
                    entries: [calls.entries.as_slice(), calls.modify.as_slice()],
                    exits: calls.exits.as_slice(),
                    bodies: marks.as_ref(),
                };
                self.parts.images.emitted(address, code.written(), what);
                Ok(Image { form: calls.form(), address, size: size as u32, bodies })
            }
            Err(error) => {
                // SAFETY: as above.
                unsafe { self.parts.images.free(address, size) };
                Err(error)
            }
        }
    }

    fn emit_bodies(
        &self,
        class: &Class,
        calls: &Calls,
        code: &mut CodeBuffer<'_>,
    ) -> Outcome<(Bodies, Option<Marks>), E> {
        let hardening = &self.parts.hardening;
        let start = code.here();
        if let Some(target) = calls.replacement {
            if hardening.mitigations().is_empty() {
                replacement(code, target)?;
            } else {
                replacement_hardened(code, target, hardening)?;
            }
        }
        let (entries, vectors) = (calls.entries.as_slice(), calls.vectors);
        match calls.form() {
            Form::Nothing | Form::Replace => {}
            Form::Entry => {
                let index = match class.layout.return_to_index() {
                    Some(return_to_index) => IndexFrom::Slot { return_to_index },
                    None => IndexFrom::Thunk,
                };
                let return_to_entry = class.layout.return_to_entry();
                EntryBody { index, return_to_entry, vectors, calls: entries }
                    .emit_hardened(code, hardening)?;
            }
            Form::Exit => {
                let (modify, exits) = (calls.modify.as_slice(), calls.exits.as_slice());
                let functions = self.entries_place();
                if let Some(stack_arguments) = class.stack_arguments {
                    let bodies =
                        FrameBodies { functions, stack_arguments, vectors, entries, modify, exits };
                    let marks = bodies.emit_hardened(code, hardening)?;
                    return Ok((marks.bodies(), Some(marks)));
                }
                let side_stack = self.parts.side_stack.ok_or(AttachError::NoSideStack)?;
                let bodies =
                    SideStackBodies { functions, side_stack, vectors, entries, modify, exits };
                let marks = bodies.emit_hardened(code, hardening)?;
                return Ok((marks.bodies(), Some(marks)));
            }
        }
        Ok((Bodies { enter: start, exit: 0, kept: Kept::OnSideStack }, None))
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

    /// Where emitted code finds the entries of functions: it is the first field of what is kept
    /// of each.
    fn entries_place(&self) -> CookiePlace {
        use super::function::FunctionInfo;
        static_assertions::const_assert_eq!(memoffset::offset_of!(FunctionInfo, entry), 0);
        static_assertions::const_assert_eq!(size_of::<FunctionInfo>(), 16);
        CookiePlace { column: self.functions.address(), stride: Stride::Sixteen }
    }
}
