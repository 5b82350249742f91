//! What this kernel gives the library: its embedder.

use core::convert::Infallible;
use core::fmt::{self, Display};
use core::ptr::NonNull;

use fentry::attach::{Embedder, ImageMemory, Parts, Region};
use fentry::emit::x86_64::Hardening;
use fentry::metadata::TableMemory;
use fentry::patch::{Poke, SITE_LEN, Text};
use machine::paging::{self, PAGE, Range, TABLES};

use crate::cores::Processors;
use crate::side_stacks;

/// The embedder.
pub enum Kernel {}

impl Embedder for Kernel {
    type Error = Refused;
    type Text = KernelText;
    type Cores = Processors;
    type Images = Images;
    type Tables = Tables;
}

/// Why the kernel gives the library something not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// What stands there is no function that may be hooked, and no thunk.
    NotHookable {
        /// Where it stands.
        address: u64,
    },
    /// All places for images are taken.
    NoImages,
    /// There is no memory for tables.
    NoMemory,
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHookable { address } => write!(
                f,
                "{address:#x} is outside the functions that may be hooked; put them into the \
                 section .hookable"
            ),
            Self::NoImages => f.write_str("all places for images are taken; wait for quiescence"),
            Self::NoMemory => f.write_str("the machine has no memory left"),
        }
    }
}

impl From<Infallible> for Refused {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The parts, with the processors that run.
pub fn parts(processors: usize) -> Parts<Kernel> {
    Parts {
        text: KernelText { functions: paging::hookable(), images: paging::images(), patched: 0 },
        cores: Processors::new(processors),
        images: Images { taken: [false; IMAGES], most: 0 },
        tables: Tables { next: TABLES },
        side_stack: Some(side_stacks::PLACE),
        hardening: Hardening::NONE,
    }
}

/// The text: functions that may be hooked, and the images, where thunks are. It is written at
/// another address than the one where it is executed, so there is nothing to open and close.
pub struct KernelText {
    functions: Range,
    images: Range,
    /// How many sites have got the first byte of a whole instruction.
    pub patched: u64,
}

impl KernelText {
    /// Where the `len` bytes at `address` are written. Here entry code, trap handlers and all
    /// other text is kept from being hooked: nothing else is ever read or written.
    fn at(&self, address: u64, len: usize) -> Result<*mut u8, Refused> {
        let is_in = |range: &Range| {
            range.contains(&address) && range.end.wrapping_sub(address) >= len as u64
        };
        if is_in(&self.functions) || is_in(&self.images) {
            Ok(paging::alias(address))
        } else {
            Err(Refused::NotHookable { address })
        }
    }
}

// SAFETY: the pages where text is executed are never changed. A byte is stored by one
// instruction, and x86 makes stores visible in their order, to loads and to instruction fetch
// alike (Intel SDM volume 3, 10.2, 10.1.3). Only a place outside fails, before anything is stored.
unsafe impl Text for KernelText {
    type Error = Refused;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Refused> {
        let at = self.at(address, N)?;
        // SAFETY: `at` has checked that they are bytes of text, all of which are mapped there.
        Ok(unsafe { at.cast::<[u8; N]>().read_volatile() })
    }

    fn open(&mut self, pokes: &[Poke]) -> Result<(), Refused> {
        pokes.iter().try_for_each(|poke| self.at(poke.site.get(), SITE_LEN).map(drop))
    }

    fn close(&mut self) {}

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Refused> {
        const INT3: u8 = 0xcc;
        // SAFETY: as in `read`; what cores execute then, the caller answers for.
        unsafe { self.at(address, 1)?.write_volatile(byte) };
        if byte != INT3 {
            self.patched += 1;
        }
        Ok(())
    }

    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), Refused> {
        let at = self.at(address, 2)?;
        // SAFETY: as in `store_byte`. A `u16` is stored by one instruction.
        unsafe { at.cast::<u16>().write_unaligned(u16::from_le_bytes(bytes)) };
        Ok(())
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Refused> {
        let at = self.at(address, N)?;
        // SAFETY: as in `store_byte`.
        unsafe { at.cast::<[u8; N]>().write_volatile(bytes) };
        Ok(())
    }
}

/// Bytes of a place for an image, and how many there are: as many as `kernel.ld` leaves room for.
const IMAGE_SIZE: usize = 2048;
const IMAGES: usize = 1024;

/// Places for images, all of one size.
pub struct Images {
    taken: [bool; IMAGES],
    /// How many were taken at once.
    pub most: usize,
}

impl Images {
    fn place(&mut self, address: u64) -> Option<&mut bool> {
        let offset = address.checked_sub(paging::images().start)?;
        self.taken.get_mut(offset as usize / IMAGE_SIZE)
    }
}

// SAFETY: the images' pages are executable from the start and hold `int3`, which `free` puts
// back; they are 16 MiB or less from every function, as the linker script says. On x86 whoever
// sees a later store sees an earlier one, its instruction fetch included.
unsafe impl ImageMemory for Images {
    type Error = Refused;

    fn allocate(&mut self, _: Region, size: usize) -> Result<u64, Refused> {
        let free = self.taken.iter().position(|taken| !taken).filter(|_| size <= IMAGE_SIZE);
        let free = free.ok_or(Refused::NoImages)?;
        let address = paging::images().start + (free * IMAGE_SIZE) as u64;
        *self.place(address).ok_or(Refused::NoImages)? = true;
        self.most = self.most.max(self.taken.iter().filter(|taken| **taken).count());
        Ok(address)
    }

    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Refused> {
        paging::look_again();
        // SAFETY: in memory from `allocate` (contract), which is mapped there.
        unsafe { paging::alias(address).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        Ok(())
    }

    unsafe fn free(&mut self, address: u64, size: usize) {
        paging::look_again();
        // SAFETY: as in `write`.
        unsafe { paging::alias(address).write_bytes(0xcc, size) };
        if let Some(taken) = self.place(address) {
            *taken = false;
        }
    }
}

/// Tables: address space that is given out once, in which pages are mapped as they are needed.
pub struct Tables {
    next: u64,
}

// SAFETY: every reservation begins where no other is, at a page. What is committed is mapped to
// memory that is filled with zeros and never taken away; a page that is in use already, because
// the last commit ended in it, is left alone.
unsafe impl TableMemory for Tables {
    type Error = Refused;

    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Refused> {
        let base = self.next;
        let bytes = (bytes as u64).checked_next_multiple_of(PAGE).ok_or(Refused::NoMemory)?;
        self.next = base.checked_add(bytes).ok_or(Refused::NoMemory)?;
        NonNull::new(core::ptr::with_exposed_provenance_mut(base as usize)).ok_or(Refused::NoMemory)
    }

    unsafe fn commit(&mut self, base: NonNull<u8>, from: usize, to: usize) -> Result<(), Refused> {
        let page = |bytes: usize| {
            let end = (base.as_ptr() as u64).checked_add(bytes as u64);
            end.and_then(|end| end.checked_next_multiple_of(PAGE)).ok_or(Refused::NoMemory)
        };
        paging::map_zeroed(page(from)?..page(to)?).ok_or(Refused::NoMemory)
    }

    unsafe fn release(&mut self, _: NonNull<u8>, _: usize) {}
}
