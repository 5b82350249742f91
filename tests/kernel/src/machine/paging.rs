//! Address space: what is mapped where, with which rights. Nothing is both writable and
//! executable at one address.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the kernel runs: this far above where it is loaded. As in `kernel.ld`.
pub const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// Where all memory is, writable and not executable: also text, which is changed here.
pub const MEMORY: u64 = 0xffff_8000_0000_0000;
/// Address space in which [`map_zeroed`] maps pages.
pub const TABLES: u64 = 0xffff_9000_0000_0000;
/// The local interrupt controller's registers, which physically are at [`APIC_AT`].
pub(crate) const APIC: u64 = 0xffff_a000_0000_0000;
const APIC_AT: u64 = 0xfee0_0000;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Bits of a page table's entry (Intel SDM volume 3, 5.5.4).
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 4;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NOT_EXECUTABLE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Code.
    Execute,
    /// Constants.
    Read,
    /// Everything else.
    Write,
    /// Nothing at all.
    None,
    /// A shadow stack: not writable, but dirty (Intel SDM volume 3, 5.6.2).
    ShadowStack,
}

impl Rights {
    const fn bits(self) -> u64 {
        match self {
            Self::Execute => PRESENT,
            Self::Read => PRESENT | NOT_EXECUTABLE,
            Self::Write => PRESENT | WRITABLE | NOT_EXECUTABLE,
            Self::None => 0,
            Self::ShadowStack => PRESENT | DIRTY | NOT_EXECUTABLE,
        }
    }
}

#[repr(C, align(4096))]
struct Root(UnsafeCell<[u64; 512]>);

// SAFETY: only the first processor changes mappings, and processors read them at any time.
unsafe impl Sync for Root {}

static ROOT: Root = Root(UnsafeCell::new([0; 512]));

/// Memory from here on, physically, is given out by [`frame`]: behind the kernel.
static NEXT_FRAME: AtomicU64 = AtomicU64::new(FRAMES.0);

/// Memory that is given out. The machine has 64 MiB at least.
const FRAMES: (u64, u64) = (16 << 20, 64 << 20);

/// Bounds that the linker knows; see `kernel.ld`.
macro_rules! bounds {
    ($($name:ident)*) => {
        unsafe extern "C" {
            $(static $name: u8;)*
        }
    };
}

bounds! {
    hookable_start hookable_end core_text_start core_text_end core_data_start core_data_end
    data_start images_start images_end kernel_end
}

/// A range of addresses.
pub type Range = core::ops::Range<u64>;

/// The functions that may be hooked.
pub fn hookable() -> Range {
    &raw const hookable_start as u64..&raw const hookable_end as u64
}

/// The memory for emitted code.
pub fn images() -> Range {
    &raw const images_start as u64..&raw const images_end as u64
}

/// Bytes of code and of data that the library under test takes in this kernel.
pub fn core_size() -> [u64; 2] {
    let text = &raw const core_text_end as u64 - &raw const core_text_start as u64;
    let data = &raw const core_data_end as u64 - &raw const core_data_start as u64;
    [text, data]
}

/// Where the bytes of the kernel's `address` can be written.
pub fn alias(address: u64) -> *mut u8 {
    memory(address.wrapping_sub(KERNEL))
}

/// Where the memory at `physical` can be written.
fn memory(physical: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut((MEMORY + physical) as usize)
}

/// A page of memory, filled with zeros; its physical address. `None` when there is none.
fn frame() -> Option<u64> {
    let taken = NEXT_FRAME.fetch_add(PAGE, Ordering::Relaxed);
    if taken >= FRAMES.1 {
        return None;
    }
    // SAFETY: inside what is given out, and given out once.
    unsafe { memory(taken).write_bytes(0, PAGE as usize) };
    Some(taken)
}

/// The page that holds this table, reached from `entry`, and made if it is not there.
fn table(entry: *mut u64) -> Option<*mut u64> {
    // SAFETY: `entry` is one of a table's 512, which only the first processor changes.
    unsafe {
        if entry.read() & PRESENT == 0 {
            entry.write_volatile(frame()? | PRESENT | WRITABLE);
        }
        Some(memory(entry.read() & ADDRESS).cast())
    }
}

/// The entry for `address` in `table`, of the level that resolves the bits from `shift` on.
fn entry(table: *mut u64, address: u64, shift: u32) -> *mut u64 {
    table.wrapping_add((address >> shift & 511) as usize)
}

fn map(address: u64, bits: u64) -> Option<()> {
    let upper = table(entry(ROOT.0.get().cast(), address, 39))?;
    let middle = table(entry(upper, address, 30))?;
    if bits & LARGE != 0 {
        // SAFETY: as in `table`.
        unsafe { entry(middle, address, 21).write_volatile(bits) };
        return Some(());
    }
    let lower = table(entry(middle, address, 21))?;
    // SAFETY: as in `table`.
    unsafe { entry(lower, address, 12).write_volatile(bits) };
    Some(())
}

/// Maps the pages from `start` on, until before `end`, to memory filled with zeros. No page
/// there was mapped before. `None` when there is not enough memory.
pub fn map_zeroed(pages: Range) -> Option<()> {
    pages.step_by(PAGE as usize).try_for_each(|page| map(page, frame()? | Rights::Write.bits()))
}

/// Maps the kernel's page `page` a second time, at `at`, where no page is.
pub fn map_again(page: u64, at: u64, rights: Rights) -> Option<()> {
    map(at, page.wrapping_sub(KERNEL) & ADDRESS | rights.bits())
}

/// Changes the rights of the kernel's pages in `pages`, on this processor.
pub fn protect(pages: Range, rights: Rights) -> Option<()> {
    pages.step_by(PAGE as usize).try_for_each(|page| {
        map(page, page.wrapping_sub(KERNEL) & ADDRESS | rights.bits())?;
        // SAFETY: forgets what the processor knows of the page.
        unsafe { asm!("invlpg [{}]", in(reg) page, options(nostack)) };
        Some(())
    })
}

/// Builds all that is mapped from the start.
pub(crate) fn build() {
    let (text, rodata) = (&raw const hookable_start as u64, &raw const core_data_start as u64);
    let (data, end) = (&raw const data_start as u64, &raw const kernel_end as u64);
    let parts = [
        (text..rodata, Rights::Execute),
        (rodata..data, Rights::Read),
        (data..end, Rights::Write),
        (images(), Rights::Execute),
    ];
    for (pages, rights) in parts {
        protect(pages, rights);
    }
    for physical in (0..FRAMES.1).step_by(2 << 20) {
        map(MEMORY + physical, physical | Rights::Write.bits() | LARGE);
    }
    map(APIC, APIC_AT | Rights::Write.bits() | UNCACHED);
    // Emitted code may stand anywhere in here, and where none does, is a breakpoint.
    let images = images();
    // SAFETY: the linker has given these bytes to nothing else.
    unsafe { alias(images.start).write_bytes(0xcc, (images.end - images.start) as usize) };
}

/// Makes this processor forget where addresses lead, and look again.
///
/// For QEMU, which notes there, too, that a page holds no translated code and may be stored to
/// without a look: it does so without a lock, just when another of its threads may be translating
/// code of that page (`notdirty_write` and `tlb_protect_code`, accel/tcg/cputlb.c, QEMU 10.0). Code
/// would be changed from then on, and old translations of it run on.
pub fn look_again() {
    // SAFETY: the same tables again.
    unsafe { asm!("mov {root}, cr3", "mov cr3, {root}", root = out(reg) _, options(nostack)) };
}

/// Changes to what [`build`] has built.
///
/// # Safety
/// It is built, and the processor runs in the kernel, on a stack of the kernel's.
pub(crate) unsafe fn activate() {
    let root = (ROOT.0.get() as u64).wrapping_sub(KERNEL);
    // SAFETY: what runs and what it uses is mapped as before (contract).
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}
