//! Memory for images: pages of the kernel's executable memory, in pieces of 64 bytes.

use fentry::attach::{ImageMemory, Region};

use crate::array::Array;
use crate::kernel::{self, Errno};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes of a piece: what images are aligned to.
const PIECE: usize = 64;
/// The most pages that images can take: there are 128 exit thunks in each, and Linux has some
/// 50,000 functions, of two layouts.
const PAGES: usize = 1024;

/// A page, and which of its 64 pieces are in use; at address 0 if it is yet to be taken.
#[derive(Clone, Copy, Debug)]
struct Page {
    address: u64,
    used: u64,
}

/// Memory for images. A page is taken from the kernel when the others are full, and goes back
/// when nothing in it is in use.
#[derive(Debug)]
pub struct KernelImages {
    pages: Array<Page>,
}

impl KernelImages {
    /// No memory for images yet.
    ///
    /// # Errors
    /// There is no memory for the list of what there will be.
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: integers.
        Ok(Self { pages: unsafe { Array::zeroed(PAGES) }? })
    }

    /// Bytes of all pages, and of their list.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let taken = self.pages.as_slice().iter().filter(|page| page.address != 0).count();
        taken * PAGE + size_of::<[Page; PAGES]>()
    }
}

/// The lowest run of `count` pieces that are free in `used`, as a mask.
fn free_run(used: u64, count: usize) -> Option<u64> {
    let run = u64::MAX.checked_shr(u32::try_from(64_usize.checked_sub(count)?).ok()?)?;
    let places = 64_u32.saturating_sub(count as u32);
    (0..=places).map(|place| run.wrapping_shl(place)).find(|run| run & used == 0)
}

/// The pieces of `size` bytes at `offset` of a page, as a mask.
fn pieces(offset: u64, size: usize) -> u64 {
    let run = free_run(0, size.div_ceil(PIECE)).unwrap_or(0);
    run.wrapping_shl((offset / PIECE as u64) as u32)
}

// SAFETY: the pages are from `execmem_alloc`, in the stretch of address space that Linux keeps
// for modules, which is within 2 GiB of its text; they are executable, and full of `int3` when
// they come and, by `free`, when a piece is given out again. What is written through another
// mapping of the same page is a store like any other to instruction fetch.
unsafe impl ImageMemory for KernelImages {
    type Error = Errno;

    fn allocate(&mut self, _: Region, size: usize) -> Result<u64, Errno> {
        let count = size.div_ceil(PIECE);
        for page in self.pages.as_mut_slice().iter_mut() {
            if page.address == 0 {
                // SAFETY: it may sleep, as every caller of the engine may.
                let address = unsafe { kernel::fentry_kernel_images(PAGE) };
                if address == 0 {
                    return Err(Errno::NO_MEMORY);
                }
                *page = Page { address, used: 0 };
            }
            if let Some(run) = free_run(page.used, count) {
                page.used |= run;
                return Ok(page.address + u64::from(run.trailing_zeros()) * PIECE as u64);
            }
        }
        Err(Errno::NO_MEMORY)
    }

    /// What it is written through is mapped until the text is closed, or something is freed: the
    /// next piece is mostly of the same page.
    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Errno> {
        // SAFETY: the bytes are of a page of ours that no core executes there (contract).
        Errno::check(unsafe { kernel::fentry_kernel_write(address, code.as_ptr(), code.len()) })
    }

    unsafe fn free(&mut self, address: u64, size: usize) {
        const INT3: [u8; PIECE] = [0xcc; PIECE];
        let base = address & !(PAGE as u64 - 1);
        let mut pages = self.pages.as_mut_slice().iter_mut();
        let Some(page) = pages.find(|page| page.address == base) else { return };
        page.used &= !pieces(address - base, size);
        let unused = page.used == 0;
        if unused {
            *page = Page { address: 0, used: 0 };
        } else {
            for piece in 0..size.div_ceil(PIECE) {
                // SAFETY: as in `write`. If it fails, the old code stays, which nothing leads to.
                let _ = unsafe { self.write(address + (piece * PIECE) as u64, &INT3) };
            }
        }
        // SAFETY: nothing is being written; nothing of an unused page is in use, and nobody is in
        // it (contract).
        unsafe {
            kernel::fentry_kernel_write_end();
            if unused {
                kernel::fentry_kernel_images_free(base);
            }
        }
    }
}

impl Drop for KernelImages {
    fn drop(&mut self) {
        // SAFETY: nothing is being written; the engine that used the pages is being dropped, and
        // its embedder drops it only when no core runs an image.
        unsafe {
            kernel::fentry_kernel_write_end();
            for page in self.pages.as_slice().iter().filter(|page| page.address != 0) {
                kernel::fentry_kernel_images_free(page.address);
            }
        }
    }
}
