//! The embedder: arrays, and one core.

use core::cell::UnsafeCell;
use core::convert::Infallible;
use core::fmt::{self, Display, Write};
use core::ptr::{self, NonNull};

use fentry::attach::{Embedder, ImageMemory, Parts, Region};
use fentry::emit::x86_64::Hardening;
use fentry::metadata::TableMemory;
use fentry::patch::{Cores, Poke, Text};

/// Bytes for tables: as much address space as an engine reserves, of which little is used.
const TABLE_BYTES: usize = 512 << 20;
/// Bytes for images.
const IMAGE_BYTES: usize = 16 << 10;

/// Bytes at a fixed address.
#[repr(C, align(64))]
pub struct Array<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: there is one core, and its only thread.
unsafe impl<const N: usize> Sync for Array<N> {}

impl<const N: usize> Array<N> {
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// The bytes, to be changed.
    ///
    /// # Safety
    /// Nothing else uses them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the contract says what the borrow does not")]
    pub unsafe fn bytes(&self) -> &mut [u8; N] {
        // SAFETY: the caller's contract.
        unsafe { &mut *self.0.get() }
    }
}

/// Memory for tables, which the loader fills with zeros.
static TABLES: Array<TABLE_BYTES> = Array::new();

static IMAGES: Array<IMAGE_BYTES> = Array::new();

/// The embedder.
pub enum Bare {}

impl Embedder for Bare {
    type Error = Refused;
    type Text = FakeText;
    type Cores = OneCore;
    type Images = FakeImages;
    type Tables = StaticTables;
}

/// The only error there is: no memory is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the arrays are full")
    }
}

impl From<Infallible> for Refused {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Parts over the text in `text`.
pub fn fake_parts<const N: usize>(text: &'static Array<N>) -> Parts<Bare> {
    let start = text.address();
    Parts {
        text: FakeText { start, end: start + N as u64 },
        cores: OneCore { synchronised: 0 },
        images: FakeImages { used: 0, freed: 0 },
        tables: StaticTables { used: 0 },
        side_stack: None,
        hardening: Hardening::NONE,
    }
}

/// Text in an array, and in the array of images, where thunks are.
pub struct FakeText {
    start: u64,
    end: u64,
}

impl FakeText {
    /// Where `len` bytes at `address` are, if they are text.
    fn at(&self, address: u64, len: usize) -> *mut u8 {
        let end = address + len as u64;
        let images = IMAGES.address()..IMAGES.address() + IMAGE_BYTES as u64;
        if (address >= self.start && end <= self.end)
            || (images.contains(&address) && end <= images.end)
        {
            ptr::with_exposed_provenance_mut(address as usize)
        } else {
            crate::start::exit(99)
        }
    }
}

// SAFETY: nobody executes the text, and there is one core.
unsafe impl Text for FakeText {
    type Error = Infallible;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Infallible> {
        // SAFETY: `at` has checked that the bytes are in one of the two arrays.
        Ok(unsafe { self.at(address, N).cast::<[u8; N]>().read_unaligned() })
    }

    fn open(&mut self, _: &[Poke]) -> Result<(), Infallible> {
        Ok(())
    }

    fn close(&mut self) {}

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Infallible> {
        // SAFETY: as in `read`.
        unsafe { self.at(address, 1).write_volatile(byte) };
        Ok(())
    }

    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), Infallible> {
        // SAFETY: as in `read`. One core sees a store of two bytes whole at any alignment.
        unsafe { self.at(address, 2).cast::<[u8; 2]>().write_unaligned(bytes) };
        Ok(())
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Infallible> {
        // SAFETY: as in `read`.
        unsafe { self.at(address, N).cast::<[u8; N]>().write_unaligned(bytes) };
        Ok(())
    }
}

/// The one core.
pub struct OneCore {
    /// How often it was synchronised.
    pub synchronised: usize,
}

// SAFETY: the one core executes none of the text.
unsafe impl Cores for OneCore {
    type Error = Infallible;

    fn synchronise(&mut self) -> Result<(), Infallible> {
        self.synchronised += 1;
        Ok(())
    }
}

/// Images in an array.
pub struct FakeImages {
    used: usize,
    /// How many images were taken back.
    pub freed: usize,
}

impl FakeImages {
    /// Whether an image may be at `address`.
    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(IMAGES.address()) < self.used as u64
    }
}

// SAFETY: nobody executes images, and the array is as near to the text as the linker puts one
// static to the other, which the encoder checks.
unsafe impl ImageMemory for FakeImages {
    type Error = Refused;

    fn allocate(&mut self, _: Region, size: usize) -> Result<u64, Refused> {
        let start = self.used;
        let end = start + size.next_multiple_of(64);
        if end > IMAGE_BYTES {
            return Err(Refused);
        }
        self.used = end;
        Ok(IMAGES.address() + start as u64)
    }

    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Refused> {
        let offset = address.wrapping_sub(IMAGES.address()) as usize;
        // SAFETY: nothing else uses the array meanwhile.
        let bytes = unsafe { IMAGES.bytes() };
        let place = bytes.get_mut(offset..).and_then(|bytes| bytes.get_mut(..code.len()));
        place.ok_or(Refused)?.copy_from_slice(code);
        Ok(())
    }

    unsafe fn free(&mut self, _: u64, _: usize) {
        self.freed += 1;
    }
}

/// Tables in an array.
pub struct StaticTables {
    used: usize,
}

// SAFETY: every reservation is a piece of the array that no other has, aligned to 64 bytes,
// and all of it reads as zero and can be written from the start.
unsafe impl TableMemory for StaticTables {
    type Error = Refused;

    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Refused> {
        let start = self.used;
        let end = start + bytes.next_multiple_of(64);
        if end > TABLE_BYTES {
            return Err(Refused);
        }
        self.used = end;
        // SAFETY: `start` is inside the array.
        let place = unsafe { TABLES.0.get().cast::<u8>().add(start) };
        NonNull::new(place).ok_or(Refused)
    }

    unsafe fn commit(&mut self, _: NonNull<u8>, _: usize, _: usize) -> Result<(), Refused> {
        Ok(())
    }

    unsafe fn release(&mut self, _: NonNull<u8>, _: usize) {}
}

/// How many bytes `message` has when displayed.
pub fn length_of(message: &impl Display) -> usize {
    struct Count(usize);

    impl Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }

    let mut count = Count(0);
    match write!(count, "{message}") {
        Ok(()) => count.0,
        Err(fmt::Error) => 0,
    }
}
