//! Memory for emitted code, and for a table that grows without moving.
//!
//! # Two mappings, one memory
//! Emitted code is written through one mapping and run through another, of the same memory:
//! ```text
//!     run    R X   within 2 GiB of the text       nobody can write here
//!     write  R W   anywhere                       nobody can run here
//! ```
//! So no address is ever both writable and executable, and no page changes its protection
//! while threads run it.
//!
//! # `fork`
//! That memory is shared (`MAP_SHARED`, it could not be mapped twice otherwise), so that a
//! forked child would run *the same* code bytes as its parent, not a copy:
//! - A child of `fork(3)` maps a copy of its own at the same addresses, before `fork` returns
//!   there (`host::fork`).
//! - In any other child (of `vfork`, or of the bare system call) the write mapping does not exist
//!   (`MADV_DONTFORK`), so that it cannot alter the code its parent is running. Every method that
//!   would write answers [`MemoryError::Forked`] there. What the parent frees or emits later
//!   changes in such a child too: it must end or call `execve` soon.

mod error;
mod reservation;

use core::ffi::c_void;
use core::ops::Range;
use core::ptr::NonNull;

use std::vec::Vec;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::maps::PAGE;
use super::near;

pub use error::MemoryError;
pub use reservation::Reservation;

/// What stands wherever nothing has been emitted: `int3`.
const TRAP: u8 = 0xcc;

/// Memory for emitted code, within reach of given text.
///
/// Dropping it leaves it mapped, as threads may be running it; [`unmap`](Self::unmap) takes
/// it away.
#[derive(Debug)]
pub struct Arena {
    /// Where it runs.
    run: NonNull<u8>,
    /// Where it is written.
    write: NonNull<u8>,
    len: usize,
    /// Offsets nobody has, sorted, no two of them adjacent.
    free: Vec<Range<usize>>,
    /// The process that has the write mapping.
    owner: u32,
}

// SAFETY: both pointers are to mappings that belong to the process, not to a thread, and
// only `&mut self` or the one `Allocation` of a place writes there.
unsafe impl Send for Arena {}
// SAFETY: `&self` gives numbers only.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `len` bytes, rounded up to pages, such that every one of them is within
    /// 2 GiB (less one MiB) of every byte of `text`. They hold `int3`.
    ///
    /// Takes the gap in the address space that is nearest to the text.
    ///
    /// # Errors
    /// [`MemoryError::NoRoom`] where no gap is large enough, [`MemoryError::Maps`]
    /// and [`MemoryError::Map`] where the kernel refuses.
    pub fn reserve(text: &Range<u64>, len: usize) -> Result<Self, MemoryError> {
        let no_room = MemoryError::NoRoom { near: text.start, end: text.end, len };
        let len = whole_pages(len).ok_or(no_room)?;
        let run = near::place(text, len as u64, |address| {
            map_new(address, len, |address, flags| {
                let protection = ProtFlags::READ | ProtFlags::EXEC;
                // SAFETY: `MAP_FIXED_NOREPLACE` never replaces a mapping.
                unsafe {
                    rustix::mm::mmap_anonymous(address, len, protection, flags | MapFlags::SHARED)
                }
            })
        });
        let run = run.map_err(|refusal| MemoryError::refused(refusal, text, len))?;
        let write = map_again(run, len).map_err(|errno| {
            // SAFETY: mapped above; nobody has been told of it.
            let _ = unsafe { rustix::mm::munmap(run, len) };
            MemoryError::Map { errno, len }
        })?;
        // SAFETY: the mapping made above, which nobody else knows.
        unsafe { write.cast::<u8>().write_bytes(TRAP, len) };
        let (Some(run), Some(write)) = (NonNull::new(run.cast()), NonNull::new(write.cast()))
        else {
            return Err(MemoryError::Map { errno: Errno::FAULT, len });
        };
        let free = std::vec![0..len];
        Ok(Self { run, write, len, free, owner: std::process::id() })
    }

    /// Where the code runs, all of it.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.run.addr().get() as u64;
        start..start + self.len as u64
    }

    /// Where the first byte is written: the other mapping of the same memory.
    #[must_use]
    pub fn written_at(&self) -> u64 {
        self.write.as_ptr().expose_provenance() as u64
    }

    /// Whether every byte is within reach of every byte of `text`, and the other way round.
    #[must_use]
    pub fn reaches(&self, text: &Range<u64>) -> bool {
        let (window, range) = (near::window(text), self.range());
        window.start <= range.start && range.end <= window.end
    }

    /// Bytes nobody has.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.iter().map(|hole| hole.len()).sum()
    }

    /// Takes `len` bytes whose address is a multiple of `align`, the first that fit.
    ///
    /// They hold `int3`. A core may have fetched what stood in reused memory: synchronise
    /// cores between the last byte written and the first jump to it.
    ///
    /// # Errors
    /// [`MemoryError::Full`], [`MemoryError::Align`] where `align` is not a power of two of
    /// at most a page, [`MemoryError::Forked`].
    pub fn allocate(&mut self, len: usize, align: usize) -> Result<Allocation, MemoryError> {
        self.check_owner()?;
        if !align.is_power_of_two() || align as u64 > PAGE {
            return Err(MemoryError::Align { align });
        }
        let fits = |hole: &Range<usize>| {
            let start = hole.start.next_multiple_of(align);
            let end = start.checked_add(len)?;
            (len > 0 && end <= hole.end).then_some(start..end)
        };
        let found = self.free.iter().enumerate().find_map(|(at, hole)| Some((at, fits(hole)?)));
        let Some((at, taken)) = found else {
            let largest = self.free.iter().map(|hole| hole.len()).max().unwrap_or(0);
            return Err(MemoryError::Full { len, align, largest });
        };
        let hole = self.free.remove(at);
        for rest in [taken.end..hole.end, hole.start..taken.start] {
            if !rest.is_empty() {
                self.free.insert(at, rest);
            }
        }
        // SAFETY: `taken` is within the mapping, which is `self.len` bytes long.
        let write = unsafe { self.write.add(taken.start) };
        let run = self.range().start + taken.start as u64;
        Ok(Allocation { run, write, len, owner: self.owner })
    }

    /// Gives memory back, which holds `int3` from now on.
    ///
    /// # Safety
    /// No thread is executing it, will return to it or jump to it.
    ///
    /// # Errors
    /// [`MemoryError::Forked`] in a child: the memory is the parent's.
    /// [`MemoryError::Foreign`] where it was not allocated here. In both cases nothing changed.
    pub unsafe fn free(&mut self, allocation: Allocation) -> Result<(), MemoryError> {
        self.check_owner()?;
        let range = self.range();
        let foreign = MemoryError::Foreign { run: allocation.run };
        let start = allocation.run.checked_sub(range.start).ok_or(foreign)? as usize;
        let end = start.checked_add(allocation.len).filter(|&end| end <= self.len);
        let mut hole = start..end.ok_or(foreign)?;
        // SAFETY: the bytes are the allocation's, which the caller has given up.
        unsafe { allocation.write.as_ptr().write_bytes(TRAP, allocation.len) };
        let mut at = self.free.partition_point(|other| other.start < hole.start);
        if let Some(next) = self.free.get(at)
            && next.start == hole.end
        {
            hole.end = next.end;
            self.free.remove(at);
        }
        if let Some(before) = at.checked_sub(1)
            && let Some(previous) = self.free.get(before)
            && previous.end == hole.start
        {
            hole.start = previous.start;
            self.free.remove(before);
            at = before;
        }
        self.free.insert(at, hole);
        Ok(())
    }

    /// What is in it.
    pub(super) fn copy(&self) -> Vec<u8> {
        let mut copy = std::vec![0; self.len];
        // SAFETY: the mapping is readable, as long, and code is no value of Rust's.
        unsafe { copy.as_mut_ptr().copy_from_nonoverlapping(self.run.as_ptr(), self.len) };
        copy
    }

    /// In a forked child: replaces the memory, which is the parent's, by memory of this process
    /// that holds the same bytes, at the same addresses. Its thread may be running it.
    pub(super) fn adopt(&mut self, bytes: &[u8]) -> Result<(), MemoryError> {
        let len = self.len;
        let refused = |errno| MemoryError::Map { errno, len };
        // The first mapping was not inherited (`MADV_DONTFORK`).
        let write = map_new(self.write.as_ptr().cast(), len, |address, flags| {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, flags | MapFlags::SHARED);
            // SAFETY: `MAP_FIXED_NOREPLACE` never replaces a mapping.
            unsafe { rustix::mm::mmap_anonymous(address, len, access, flags) }
        })
        .map_err(refused)?;
        let (run, flags) = (self.run.as_ptr().cast(), MremapFlags::MAYMOVE);
        // SAFETY: mapped a moment ago, writable, `len` bytes long. The second mapping of it
        // replaces one of the same bytes; this, the only thread, is not there.
        unsafe {
            write.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(len));
            rustix::mm::mremap_fixed(write, 0, len, flags, run)
                .and_then(|run| {
                    rustix::mm::mprotect(run, len, MprotectFlags::READ | MprotectFlags::EXEC)
                })
                .and_then(|()| rustix::mm::madvise(write, len, Advice::LinuxDontFork))
                .map_err(refused)?;
        }
        self.owner = std::process::id();
        Ok(())
    }

    /// Takes the memory away.
    ///
    /// # Safety
    /// As [`free`](Self::free), for all of it, and no [`Allocation`] of it is used again.
    pub unsafe fn unmap(self) {
        // SAFETY: mapped by `reserve`; by the caller's promise nobody uses either mapping.
        // In a forked child the write mapping is absent, and its address may be someone else's.
        unsafe {
            let _ = rustix::mm::munmap(self.run.as_ptr().cast(), self.len);
            if self.check_owner().is_ok() {
                let _ = rustix::mm::munmap(self.write.as_ptr().cast(), self.len);
            }
        }
    }

    fn check_owner(&self) -> Result<(), MemoryError> {
        check_owner(self.owner)
    }
}

fn check_owner(owner: u32) -> Result<(), MemoryError> {
    if owner == std::process::id() { Ok(()) } else { Err(MemoryError::Forked { owner }) }
}

/// A place for emitted code. Give it back with [`Arena::free`]; dropped, it stays.
#[derive(Debug)]
pub struct Allocation {
    run: u64,
    write: NonNull<u8>,
    len: usize,
    owner: u32,
}

// SAFETY: it is the only one that writes its bytes, from whatever thread.
unsafe impl Send for Allocation {}
// SAFETY: `&self` gives numbers only.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// The address it runs at.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.len
    }

    /// In a forked child: its arena was [adopted](Arena::adopt).
    pub(super) fn adopt(&mut self) {
        self.owner = std::process::id();
    }

    /// Where it is written: the other mapping of the same bytes. Not mapped in a forked
    /// child, and not after [`Arena::unmap`].
    #[must_use]
    pub fn write(&self) -> *mut u8 {
        self.write.as_ptr()
    }

    /// Writes `code` at `offset`.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] where it does not fit, [`MemoryError::Forked`].
    pub fn fill(&mut self, offset: usize, code: &[u8]) -> Result<(), MemoryError> {
        check_owner(self.owner)?;
        let end = offset.checked_add(code.len()).filter(|&end| end <= self.len);
        end.ok_or(MemoryError::Outside { run: self.run, offset, len: code.len() })?;
        // SAFETY: within the allocation, as checked, whose bytes nobody else writes or reads
        // through a reference.
        unsafe {
            self.write.as_ptr().add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len())
        };
        Ok(())
    }
}

fn whole_pages(len: usize) -> Option<usize> {
    len.max(1).checked_next_multiple_of(PAGE as usize)
}

/// Maps at exactly `address`. Kernels before 4.17 do not know `MAP_FIXED_NOREPLACE` and take
/// the address for a hint: a mapping elsewhere is undone and answered like an occupied one.
fn map_new(
    address: *mut c_void,
    len: usize,
    map: impl Fn(*mut c_void, MapFlags) -> Result<*mut c_void, Errno>,
) -> Result<*mut c_void, Errno> {
    let mapped = map(address, MapFlags::FIXED_NOREPLACE)?;
    if mapped == address {
        return Ok(mapped);
    }
    // SAFETY: mapped a moment ago, and nobody has been told.
    let _ = unsafe { rustix::mm::munmap(mapped, len) };
    Err(Errno::EXIST)
}

/// Maps the same memory again, elsewhere and to be written; not in forked children.
///
/// `mremap(2)` with an old size of zero makes a second mapping of shared memory. There is no
/// file with a name of its own, as `memfd_create(2)` would make: `perf` looks names up in the
/// [perf map](super::Visibility::perf_map) for memory that is no file's only, and takes this
/// (`/dev/zero` in the list of mappings) for such.
fn map_again(mapped: *mut c_void, len: usize) -> Result<*mut c_void, Errno> {
    // SAFETY: the kernel finds the place, and what is mapped there already stays.
    let again = unsafe { rustix::mm::mremap(mapped, 0, len, MremapFlags::MAYMOVE) }?;
    // SAFETY: the mapping made above, which nobody knows of yet.
    let changed = unsafe {
        rustix::mm::mprotect(again, len, MprotectFlags::READ | MprotectFlags::WRITE)
            .and_then(|()| rustix::mm::madvise(again, len, Advice::LinuxDontFork))
    };
    changed.map(|()| again).inspect_err(|_| {
        // SAFETY: as above.
        let _ = unsafe { rustix::mm::munmap(again, len) };
    })
}
