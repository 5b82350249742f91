//! Address space that becomes memory from the front.

use core::ops::Range;
use core::ptr::{NonNull, null_mut};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::{MemoryError, map_new, whole_pages};
use crate::host::near;

/// Address space for a table, that becomes memory from the front as the table grows.
///
/// Private: a forked child has a copy. Dropping it leaves it mapped, as code may read it.
#[derive(Debug)]
pub struct Reservation {
    base: NonNull<u8>,
    reserved: usize,
    committed: usize,
}

// SAFETY: the mapping belongs to the process; `&mut self` is needed to change it.
unsafe impl Send for Reservation {}
// SAFETY: `&self` gives a pointer and numbers only.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Bytes that become memory at a time, so that growing is not a system call an entry.
    pub const CHUNK: usize = 64 << 10;

    /// Reserves `len` bytes, rounded up to pages; within reach of text where `near` names some.
    /// Costs address space only.
    ///
    /// # Errors
    /// As [`Arena::reserve`](super::Arena::reserve).
    pub fn reserve(len: usize, near: Option<&Range<u64>>) -> Result<Self, MemoryError> {
        let (start, end) = near.map_or((0, u64::MAX), |text| (text.start, text.end));
        let no_room = MemoryError::NoRoom { near: start, end, len };
        let len = whole_pages(len).ok_or(no_room)?;
        let map = |address, extra| {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | extra;
            // SAFETY: with `MAP_FIXED_NOREPLACE` or with no address, a mapping replaces nothing.
            unsafe { rustix::mm::mmap_anonymous(address, len, ProtFlags::empty(), flags) }
        };
        let base = match near {
            None => map(null_mut(), MapFlags::empty())
                .map_err(|errno| MemoryError::Map { errno, len })?,
            Some(text) => near::place(text, len as u64, |address| map_new(address, len, map))
                .map_err(|refusal| MemoryError::refused(refusal, text, len))?,
        };
        let base = NonNull::new(base.cast());
        let base = base.ok_or(MemoryError::Map { errno: Errno::FAULT, len })?;
        Ok(Self { base, reserved: len, committed: 0 })
    }

    /// The first byte. It never moves.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes from [`base`](Self::base) that can be read and written.
    #[must_use]
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// Makes the first `len` bytes, and as many as complete a [chunk](Self::CHUNK), readable
    /// and writable. New bytes are zero; nothing that was there changes.
    ///
    /// # Errors
    /// [`MemoryError::TableFull`] beyond what was reserved, [`MemoryError::Map`] where the
    /// kernel has no memory.
    pub fn commit(&mut self, len: usize) -> Result<(), MemoryError> {
        let reserved = self.reserved;
        if len <= self.committed {
            return Ok(());
        }
        if len > reserved {
            return Err(MemoryError::TableFull { len, reserved });
        }
        let until = len.checked_next_multiple_of(Self::CHUNK).unwrap_or(reserved).min(reserved);
        let grown = until - self.committed;
        let protection = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the bytes are the mapping's, and inaccessible until now.
        unsafe {
            let from = self.base.add(self.committed).as_ptr().cast();
            rustix::mm::mprotect(from, grown, protection)
                .map_err(|errno| MemoryError::Map { errno, len: grown })?;
        }
        self.committed = until;
        Ok(())
    }

    /// Takes the memory away.
    ///
    /// # Safety
    /// Nobody reads or writes it any more.
    pub unsafe fn unmap(self) {
        // SAFETY: mapped by `reserve`; by the caller's promise nobody uses it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.reserved) };
    }
}
