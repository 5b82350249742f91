//! What is behind the front door: the engine, what it was told, and what may still be running.

use core::ops::Range;
use std::boxed::Box;
use std::string::ToString;
use std::sync::Arc;
use std::vec::Vec;

use super::cores::Membarrier;
use super::discover::{self, Module};
use super::embedder::{Host, HostImages, HostTables};
use super::error::{AttachError, HostError, OpenError};
use super::functions::{Catalogue, KnownModule};
use super::lock::Unavailable;
use super::locks;
use super::memory::{Arena, MemoryError};
use super::program::{Keep, Program};
use super::side_stacks;
use super::text::{HostText, can_store_pair};
use super::threads::{self, Deaf, Verdict};
use super::traps;
use super::visible::{Visibility, VisibilityError};
use crate::attach::{self, Engine, FunctionId, FunctionSpec, Parts, Region};
use crate::emit::x86_64::{Hardening, THUNK_SIZE};
use crate::patch::{Poke, Protocol};

mod explain;
mod quiesce;

/// Bytes of an arena, besides the thunks that its module may need.
const ARENA: usize = 64 << 10;

/// All that a [`Process`](super::Process) has behind its lock.
pub(super) struct State {
    pub engine: Engine<Host>,
    pub protocol: Protocol,
    pub catalogue: Arc<Catalogue>,
    /// The text of each region.
    regions: Vec<Range<u64>>,
    /// Modules that were unloaded, until no thread can be in emitted code for them.
    unloaded: Vec<Arc<KnownModule>>,
    /// How many modules the loader had unloaded when it was last asked.
    unloads: u64,
    /// Regions of such modules, to be used again.
    vacant_regions: Vec<Region>,
    /// What was detached, and may still be running.
    pub retired: Vec<Retired>,
    /// What may be dropped now, without the lock: a closure's `drop` may use this library.
    pub done: Vec<Retired>,
    /// For each thread that is dropping such things, the number of the first of them.
    pub dropping: Vec<u64>,
    /// How much has been retired.
    pub retirements: u64,
    /// How many of those may be dropped, or have been.
    pub gone: u64,
    deaf: Deaf,
    /// Where the stack of the thread that has the lock ended when it was called.
    pub called_from: u64,
    /// What is emitted, for a child that is being forked.
    copies: Vec<Vec<u8>>,
}

/// What a link leaves behind until no thread is inside.
#[derive(Debug)]
pub(super) struct Retired {
    pub number: u64,
    pub functions: Arc<[FunctionId]>,
    #[expect(dead_code, reason = "kept only to be dropped in time")]
    pub keep: Vec<Keep>,
}

impl State {
    pub fn new(protocol: Protocol) -> Result<Self, OpenError> {
        if protocol == Protocol::Breakpoint {
            traps::install()?;
        }
        let parts = Parts {
            text: HostText::default(),
            cores: Membarrier::register()?,
            images: HostImages::default(),
            tables: HostTables::default(),
            side_stack: side_stacks::place(),
            hardening: Hardening::NONE,
        };
        Ok(Self {
            engine: Engine::new(parts, protocol, &traps::TRAPS)?,
            protocol,
            catalogue: Arc::default(),
            regions: Vec::new(),
            unloaded: Vec::new(),
            unloads: 0,
            vacant_regions: Vec::new(),
            retired: Vec::new(),
            done: Vec::new(),
            dropping: Vec::new(),
            retirements: 0,
            gone: 0,
            deaf: Deaf::default(),
            called_from: 0,
            copies: Vec::new(),
        })
    }

    pub fn refresh(&mut self) -> Result<(), OpenError> {
        if !locks::are_usable() {
            return Err(Unavailable::Loader.into());
        }
        let mut fresh = Vec::new();
        // In one go, so that what is new is nowhere where something unloaded still seems to be.
        let found = discover::while_loaded(|loaded| {
            self.drop_unloaded(loaded)?;
            let known = self.catalogue.iter().map(|known| known.module.identity.clone());
            Ok::<_, OpenError>(discover::modules_except(&known.collect::<Vec<_>>())?)
        })??;
        self.forget_untouched();
        for module in found.modules {
            let known = Arc::new(self.register(module)?);
            fresh.push(Arc::clone(&known));
            Arc::make_mut(&mut self.catalogue).push(known);
        }
        // Nobody has promised yet that they stay loaded, so text is written only while they
        // must. What cannot be prepared now is tried again, and reported, when it is attached to.
        let _ = discover::while_loaded(|loaded| {
            let stay = |known: &&Arc<KnownModule>| loaded.contains(&known.module.identity);
            let ids = fresh.iter().filter(stay).flat_map(|known| &known.ids);
            self.prepare(&ids.copied().collect::<Vec<_>>())
        });
        Ok(())
    }

    /// Forgets the text of modules that are gone, before another is loaded to its place.
    /// Their functions' indexes and their image memory wait for [`quiesce`](Self::quiesce): a
    /// thread may still be in an image that looks them up.
    ///
    /// What is loaded stays so until this returns.
    fn drop_unloaded(&mut self, loaded: &[discover::Identity]) -> Result<(), OpenError> {
        // One that looks the same may have been unloaded and loaded again, without a trace of
        // what was done to it.
        let unloads = discover::generation().unloaded;
        let again = core::mem::replace(&mut self.unloads, unloads) != unloads;
        let mut kept = Catalogue::with_capacity(self.catalogue.len());
        for known in self.catalogue.iter() {
            if loaded.contains(&known.module.identity)
                && !(again && self.engine.was_reloaded(&known.ids))
            {
                kept.push(Arc::clone(known));
            } else {
                for range in &known.module.text {
                    self.engine.parts_mut().text.remove(range)?;
                }
                if !known.ids.is_empty() {
                    self.unloaded.push(Arc::clone(known));
                }
            }
        }
        self.catalogue = Arc::new(kept);
        Ok(())
    }

    /// Whether this module is loaded, as far as is known: the ids of one that is not may be
    /// another's by now.
    pub fn knows(&self, module: &Arc<KnownModule>) -> bool {
        self.catalogue.iter().any(|known| Arc::ptr_eq(known, module))
    }

    /// Whether a link names functions of this module.
    fn is_attached(&self, known: &KnownModule) -> bool {
        known.ids.iter().any(|&id| self.engine.is_attached(id))
    }

    /// Gives others what unloaded modules had for which nothing was ever emitted: no thread can
    /// be where nothing is.
    fn forget_untouched(&mut self) {
        let unloaded = core::mem::take(&mut self.unloaded);
        let images = &self.engine.parts().images;
        let untouched = |known: &Arc<KnownModule>| {
            images.ranges(|region| region == known.region).is_empty() && !self.is_attached(known)
        };
        let (gone, kept): (Vec<_>, Vec<_>) = unloaded.into_iter().partition(untouched);
        self.unloaded = kept;
        for known in gone {
            // SAFETY: its text is gone, and its functions never had a thunk or an image.
            unsafe { self.engine.forget(&known.ids) };
            // SAFETY: all of them were forgotten just now.
            unsafe { self.engine.forget_region(known.region) };
            self.vacant_regions.push(known.region);
        }
    }

    /// Gives others what the first `count` of the unloaded modules had: indexes, a region,
    /// image memory.
    ///
    /// # Safety
    /// No thread is in code that was emitted for them, or has its address on its stack.
    unsafe fn forget_unloaded(&mut self, count: usize) {
        let later = self.unloaded.split_off(count.min(self.unloaded.len()));
        let gone = core::mem::replace(&mut self.unloaded, later);
        // A link that names such functions still, against the contract of `attach`, keeps them:
        // what it would detach must not become another module's.
        let (kept, gone): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|known| self.is_attached(known));
        self.unloaded.extend(kept);
        if gone.is_empty() {
            return;
        }
        for known in &gone {
            // SAFETY: the text is gone, and all is quiescent (contract).
            unsafe { self.engine.forget(&known.ids) };
        }
        // SAFETY: as above. With their functions gone, their sets have no users.
        unsafe { self.engine.quiesced() };
        for known in gone {
            // SAFETY: its functions were forgotten above.
            unsafe { self.engine.forget_region(known.region) };
            let parts = self.engine.parts_mut();
            for arena in parts.images.take(known.region) {
                if parts.text.remove(&arena.range()).is_ok() {
                    // SAFETY: no site leads there, no thread is there (contract), and it is
                    // text no more.
                    unsafe { arena.unmap() };
                }
            }
            self.vacant_regions.push(known.region);
        }
    }

    /// Tells the text and the engine of a module.
    fn register(&mut self, mut module: Module) -> Result<KnownModule, OpenError> {
        if self.protocol == Protocol::ShortJump {
            module.reject_unpatchable(|site| can_store_pair(site.get()));
        }
        if module.functions.is_empty() {
            return Ok(KnownModule { module, ids: Vec::new(), region: Region(0), own: Vec::new() });
        }
        let start = module.text.iter().map(|range| range.start).min().unwrap_or(0);
        let end = module.text.iter().map(|range| range.end).max().unwrap_or(0);
        let region = self.add_region(start..end)?;
        for range in &module.text {
            // SAFETY: the module is loaded, and its users see to it that it stays
            // (`Process::attach`).
            unsafe { self.engine.parts_mut().text.add(range.clone(), &module.name) }?;
        }
        let mut ids = Vec::with_capacity(module.functions.len());
        for function in &module.functions {
            ids.push(self.engine.register(&FunctionSpec {
                entry: function.entry,
                layout: function.layout,
                nop: function.nop,
                region,
                stack_arguments: None,
            })?);
        }
        let own = own_functions(&module);
        Ok(KnownModule { module, ids, region, own })
    }

    /// A number for the text of a module.
    fn add_region(&mut self, text: Range<u64>) -> Result<Region, OpenError> {
        if let Some(region) = self.vacant_regions.pop()
            && let Some(place) = self.regions.get_mut(usize::from(region.0))
        {
            *place = text;
            return Ok(region);
        }
        let region = u16::try_from(self.regions.len()).map_err(|_| OpenError::TooManyModules)?;
        self.regions.push(text);
        Ok(Region(region))
    }

    /// Reserves image memory for a region: room for some images, and for a thunk for each of
    /// its functions that needs one.
    fn add_arena(&mut self, region: Region) -> Result<(), HostError> {
        let of_region = self.catalogue.iter().filter(|known| known.region == region);
        let functions = of_region.flat_map(|known| &known.module.functions);
        let unpadded = functions.filter(|function| function.layout.slot_kind().is_none());
        let thunks = unpadded.count() * THUNK_SIZE;
        let text = self.regions.get(usize::from(region.0)).cloned().unwrap_or(0..0);
        let arena = Arena::reserve(&text, ARENA + thunks)?;
        // A module may have been there, and have been unloaded since it was last looked. If
        // that cannot be found out, its text stands in the way.
        let _ = while_loaded(|loaded| self.drop_unloaded(loaded));
        let parts = self.engine.parts_mut();
        // SAFETY: an arena's writable mapping is as long as itself, and it is unmapped only
        // when its segment has been removed (`forget_unloaded`).
        let added = unsafe { parts.text.add_written_elsewhere(arena.range(), arena.written_at()) };
        if let Err(error) = added {
            // SAFETY: reserved above; nobody has been told.
            unsafe { arena.unmap() };
            return Err(error.into());
        }
        parts.images.add(region, arena);
        Ok(())
    }

    /// Makes these functions' patch sites one instruction each.
    // By itself, so that nothing of it is left on the stack above `called_from`.
    #[inline(never)]
    fn prepare(&mut self, functions: &[FunctionId]) -> Result<(), attach::AttachError<HostError>> {
        let mut pokes = std::vec![Poke::EMPTY; functions.len()];
        let called_from = self.called_from;
        // SAFETY: the functions are as they were found, and their modules are loaded; `settle`
        // looks at every thread.
        unsafe { self.engine.prepare(functions, &mut pokes, |sites| settle(called_from, sites)) }
    }

    /// Runs one of the engine's operations, making room for it and preparing sites if that is
    /// what it lacks.
    pub fn operate<T>(
        &mut self,
        functions: &[FunctionId],
        mut operation: impl FnMut(
            &mut Engine<Host>,
            &mut [Poke],
        ) -> Result<T, attach::AttachError<HostError>>,
    ) -> Result<T, AttachError> {
        if self.protocol == Protocol::Breakpoint {
            traps::check().map_err(AttachError::Traps)?;
        }
        let mut pokes = std::vec![Poke::EMPTY; self.engine.pokes_needed(functions)];
        let mut prepared = false;
        loop {
            let error = match operation(&mut self.engine, &mut pokes) {
                Ok(result) => {
                    self.engine.parts_mut().images.show(&self.catalogue);
                    return Ok(result);
                }
                Err(error) => error,
            };
            let again = match &error {
                // Each turn gives one region an arena that has room for what it asked for.
                &attach::AttachError::Images {
                    region,
                    cause: HostError::Memory(MemoryError::Full { .. }),
                } => match self.add_arena(region) {
                    Ok(()) => true,
                    Err(cause) => {
                        let cause = Box::new(attach::AttachError::Images { region, cause });
                        return Err(AttachError::Engine { function: None, cause });
                    }
                },
                attach::AttachError::NotPrepared { entry }
                    if !core::mem::replace(&mut prepared, true) =>
                {
                    if let Err(attach::AttachError::Text(cause)) = self.prepare(functions) {
                        let function = self.name_at(*entry).unwrap_or_default();
                        let cause = Box::new(cause);
                        return Err(AttachError::NotPrepared { function, cause });
                    }
                    true
                }
                _ => false,
            };
            if !again {
                return Err(self.explain(error, &pokes));
            }
        }
    }

    /// Shows what is emitted from now on.
    pub fn show_to(&mut self, to: &Visibility) -> Result<(), VisibilityError> {
        self.engine.parts_mut().images.visible.to(to)
    }

    /// Knows programs by their names.
    pub fn name(&mut self, programs: &[Program]) {
        let visible = &mut self.engine.parts_mut().images.visible;
        for program in programs {
            if let Some(name) = program.name {
                visible.know(program.target, name);
            }
        }
    }

    /// Keeps what was detached until no thread is inside.
    pub fn retire(&mut self, functions: &Arc<[FunctionId]>, keep: Vec<Keep>) {
        let known = |retired: &Retired| Arc::ptr_eq(&retired.functions, functions);
        // Switching one program on and off for hours leaves one entry behind, not thousands.
        if !(keep.is_empty() && self.retired.last().is_some_and(known)) {
            let number = self.retirements;
            self.retired.push(Retired { number, functions: Arc::clone(functions), keep });
        }
        self.retirements += 1;
    }

    /// Copies what is emitted, so that a child that is forked now has its own.
    pub fn copy_images(&mut self) {
        self.copies = self.engine.parts().images.copies();
    }

    /// Forgets the copies.
    pub fn drop_copies(&mut self) {
        self.copies = Vec::new();
    }

    /// In a forked child: has what was copied at the same addresses, for this process alone.
    pub fn adopt_copies(&mut self) -> Result<(), MemoryError> {
        let copies = core::mem::take(&mut self.copies);
        self.engine.parts_mut().images.adopt(&copies)
    }
}

/// As [`discover::while_loaded`], where that does not wait for ever; `None` where it would, or
/// nothing can be listed.
fn while_loaded<R>(work: impl FnOnce(&[discover::Identity]) -> R) -> Option<R> {
    locks::are_usable().then(|| discover::while_loaded(work).ok())?
}

/// Positions of this library's own functions: they run whenever a program does.
fn own_functions(module: &Module) -> Vec<u32> {
    let is_own = |function: &discover::Function| {
        let name = module.name_of(function);
        // Most names need not be demangled to see that they are not.
        name.mangled().is_some_and(|mangled| mangled.contains("6fentry"))
            && ["fentry::", "<fentry::"].iter().any(|own| name.to_string().starts_with(own))
    };
    let numbered = (0..).zip(&module.functions);
    numbered.filter(|(_, function)| is_own(function)).map(|(position, _)| position).collect()
}

/// Sees to it that no thread is between two of the nops that stood at these sites, by moving
/// those that are to the end of the site.
fn settle(called_from: u64, pokes: &[Poke]) -> Result<(), HostError> {
    let sites: Vec<_> = pokes
        .iter()
        .map(|poke| {
            let start = poke.site.get();
            start..start.saturating_add(poke.old.len() as u64)
        })
        .collect();
    threads::inspect_callers(called_from, &sites, |seen| match (&seen.inside, seen.instruction) {
        _ if seen.on_stack.is_some() || seen.alternate_stack => Verdict::REFUSE,
        (Some(site), Some(at)) if at != site.start => {
            // SAFETY: what is left of the site are nops, which change nothing.
            unsafe { Verdict::move_to(site.end) }
        }
        _ => Verdict::LEAVE,
    })?;
    Ok(())
}
