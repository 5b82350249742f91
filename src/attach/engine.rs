//! The engine: what is registered, what is attached, and the four operations on it.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::function::FunctionInfo;
use super::prepare::Slots;
use super::set::{Programs, Set, SetEntry};
use super::{
    AttachError, Attachment, Edit, Embedder, FunctionId, FunctionSpec, Lanes, Parts, Region,
};
use crate::addr::Entry;
use crate::layout::EntryLayout;
use crate::metadata::{Column, LANES, Record, Table};
use crate::patch::{Batch, Poke, Protocol, TrapResolver};

/// The most functions an engine can know. Their tables are reserved as address space, 96 MiB
/// of it, and use memory only as functions are registered and attached to.
const MAX_FUNCTIONS: u32 = 1 << 22;

/// The most program sets, counting those that wait for quiescence.
const MAX_SETS: u32 = 1 << 18;

/// The most combinations of a layout and a region.
const MAX_CLASSES: usize = 256;

/// Functions that can share images: same layout, same region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub layout: EntryLayout,
    pub region: Region,
    /// The set of those of its functions that have no program.
    pub empty: u32,
}

/// Lanes that an attachment may get.
#[derive(Clone, Copy, Debug)]
struct LanesInUse {
    /// No body reads them.
    free: u32,
    /// No program has them, but a body may still be reading them.
    stale: u32,
}

/// Attaches programs to functions.
///
/// One engine serves one address space. Its methods take `&mut self`: an embedder with several
/// threads puts it behind a lock. Emitted code never waits for that lock.
pub struct Engine<E: Embedder> {
    pub(super) parts: Parts<E>,
    pub(super) protocol: Protocol,
    pub(super) traps: &'static TrapResolver,
    pub(super) records: Table<Record>,
    pub(super) functions: Column<FunctionInfo>,
    /// The cookies of lane 1 and up; reserved when a lane is first used.
    pub(super) columns: [Option<Column<AtomicU64>>; LANES as usize - 1],
    pub(super) sets: Table<Set>,
    /// Each set's hash, 0 for a vacant one, so that looking for a list reads 8 bytes a set.
    pub(super) hashes: Column<AtomicU64>,
    pub(super) classes: [Option<Class>; MAX_CLASSES],
    /// Thunks that are allocated and not yet used, in one region.
    pub(super) thunks: Option<super::plan::ThunkChunk>,
    /// Which edit is in progress; see [`Set::stamp`].
    pub(super) edits: u32,
}

impl<E: Embedder> fmt::Debug for Engine<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("protocol", &self.protocol)
            .field("functions", &self.records.bound())
            .field("sets", &self.sets.bound())
            .finish_non_exhaustive()
    }
}

/// Results of the engine's operations.
pub(super) type Outcome<T, E> = Result<T, AttachError<<E as Embedder>::Error>>;

impl<E: Embedder> Engine<E> {
    /// An engine without functions. `traps` is what the embedder's trap handler asks; only
    /// the breakpoint protocol uses it.
    ///
    /// # Errors
    /// [`AttachError::Table`] if there is no address space for the tables.
    pub fn new(
        mut parts: Parts<E>,
        protocol: Protocol,
        traps: &'static TrapResolver,
    ) -> Outcome<Self, E> {
        let memory = &mut parts.tables;
        let records = Table::reserve(memory, MAX_FUNCTIONS).map_err(AttachError::table)?;
        let functions = Column::reserve(memory, MAX_FUNCTIONS).map_err(AttachError::table)?;
        let mut sets = Table::reserve(memory, MAX_SETS).map_err(AttachError::table)?;
        let hashes = Column::reserve(memory, MAX_SETS).map_err(AttachError::table)?;
        // A record's set number 0 says that nothing was ever attached, so set 0 is nobody's.
        let nobody = sets.allocate(memory).map_err(AttachError::table)?;
        debug_assert_eq!(nobody, 0, "the first index of a table is 0");
        Ok(Self {
            parts,
            protocol,
            traps,
            records,
            functions,
            columns: [const { None }; LANES as usize - 1],
            sets,
            hashes,
            classes: [None; MAX_CLASSES],
            thunks: None,
            edits: 0,
        })
    }

    /// The embedder's parts.
    #[must_use]
    pub const fn parts(&self) -> &Parts<E> {
        &self.parts
    }

    /// The embedder's parts, to tell them of new text.
    pub const fn parts_mut(&mut self) -> &mut Parts<E> {
        &mut self.parts
    }

    /// Makes a function known, without touching its text, and gives its index.
    ///
    /// # Errors
    /// [`AttachError::Table`], [`AttachError::TooManyClasses`].
    pub fn register(&mut self, spec: &FunctionSpec) -> Outcome<FunctionId, E> {
        let class = self.class(&spec.layout, spec.region)?;
        let memory = &mut self.parts.tables;
        let index = self.records.allocate(memory).map_err(AttachError::table)?;
        let known = self.functions.ready(memory, self.records.bound());
        if let (Ok(()), Some(info)) = (&known, self.functions.get_mut(index)) {
            *info = FunctionInfo::new(spec.entry, class, spec.nop);
            return Ok(FunctionId(index));
        }
        // SAFETY: given out above, and told to nobody.
        unsafe { self.records.release(index) };
        known.map_err(AttachError::table)?;
        Err(AttachError::UnknownFunction { index })
    }

    /// Forgets functions, whose indexes may then be given to others.
    ///
    /// # Safety
    /// No core runs or will run the functions, their thunks or an image they led to, or has
    /// one of them as a return address: their text is gone, and all is [quiescent](Self::quiesced).
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

    /// The class of these functions, made if it is new.
    fn class(&mut self, layout: &EntryLayout, region: Region) -> Outcome<u16, E> {
        let is_it = |class: &Class| class.layout == *layout && class.region == region;
        for (number, class) in (0_u16..).zip(&self.classes) {
            match class {
                Some(class) if is_it(class) => return Ok(number),
                Some(_) => {}
                None => {
                    let empty = self.add_set(number, &Programs::EMPTY)?;
                    let class = Class { layout: *layout, region, empty };
                    if let Some(place) = self.classes.get_mut(usize::from(number)) {
                        *place = Some(class);
                    }
                    return Ok(number);
                }
            }
        }
        Err(AttachError::TooManyClasses)
    }

    /// Where the function `id` is.
    #[must_use]
    pub fn entry(&self, id: FunctionId) -> Option<Entry> {
        self.functions.get(id.0).filter(|info| info.nop().is_some()).map(FunctionInfo::entry)
    }

    /// How many pokes an operation on `functions` needs room for: one for each, and another
    /// for each that has a thunk.
    #[must_use]
    pub fn pokes_needed(&self, functions: &[FunctionId]) -> usize {
        let thunked = |id: &&FunctionId| {
            let class = self.functions.get(id.0).and_then(|info| self.class_of(info));
            class.is_some_and(|class| class.layout.slot_kind().is_none())
        };
        if self.classes.iter().flatten().all(|class| class.layout.slot_kind().is_some()) {
            return functions.len();
        }
        functions.len().saturating_add(functions.iter().filter(thunked).count())
    }

    pub(super) fn class_of(&self, info: &FunctionInfo) -> Option<&Class> {
        self.classes.get(usize::from(info.class)).and_then(Option::as_ref)
    }

    /// Attaches programs to functions, behind those that they have, in one batch. `pokes` is
    /// room to work in, as much as [`pokes_needed`](Self::pokes_needed) says.
    ///
    /// When this returns `Ok`, every later call of one of the functions runs the programs.
    ///
    /// # Safety
    /// - Each program is a function of the C ABI that takes a pointer to a
    ///   [`Context`](crate::emit::Context), a cookie and its data, and leaves alone the vector
    ///   registers that its [`vectors`](Attachment::vectors) says it leaves alone.
    /// - Each program may run at the entry of each function, on any thread, at any time: in
    ///   signal or interrupt handlers if the function is called there, with whatever locks
    ///   the function's callers hold, and recursively if it calls a hooked function.
    /// - Programs and their data stay until the attachment is [retired](Self::quiesced).
    /// - The functions are where their registration said, with that layout, and their text
    ///   stays. Nobody else patches them meanwhile.
    /// - With the breakpoint protocol, every core's trap handler asks this engine's resolver.
    ///
    /// # Errors
    /// [`AttachError`]; then nothing is attached, and all text is as before.
    pub unsafe fn attach(
        &mut self,
        functions: &[FunctionId],
        programs: &[Attachment<'_>],
        pokes: &mut [Poke],
    ) -> Outcome<Lanes, E> {
        if programs.is_empty() {
            return Err(AttachError::NoPrograms);
        }
        let mut lanes = self.lanes(functions)?;
        let mut entries = Programs::EMPTY;
        for program in programs {
            let lane = self.choose_lane(functions, &mut lanes, program)?;
            self.ready_lane(lane)?;
            let Attachment { target, data, vectors, .. } = *program;
            if !entries.push(SetEntry::new(target, data, vectors, lane)) {
                let entry = self.first_entry(functions);
                return Err(AttachError::TooManyPrograms { entry });
            }
            self.write_cookies(functions, lane, program)?;
        }
        // SAFETY: the caller's contract is the same.
        unsafe { self.edit(functions, Edit::Append(entries.as_slice()), pokes) }?;
        Ok(Lanes(entries.lanes()))
    }

    /// Detaches what [`attach`](Self::attach) attached in `lanes`, from these functions.
    ///
    /// When this returns `Ok`, no later call of one of the functions runs the programs.
    ///
    /// # Safety
    /// The functions' text is still there, and nobody else patches it meanwhile; with the
    /// breakpoint protocol, as for `attach`.
    ///
    /// # Errors
    /// [`AttachError`]; then everything is still attached, and all text is as before.
    pub unsafe fn detach(
        &mut self,
        functions: &[FunctionId],
        lanes: Lanes,
        pokes: &mut [Poke],
    ) -> Outcome<(), E> {
        // SAFETY: programs only go; the rest is the caller's contract.
        unsafe { self.edit(functions, Edit::Remove(lanes.0), pokes) }
    }

    /// Switches attached programs off, or on again where they stood in the functions' lists.
    ///
    /// # Safety
    /// As [`detach`](Self::detach); to switch them on, also as [`attach`](Self::attach).
    ///
    /// # Errors
    /// [`AttachError`]; then nothing is switched, and all text is as before.
    pub unsafe fn set_enabled(
        &mut self,
        functions: &[FunctionId],
        lanes: Lanes,
        enabled: bool,
        pokes: &mut [Poke],
    ) -> Outcome<(), E> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.edit(functions, Edit::Enable(lanes.0, enabled), pokes) }
    }

    /// Which lanes these functions use, and which may still be read.
    fn lanes(&self, functions: &[FunctionId]) -> Outcome<LanesInUse, E> {
        let mut lanes = LanesInUse { free: !0, stale: !0 };
        let mut same = (0, 0);
        for id in functions {
            let record = self.records.get(id.0);
            let record = record.ok_or(AttachError::UnknownFunction { index: id.0 })?;
            let set = record.set.load(Ordering::Relaxed);
            if same.0 != set {
                same = (set, self.sets.get(set).map_or(0, |set| set.programs.lanes()));
            }
            lanes.free &= !record.lanes.load(Ordering::Relaxed);
            lanes.stale &= !same.1;
        }
        lanes.stale &= !lanes.free;
        Ok(lanes)
    }

    /// A lane for a program, taken from `lanes`: one that has its cookies already, from an
    /// attachment that is over, or else one that no body reads.
    fn choose_lane(
        &self,
        functions: &[FunctionId],
        lanes: &mut LanesInUse,
        program: &Attachment<'_>,
    ) -> Outcome<u8, E> {
        let mut stale = lanes.stale;
        while stale != 0 {
            let lane = stale.trailing_zeros() as u8;
            stale &= stale - 1;
            if self.has_cookies(functions, lane, program) {
                lanes.stale &= !1_u32.wrapping_shl(lane.into());
                return Ok(lane);
            }
        }
        if lanes.free == 0 {
            return Err(AttachError::NoLane);
        }
        let lane = lanes.free.trailing_zeros() as u8;
        lanes.free &= lanes.free - 1;
        Ok(lane)
    }

    /// Whether the cookies in `lane` are the program's wherever a body may still read them.
    fn has_cookies(&self, functions: &[FunctionId], lane: u8, program: &Attachment<'_>) -> bool {
        functions.iter().enumerate().all(|(position, id)| {
            let unread = self.records.get(id.0).is_some_and(|record| {
                record.lanes.load(Ordering::Relaxed) & 1_u32.wrapping_shl(lane.into()) == 0
            });
            let found = self.cookie(id.0, lane).map(|cookie| cookie.load(Ordering::Relaxed));
            unread || found.is_some() && found == program.cookies.at(position)
        })
    }

    fn first_entry(&self, functions: &[FunctionId]) -> Entry {
        functions.first().and_then(|&id| self.entry(id)).unwrap_or(Entry::new(0))
    }

    /// Makes room for the cookies of `lane`.
    fn ready_lane(&mut self, lane: u8) -> Outcome<(), E> {
        let Some(column) = usize::from(lane).checked_sub(1) else { return Ok(()) };
        let Some(column) = self.columns.get_mut(column) else {
            return Err(AttachError::NoLane);
        };
        let memory = &mut self.parts.tables;
        if column.is_none() {
            *column = Some(Column::reserve(memory, MAX_FUNCTIONS).map_err(AttachError::table)?);
        }
        match column {
            Some(column) => column.ready(memory, self.records.bound()).map_err(AttachError::table),
            None => Err(AttachError::NoLane),
        }
    }

    /// Writes a program's cookies where its lane has them: no body reads that lane, or they
    /// are there already.
    fn write_cookies(
        &self,
        functions: &[FunctionId],
        lane: u8,
        program: &Attachment<'_>,
    ) -> Outcome<(), E> {
        for (position, id) in functions.iter().enumerate() {
            let cookie = program.cookies.at(position);
            let cookie = cookie.ok_or(AttachError::CookieMissing { position })?;
            let place = self.cookie(id.0, lane);
            let place = place.ok_or(AttachError::UnknownFunction { index: id.0 })?;
            place.store(cookie, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The cookie of `lane` of the function with `index`.
    fn cookie(&self, index: u32, lane: u8) -> Option<&AtomicU64> {
        match usize::from(lane).checked_sub(1) {
            None => self.records.get(index).map(|record| &record.cookie),
            Some(column) => self.columns.get(column)?.as_ref()?.get(index),
        }
    }

    /// Applies one edit to every function's list of programs, in one batch.
    ///
    /// # Safety
    /// As [`attach`](Self::attach) or [`detach`](Self::detach), whichever the edit is.
    unsafe fn edit(
        &mut self,
        functions: &[FunctionId],
        edit: Edit<'_>,
        pokes: &mut [Poke],
    ) -> Outcome<(), E> {
        if functions.is_empty() {
            return Err(AttachError::NoFunctions);
        }
        self.edits = self.edits.wrapping_add(1).max(1);
        let planned = self.plan(functions, edit, pokes)?;
        let pokes = pokes.get_mut(..planned.pokes).unwrap_or(&mut []);
        let batch = Batch::new(self.protocol, pokes);
        let batch = batch.check(&self.parts.text).map_err(AttachError::check)?;
        if planned.vacant_slots {
            // SAFETY: every site of `functions` that has a slot to write is in the batch.
            unsafe { self.write_slots(functions, batch.pokes(), Slots::Fill) }?;
        }
        let Parts { text, cores, .. } = &mut self.parts;
        // SAFETY: the sites are one instruction each (`plan` refuses others) and change to
        // calls of images and thunks that are emitted, or back to nops; the rest is the
        // caller's contract.
        match unsafe { batch.land(text, cores, self.traps) } {
            Ok(()) => {
                self.commit(functions);
                Ok(())
            }
            Err(error) => {
                if planned.vacant_slots {
                    // SAFETY: as above. Nothing leads to an image that reads these slots.
                    unsafe { self.write_slots(functions, pokes, Slots::TakeBack) }?;
                }
                Err(AttachError::patch(error))
            }
        }
    }
}
