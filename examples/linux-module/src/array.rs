//! Arrays in memory of the kernel's.

use core::ptr::NonNull;

use crate::kernel::{self, Errno};

/// An array in memory of the kernel's.
#[derive(Debug)]
pub struct Array<T> {
    memory: NonNull<T>,
    len: usize,
}

impl<T> Array<T> {
    /// `len` times the value whose bytes are all zero.
    ///
    /// # Safety
    /// There is one.
    ///
    /// # Errors
    /// There is no memory.
    pub unsafe fn zeroed(len: usize) -> Result<Self, Errno> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Errno::NO_MEMORY)?;
        // SAFETY: it may sleep, as every caller of this module may.
        let memory = unsafe { kernel::fentry_kernel_alloc(bytes) };
        Ok(Self { memory: NonNull::new(memory.cast()).ok_or(Errno::NO_MEMORY)?, len })
    }

    /// Its values.
    #[must_use]
    pub const fn as_slice(&self) -> &[T] {
        // SAFETY: `zeroed` has allocated `len` values, and nobody else has them.
        unsafe { core::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    /// Its values, to be changed.
    pub const fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed`.
        unsafe { kernel::fentry_kernel_free(self.memory.as_ptr().cast()) };
    }
}
