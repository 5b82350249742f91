//! Writing to the text of this process.

use core::ops::Range;
use core::ptr::with_exposed_provenance;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::string::String;
use std::sync::Arc;
use std::vec::Vec;

use rustix::io::Errno;
use rustix::mm::{MprotectFlags, mprotect};

use super::maps::{self, PAGE, Protection};
use crate::patch::{Poke, SITE_LEN, Text};

mod access;
mod error;

pub(in crate::host) use access::can_store_pair;
use access::{can_store, load, store_in_8, store_in_16};
pub use error::TextError;

/// How far before the lowest site of a batch text is made writable, in bytes: the longest
/// padding, which the slot is in.
const BEFORE: u64 = 64;
/// How far behind the start of the highest site, in bytes: the site, and to the end of the
/// 8-byte word it may end in.
const BEHIND: u64 = 8;

/// Executable memory that patch sites are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its addresses.
    pub range: Range<u64>,
    /// Its protection while nobody writes to it.
    pub protection: Protection,
    /// The file, for errors.
    pub name: Arc<str>,
    /// What is added to an address to get where it is written: 0 for text that is made
    /// writable in place, another mapping's distance for memory that is never both.
    pub written_at: u64,
}

/// The text of this process, made writable only while a batch is written.
///
/// Other threads keep running it: its pages go from `R|X` to `R|W|X` and back, and never
/// lack `X`. `W` and `X` together is what this costs, for the pages between the lowest and
/// the highest site of a batch, while the batch lasts. A store makes the page a private copy
/// (`MAP_PRIVATE`), so the file and other processes keep theirs, and a forked child patches
/// its own. Text that is mapped `MAP_SHARED` is not copied: stores reach the file.
#[derive(Debug, Default)]
pub struct HostText {
    /// Sorted by address, apart from each other.
    segments: Vec<Segment>,
    /// For each segment, the pages opened; empty where none.
    windows: Vec<Range<u64>>,
    open: bool,
    /// Whether a site of the open batch is written elsewhere than where it runs.
    elsewhere: bool,
    /// The segment that the last address was in: batches come sorted.
    last: AtomicUsize,
}

impl HostText {
    /// Text consisting of `segments`.
    ///
    /// # Safety
    /// Each segment is mapped with its `protection`, that includes `READ`, and stays so for
    /// as long as this value is used, except for what this value does. `dlclose` of a
    /// library whose segment is here breaks that.
    ///
    /// # Errors
    /// [`TextError::Overlap`] where two segments have an address in common.
    pub unsafe fn new(mut segments: Vec<Segment>) -> Result<Self, TextError> {
        segments.sort_unstable_by_key(|segment| segment.range.start);
        for pair in segments.windows(2) {
            if let [first, second] = pair
                && first.range.end > second.range.start
            {
                return Err(TextError::Overlap { address: second.range.start });
            }
        }
        let windows = std::vec![0..0; segments.len()];
        Ok(Self { segments, windows, open: false, elsewhere: false, last: AtomicUsize::new(0) })
    }

    /// Adds a segment of text that is mapped `R|X`.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    ///
    /// # Errors
    /// [`TextError::Overlap`] where it has an address in common with another segment,
    /// [`TextError::AlreadyOpen`].
    pub unsafe fn add(&mut self, range: Range<u64>, name: &str) -> Result<(), TextError> {
        self.insert(range, name, 0)
    }

    /// Adds memory that is mapped `R|X` at `range`, and writable at `written_at`.
    ///
    /// # Safety
    /// As [`new`](Self::new); the second mapping is of the same memory, as long, and `R|W`.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub unsafe fn add_written_elsewhere(
        &mut self,
        range: Range<u64>,
        written_at: u64,
    ) -> Result<(), TextError> {
        let distance = written_at.wrapping_sub(range.start);
        self.insert(range, "emitted code", distance)
    }

    /// Forgets the segments in `range`, which may be unmapped already.
    ///
    /// # Errors
    /// [`TextError::AlreadyOpen`].
    pub fn remove(&mut self, range: &Range<u64>) -> Result<(), TextError> {
        if self.open {
            return Err(TextError::AlreadyOpen);
        }
        let inside = |at: u64| range.start <= at && at < range.end;
        self.segments.retain(|segment| !inside(segment.range.start));
        self.windows.truncate(self.segments.len());
        Ok(())
    }

    fn insert(&mut self, range: Range<u64>, name: &str, written_at: u64) -> Result<(), TextError> {
        if self.open {
            return Err(TextError::AlreadyOpen);
        }
        let at = self.segments.partition_point(|segment| segment.range.start < range.start);
        let before = at.checked_sub(1).and_then(|before| self.segments.get(before));
        let overlaps = before.is_some_and(|before| before.range.end > range.start)
            || self.segments.get(at).is_some_and(|after| after.range.start < range.end);
        if overlaps {
            return Err(TextError::Overlap { address: range.start });
        }
        let protection = Protection::READ | Protection::EXECUTE;
        self.segments.insert(at, Segment { range, protection, name: name.into(), written_at });
        self.windows.push(0..0);
        Ok(())
    }

    /// Where the byte at `address` is written.
    #[inline]
    fn written(&self, address: u64) -> *mut u8 {
        if !self.elsewhere {
            return with_exposed_provenance_mut(address as usize);
        }
        // A store is only asked for inside what was opened, so the segment is known; were it
        // not, the address itself would be right for all text but emitted code.
        let distance = self.find(address, 1).ok().and_then(|found| self.segments.get(found));
        let distance = distance.map_or(0, |segment| segment.written_at);
        with_exposed_provenance_mut(address.wrapping_add(distance) as usize)
    }

    /// Every segment that is executable and backed by a file: the program and its libraries.
    ///
    /// # Errors
    /// [`TextError::Maps`] where `/proc/self/maps` cannot be read.
    pub fn segments_of_process() -> Result<Vec<Segment>, TextError> {
        let mut segments = Vec::new();
        maps::for_each(|mapping| {
            let readable = Protection::READ | Protection::EXECUTE;
            if mapping.protection.contains(readable) && mapping.path.starts_with(b"/") {
                segments.push(Segment {
                    range: mapping.range,
                    protection: mapping.protection,
                    name: String::from_utf8_lossy(mapping.path).into(),
                    written_at: 0,
                });
            }
        })
        .map_err(|errno| TextError::Maps { errno })?;
        Ok(segments)
    }

    /// The segments, sorted by address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that all `len` bytes at `address` are in.
    #[inline]
    fn find(&self, address: u64, len: u64) -> Result<usize, TextError> {
        let last = self.last.load(Ordering::Relaxed);
        if let Some(segment) = self.segments.get(last)
            && holds(&segment.range, address, len)
        {
            return Ok(last);
        }
        self.search(address, len)
    }

    #[cold]
    fn search(&self, address: u64, len: u64) -> Result<usize, TextError> {
        let after = self.segments.partition_point(|segment| segment.range.start <= address);
        if let Some(index) = after.checked_sub(1)
            && let Some(segment) = self.segments.get(index)
            && holds(&segment.range, address, len)
        {
            self.last.store(index, Ordering::Relaxed);
            return Ok(index);
        }
        Err(TextError::Unknown { address })
    }

    /// Works out the pages to open in each segment.
    fn plan(&mut self, pokes: &[Poke]) -> Result<(), TextError> {
        self.windows.fill(0..0);
        self.elsewhere = false;
        let lowest = pokes.iter().map(|poke| poke.site.get()).min();
        let highest = pokes.iter().map(|poke| poke.site.get()).max();
        let Some((lowest, highest)) = lowest.zip(highest) else { return Ok(()) };
        // Most batches are of one module.
        if self.find(lowest, SITE_LEN as u64)? == self.find(highest, SITE_LEN as u64)? {
            self.widen(lowest, highest)?;
        } else {
            for poke in pokes {
                self.widen(poke.site.get(), poke.site.get())?;
            }
        }
        for (window, segment) in self.windows.iter_mut().zip(&self.segments) {
            if segment.written_at != 0 {
                self.elsewhere |= !window.is_empty();
                *window = 0..0;
            } else if !window.is_empty() {
                let start = window.start.max(segment.range.start) / PAGE * PAGE;
                let end = window.end.min(segment.range.end).next_multiple_of(PAGE);
                *window = start..end;
            }
        }
        Ok(())
    }

    /// Widens a segment's window to what the sites from `lowest` to `highest` need.
    fn widen(&mut self, lowest: u64, highest: u64) -> Result<(), TextError> {
        let index = self.find(lowest, SITE_LEN as u64)?;
        if let Some(window) = self.windows.get_mut(index) {
            let (start, end) = (lowest.saturating_sub(BEFORE), highest.saturating_add(BEHIND));
            *window = if window.is_empty() {
                start..end
            } else {
                window.start.min(start)..window.end.max(end)
            };
        }
        Ok(())
    }

    /// Restores the first `count` windows.
    fn restore(&mut self, count: usize) {
        for (window, segment) in self.windows.iter_mut().zip(&self.segments).take(count) {
            if !window.is_empty() {
                // Cannot fail for want of permission: less is asked for than is there. It
                // can for want of memory for a mapping's description (ENOMEM); then the
                // pages stay writable, which the batch that has landed need not hear of.
                let _ = protect(window, segment.protection);
            }
            *window = 0..0;
        }
    }
}

#[inline]
fn holds(range: &Range<u64>, address: u64, len: u64) -> bool {
    address >= range.start && address < range.end && range.end - address >= len
}

fn protect(pages: &Range<u64>, protection: Protection) -> Result<(), Errno> {
    let mut flags = MprotectFlags::empty();
    flags.set(MprotectFlags::READ, protection.contains(Protection::READ));
    flags.set(MprotectFlags::WRITE, protection.contains(Protection::WRITE));
    flags.set(MprotectFlags::EXEC, protection.contains(Protection::EXECUTE));
    let start = with_exposed_provenance_mut(pages.start as usize);
    // SAFETY: the pages belong to a segment of the constructor's promise. They are text:
    // nothing that the compiler knows of is in them, and execution and loads stay allowed.
    unsafe { mprotect(start, (pages.end - pages.start) as usize, flags) }
}

// SAFETY: `open` asks for the segment's own protection (or more) in one `mprotect` a segment,
// which replaces the protection of a page at once and keeps `X`. `store_byte` is an atomic
// byte store, `store_pair` and `store_site` the one store that `can_store` argues for. x86-64 makes
// the stores of a core visible in program order (Intel SDM volume 3, 10.2.2). No store returns
// an error.
unsafe impl Text for HostText {
    type Error = TextError;

    #[inline]
    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], TextError> {
        self.find(address, N as u64)?;
        let mut bytes = [0; N];
        let from = with_exposed_provenance::<u8>(address as usize);
        // SAFETY: all `N` bytes are in one segment, which is mapped and readable.
        unsafe { load(from, &mut bytes) };
        Ok(bytes)
    }

    fn open(&mut self, pokes: &[Poke]) -> Result<(), TextError> {
        if self.open {
            return Err(TextError::AlreadyOpen);
        }
        self.plan(pokes)?;
        for index in 0..self.segments.len() {
            let (Some(window), Some(segment)) = (self.windows.get(index), self.segments.get(index))
            else {
                break;
            };
            if window.is_empty() {
                continue;
            }
            if let Err(errno) = protect(window, segment.protection | Protection::WRITE) {
                let error = TextError::Protected {
                    address: window.start,
                    name: Arc::clone(&segment.name),
                    errno,
                };
                // This one too: `mprotect` may have got through a part of it.
                self.restore(index + 1);
                self.windows.fill(0..0);
                return Err(error);
            }
        }
        self.open = true;
        Ok(())
    }

    fn close(&mut self) {
        self.restore(self.segments.len());
        self.open = false;
    }

    #[inline]
    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), TextError> {
        let to = self.written(address);
        // SAFETY: the caller names a byte of a window that `open` has made writable; text is
        // accessed through this value only.
        unsafe { AtomicU8::from_ptr(to) }.store(byte, Ordering::Release);
        Ok(())
    }

    fn can_store_pair(&self, address: u64) -> bool {
        can_store_pair(address)
    }

    #[inline]
    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), TextError> {
        let to = self.written(address);
        if address % 8 == 7 {
            // SAFETY: the pair is in aligned 16 bytes (contract), which are of one page that
            // `open` has made writable.
            unsafe { store_in_16(to, bytes) };
            return Ok(());
        }
        // SAFETY: the caller names two bytes of a window that `open` has made writable. The
        // store may be at an odd address, which no Rust atomic allows and the instruction does.
        unsafe {
            core::arch::asm!(
                "mov word ptr [{to}], {pair:x}",
                to = in(reg) to,
                pair = in(reg) u16::from_le_bytes(bytes),
                options(nostack, preserves_flags),
            );
        }
        Ok(())
    }

    fn can_store_site(&self, address: u64) -> bool {
        can_store(address, SITE_LEN as u64)
    }

    #[inline]
    unsafe fn store_site(&mut self, address: u64, bytes: [u8; SITE_LEN]) -> Result<(), TextError> {
        let to = self.written(address);
        if address % 8 + SITE_LEN as u64 > 8 {
            // SAFETY: the site is in aligned 16 bytes (contract), which are of one page that
            // `open` has made writable.
            unsafe { store_in_16(to, bytes) };
            return Ok(());
        }
        // SAFETY: the aligned word around the site is of a page that `open` has made writable;
        // text is accessed through this value only.
        unsafe { store_in_8(to, bytes) };
        Ok(())
    }

    #[inline]
    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), TextError> {
        let to = self.written(address);
        for (offset, byte) in bytes.into_iter().enumerate() {
            // SAFETY: the caller names `N` bytes of a window that `open` has made writable.
            unsafe { to.add(offset).write_volatile(byte) };
        }
        Ok(())
    }
}
