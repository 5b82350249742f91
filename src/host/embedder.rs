//! The engine's traits, as this process fulfils them.

use core::ops::Range;
use core::ptr::NonNull;
use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString};
use std::vec::Vec;

use super::cores::Membarrier;
use super::error::HostError;
use super::functions::{Catalogue, KnownModule};
use super::memory::{Allocation, Arena, MemoryError, Reservation};
use super::text::HostText;
use super::unwind::Tables;
use super::visible::{Naming, Visible};
use crate::attach::{Embedder, Emitted, ImageMemory, Region};
use crate::metadata::TableMemory;

/// This process, as an [`Embedder`].
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Embedder for Host {
    type Error = HostError;
    type Text = HostText;
    type Cores = Membarrier;
    type Images = HostImages;
    type Tables = HostTables;
}

/// What images are aligned to.
const ALIGN: usize = 64;

/// Memory for emitted code: arenas, each within reach of one module's text.
#[derive(Debug, Default)]
pub struct HostImages {
    /// The arenas of each region.
    regions: Vec<Vec<Arena>>,
    /// What has been given out, by the address where it runs.
    allocations: BTreeMap<u64, Placed>,
    /// What unwinders know of it.
    unwind: Tables,
    /// Who is shown it.
    pub(super) visible: Visible,
}

#[derive(Debug)]
struct Placed {
    region: Region,
    arena: usize,
    allocation: Allocation,
    /// Whether unwinders know of it.
    told: bool,
}

impl HostImages {
    /// Makes `arena` available to a region; a new one where `region` is the number of regions.
    pub(super) fn add(&mut self, region: Region, mut arena: Arena) {
        // An address on a stack counts if it is inside of what is watched, and its very start
        // is not. So no image begins there: a signal handler may return to its first byte.
        let _ = arena.allocate(ALIGN, ALIGN);
        let region = usize::from(region.0);
        if self.regions.len() <= region {
            self.regions.resize_with(region + 1, Vec::new);
        }
        if let Some(arenas) = self.regions.get_mut(region) {
            arenas.push(arena);
        }
    }

    /// Takes a region's arenas away from it. Nothing in them is given out any more.
    pub(super) fn take(&mut self, region: Region) -> Vec<Arena> {
        self.allocations.retain(|_, placed| placed.region != region);
        let arenas = self.regions.get_mut(usize::from(region.0)).map(core::mem::take);
        let arenas = arenas.unwrap_or_default();
        for arena in &arenas {
            self.unwind.remove(&arena.range());
            self.visible.gone(&arena.range());
        }
        arenas
    }

    /// Shows what was emitted, under names from this catalogue.
    pub(super) fn show(&mut self, catalogue: &Catalogue) {
        let Self { allocations, visible, .. } = self;
        visible.show(&HostNames { catalogue, allocations });
    }

    /// The bytes of every arena.
    pub(super) fn copies(&self) -> Vec<Vec<u8>> {
        self.regions.iter().flatten().map(Arena::copy).collect()
    }

    /// In a forked child: gives every arena memory of its own, with these bytes.
    pub(super) fn adopt(&mut self, copies: &[Vec<u8>]) -> Result<(), MemoryError> {
        for (arena, copy) in self.regions.iter_mut().flatten().zip(copies) {
            arena.adopt(copy)?;
        }
        for placed in self.allocations.values_mut() {
            placed.allocation.adopt();
        }
        Ok(())
    }

    /// Where the arenas are of the regions that `wanted` says so of, sorted.
    pub(super) fn ranges(&self, wanted: impl Fn(Region) -> bool) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for (number, arenas) in self.regions.iter().enumerate() {
            let region = Region(u16::try_from(number).unwrap_or(u16::MAX));
            if wanted(region) {
                ranges.extend(arenas.iter().map(Arena::range));
            }
        }
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    fn arena(&mut self, region: Region, arena: usize) -> Option<&mut Arena> {
        self.regions.get_mut(usize::from(region.0))?.get_mut(arena)
    }
}

// SAFETY: an arena is within 2 GiB of the text that it was reserved for, which is that of the
// region's module (`State` pairs them), runs in a shared R|X mapping that stays until the
// module is gone and nobody is inside, and is filled with int3 when it is reserved and when a part of it is freed. Code is written
// through another mapping of the same pages: to instruction fetch, that is a store like any
// other, and the patch that leads there is followed by a synchronisation of every core.
unsafe impl ImageMemory for HostImages {
    type Error = MemoryError;

    fn allocate(&mut self, region: Region, size: usize) -> Result<u64, MemoryError> {
        let mut full = MemoryError::Full { len: size, align: ALIGN, largest: 0 };
        let arenas = self.regions.get_mut(usize::from(region.0)).map_or(&mut [][..], |a| a);
        for (number, arena) in arenas.iter_mut().enumerate() {
            match arena.allocate(size, ALIGN) {
                Ok(allocation) => {
                    let address = allocation.run();
                    let placed = Placed { region, arena: number, allocation, told: false };
                    self.allocations.insert(address, placed);
                    return Ok(address);
                }
                Err(error @ MemoryError::Full { .. }) => full = error,
                Err(error) => return Err(error),
            }
        }
        Err(full)
    }

    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), MemoryError> {
        let placed = self.allocations.range_mut(..=address).next_back();
        let (start, placed) = placed.ok_or(MemoryError::Foreign { run: address })?;
        placed.allocation.fill((address - start) as usize, code)
    }

    fn emitted(&mut self, address: u64, code: &[u8], what: Emitted<'_>) {
        if let Some((&start, placed)) = self.allocations.range_mut(..=address).next_back()
            && !core::mem::replace(&mut placed.told, true)
        {
            let memory = start..start + placed.allocation.size() as u64;
            self.unwind.add(memory, address..address + code.len() as u64, what);
        }
        self.visible.emitted(address, code, what);
    }

    unsafe fn free(&mut self, address: u64, size: usize) {
        let range = address..address + size as u64;
        self.unwind.remove(&range);
        self.visible.gone(&range);
        let Some(Placed { region, arena, allocation, .. }) = self.allocations.remove(&address)
        else {
            return;
        };
        if let Some(arena) = self.arena(region, arena) {
            // SAFETY: nothing leads there and nobody is inside (contract). In a forked child
            // this fails, and the memory stays as it is.
            let _ = unsafe { arena.free(allocation) };
        }
    }
}

/// Names from the catalogue of functions.
struct HostNames<'a> {
    catalogue: &'a Catalogue,
    allocations: &'a BTreeMap<u64, Placed>,
}

impl Naming for HostNames<'_> {
    fn functions(&self, indexes: &BTreeSet<u32>) -> BTreeMap<u32, String> {
        let named = self.catalogue.iter().flat_map(|known| {
            let KnownModule { module, ids, .. } = &**known;
            let functions = ids.iter().zip(&module.functions);
            let wanted = functions.filter(|(id, _)| indexes.contains(&id.0));
            wanted.map(|(id, function)| (id.0, module.name_of(function).to_string()))
        });
        named.collect()
    }

    fn module(&self, address: u64) -> Option<&str> {
        let (_, placed) = self.allocations.range(..=address).next_back()?;
        let known = self.catalogue.iter().find(|known| {
            // Modules without functions have no region.
            !known.ids.is_empty() && known.region == placed.region
        })?;
        Some(&known.module.name)
    }
}

/// Memory for tables: reserved address space, made usable from the front.
#[derive(Debug, Default)]
pub struct HostTables {
    reservations: Vec<Reservation>,
}

// SAFETY: each reservation is a private anonymous mapping of its own, zero when it becomes
// readable, and `mprotect` of what lies behind neither moves nor touches what was usable.
unsafe impl TableMemory for HostTables {
    type Error = MemoryError;

    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, MemoryError> {
        let reservation = Reservation::reserve(bytes, None)?;
        let base = NonNull::new(reservation.base());
        self.reservations.push(reservation);
        base.ok_or(MemoryError::TableFull { len: bytes, reserved: 0 })
    }

    unsafe fn commit(&mut self, base: NonNull<u8>, _: usize, to: usize) -> Result<(), MemoryError> {
        let of_base = |reservation: &&mut Reservation| reservation.base() == base.as_ptr();
        let reservation = self.reservations.iter_mut().find(of_base);
        let missing = MemoryError::TableFull { len: to, reserved: 0 };
        reservation.ok_or(missing)?.commit(to)
    }

    unsafe fn release(&mut self, base: NonNull<u8>, _: usize) {
        let of_base = |reservation: &Reservation| reservation.base() == base.as_ptr();
        if let Some(found) = self.reservations.iter().position(of_base) {
            // SAFETY: nobody uses it any more (contract).
            unsafe { self.reservations.swap_remove(found).unmap() };
        }
    }
}
