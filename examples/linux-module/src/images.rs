//! Memory for images: pages of the kernel's executable memory, in pieces of 64 bytes.

use fentry::attach::{ImageMemory, Region};

use crate::kernel::{self, Errno};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes of a piece: what images are aligned to.
const PIECE: usize = 64;
/// The most pages that images can take.
const PAGES: usize = 64;

/// A page, and which of its 64 pieces are in use.
#[derive(Clone, Copy, Debug)]
struct Page {
    address: u64,
    used: u64,
}

/// Memory for images. A page is taken from the kernel when the others are full, and goes back
/// when nothing in it is in use.
#[derive(Debug)]
pub struct KernelImages {
    pages: [Option<Page>; PAGES],
}

impl KernelImages {
    /// No memory yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { pages: [None; PAGES] }
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages.iter().flatten().count() * PAGE
    }
}

impl Default for KernelImages {
    fn default() -> Self {
        Self::new()
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
        for page in self.pages.iter_mut().flatten() {
            if let Some(run) = free_run(page.used, count) {
                page.used |= run;
                return Ok(page.address + u64::from(run.trailing_zeros()) * PIECE as u64);
            }
        }
        let place = self.pages.iter_mut().find(|page| page.is_none()).ok_or(Errno::NO_MEMORY)?;
        let used = free_run(0, count).ok_or(Errno::INVALID)?;
        // SAFETY: it may sleep, as every caller of the engine may.
        let address = unsafe { kernel::fentry_kernel_images(PAGE) };
        if address == 0 {
            return Err(Errno::NO_MEMORY);
        }
        *place = Some(Page { address, used });
        Ok(address)
    }

    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Errno> {
        // SAFETY: the bytes are of a page of ours that no core executes there (contract).
        let written = unsafe {
            let written = kernel::fentry_kernel_write(address, code.as_ptr(), code.len());
            kernel::fentry_kernel_write_end();
            written
        };
        Errno::check(written)
    }

    unsafe fn free(&mut self, address: u64, size: usize) {
        const INT3: [u8; PIECE] = [0xcc; PIECE];
        let base = address & !(PAGE as u64 - 1);
        let is_it = |page: &&mut Option<Page>| page.is_some_and(|page| page.address == base);
        let Some(place) = self.pages.iter_mut().find(is_it) else { return };
        let Some(page) = place else { return };
        page.used &= !pieces(address - base, size);
        if page.used == 0 {
            // SAFETY: nothing of the page is in use, and nobody is in it (contract).
            unsafe { kernel::fentry_kernel_images_free(base) };
            *place = None;
            return;
        }
        for piece in 0..size.div_ceil(PIECE) {
            // SAFETY: as in `write`. If it fails, the old code stays, which nothing leads to.
            let _ = unsafe { self.write(address + (piece * PIECE) as u64, &INT3) };
        }
    }
}

impl Drop for KernelImages {
    fn drop(&mut self) {
        for Page { address, .. } in self.pages.iter().flatten() {
            // SAFETY: the engine that used it is being dropped, and its embedder drops it
            // only when no core runs an image.
            unsafe { kernel::fentry_kernel_images_free(*address) };
        }
    }
}
