//! The engine: what is registered, what is attached, and the four operations on it.

use core::fmt;

use super::function::FunctionInfo;
use super::set::{Programs, Set, SetEntry};
use super::{
    AttachError, Attachment, Cookies, Edit, Embedder, FunctionId, FunctionSpec, Lanes, Parts,
    Region,
};
use crate::addr::Entry;
use crate::layout::EntryLayout;
use crate::metadata::{Column, LANES, Record, Table};
use crate::patch::{Poke, Protocol, TrapResolver};
use crate::sync::{AtomicU64, Ordering};

/// The most functions an engine can know. Their tables are reserved as address space, 96 MiB
/// of it, and use memory only as functions are registered and attached to.
pub(super) const MAX_FUNCTIONS: u32 = 1 << 22;

/// The most program sets, counting those that wait for quiescence.
const MAX_SETS: u32 = 1 << 18;

/// The most combinations of a layout and a region.
const MAX_CLASSES: usize = 256;

/// Functions that can share images: same layout, same region, same stack arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub layout: EntryLayout,
    pub region: Region,
    pub stack_arguments: Option<u8>,
    /// The set of those of its functions that have no program.
    pub empty: u32,
    /// Thunks that are allocated and not yet used.
    pub thunks: Option<ThunkChunk>,
}

/// Memory for thunks of one class's functions that is not used up.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThunkChunk {
    pub next: u64,
    pub left: usize,
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
        let class = self.class(&spec.layout, spec.region, spec.stack_arguments)?;
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

    /// The class of these functions, made if it is new.
    pub(super) fn class(
        &mut self,
        layout: &EntryLayout,
        region: Region,
        stack_arguments: Option<u8>,
    ) -> Outcome<u16, E> {
        let is_it = |class: &Class| {
            class.layout == *layout
                && class.region == region
                && class.stack_arguments == stack_arguments
        };
        for (number, class) in (0_u16..).zip(&self.classes) {
            match class {
                Some(class) if is_it(class) => return Ok(number),
                Some(_) => {}
                None => {
                    let empty = self.add_set(number, &Programs::EMPTY)?;
                    let layout = *layout;
                    let class = Class { layout, region, stack_arguments, empty, thunks: None };
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

    /// Whether the function `id` has programs, switched on or not.
    #[must_use]
    pub fn is_attached(&self, id: FunctionId) -> bool {
        let set = self.records.get(id.0).map(|record| record.set.load(Ordering::Relaxed));
        let set = set.and_then(|set| self.sets.get(set));
        set.is_some_and(|set| set.live && set.programs.lanes() != 0)
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
    /// - Each program is a function of the C ABI of the type that its [`kind`](Attachment::kind)
    ///   says, and leaves alone the vector registers that its
    ///   [`vectors`](Attachment::vectors) says it leaves alone. What replaces a function, or
    ///   returns in its place, does what its callers rely on, and stays for ever.
    /// - What runs at an exit leaves the x87 stack alone. Each thread uses one stack, or changes
    ///   its [side stack](crate::emit::x86_64::SideStack) along with it.
    /// - Each program may run at the entry or exit of each function, on any thread, at any time: in
    ///   signal or interrupt handlers if the function is called there, with whatever locks
    ///   the function's callers hold, and recursively if it calls a hooked function.
    /// - Programs and their data stay until the attachment is [retired](Self::quiesced). So they
    ///   do if this fails with a [`PatchError`](crate::patch::PatchError): a core may have entered
    ///   them before everything was taken back. If it fails with
    ///   [`Stuck`](crate::patch::PatchError::Stuck), they stay for good.
    /// - The functions are where their registration said, with that layout, and their text
    ///   stays. Nobody else patches them meanwhile.
    /// - With the breakpoint protocol, every core's trap handler asks this engine's resolver.
    ///
    /// # Errors
    /// [`AttachError`]; then nothing is attached, and all that can be executed is as before. An
    /// index that was written into its padding may stay there.
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
            if let Cookies::Each(cookies) = program.cookies
                && cookies.len() != functions.len()
            {
                let (cookies, functions) = (cookies.len(), functions.len());
                return Err(AttachError::CookieCount { cookies, functions });
            }
            let lane = match self.lane_with_cookies(functions, &mut lanes, program) {
                Some(lane) => lane,
                None => {
                    let lane = lanes.take_free().ok_or(AttachError::NoLane)?;
                    self.ready_lane(lane)?;
                    self.write_cookies(functions, lane, program)?;
                    lane
                }
            };
            if !entries.push(SetEntry::new(program, lane)) {
                let entry = self.first_entry(functions);
                return Err(AttachError::TooManyPrograms { entry });
            }
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

    fn first_entry(&self, functions: &[FunctionId]) -> Entry {
        functions.first().and_then(|&id| self.entry(id)).unwrap_or(Entry::new(0))
    }
}
