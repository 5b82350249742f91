//! The engine's traits, as a Linux kernel fulfils them.
//!
//! # Whose patch sites they are
//! Every traced function of Linux has a patch site, and ftrace owns all of them: it checks what
//! stands there before it writes, switches itself off if that is not what it wrote last, and
//! shares a site among tracers, kprobes, BPF and live patches. Writing to sites behind its back
//! would break it for everybody. So sites are led to an image by ftrace's *direct calls*,
//! which are just what the engine wants a site to be: `call image`. Where another tracer is on
//! the same function, ftrace has the site call its own trampoline instead, and that jumps to
//! the image with the same return address: a body finds its slot all the same.
//!
//! ftrace has a breakpoint protocol of its own, for whole batches. The engine's batch is
//! therefore handed over as a whole, at its first store, and the engine's own three passes over
//! sites change nothing after that.
//!
//! Slots are different: padding belongs to nobody, and is never executed. It is written
//! through another mapping of its pages.

use core::ptr::NonNull;

use fentry::addr::PatchSite;
use fentry::attach::{Embedder, Parts};
use fentry::encode::x86_64::call_bytes;
use fentry::metadata::TableMemory;
use fentry::patch::{Cores, Poke, SITE_LEN, Text};

use crate::images::KernelImages;
use crate::kernel::{self, Errno, Line};

/// A Linux kernel, as an [`Embedder`].
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Embedder for Kernel {
    type Error = Errno;
    type Text = FtraceText;
    type Cores = KernelCores;
    type Images = KernelImages;
    type Tables = KernelTables;
}

/// The parts that an engine is made of.
#[must_use]
pub const fn parts() -> Parts<Kernel> {
    Parts {
        text: FtraceText { batch: None },
        cores: KernelCores,
        images: KernelImages::new(),
        tables: KernelTables::new(),
        // Emitted code finds side stacks by `fs`, which in a kernel is user space's.
        side_stack: None,
    }
}

/// `nopl 0(%rax,%rax,1)`: what stands at a site that ftrace leads nowhere.
const NOP: [u8; SITE_LEN] = [0x0f, 0x1f, 0x44, 0, 0];
/// `call rel32`.
const CALL: u8 = 0xe8;

/// The kernel's text: sites by way of ftrace, padding by way of another mapping.
///
/// Functions that are led to one image are one registration of ftrace's, which is made, led
/// elsewhere and ended as a whole. So must be what is attached.
#[derive(Debug)]
pub struct FtraceText {
    /// The batch that is open, until it is handed to ftrace.
    batch: Option<Staged>,
}

/// A batch that was opened, kept where its caller has it.
#[derive(Clone, Copy, Debug)]
struct Staged {
    pokes: NonNull<Poke>,
    count: usize,
}

/// Where a site leads before a batch and after it: the addresses of images, or 0.
type Way = (u64, u64);

/// The most ways of the sites of one batch: functions with and without a landing pad, with
/// several sets of programs.
const WAYS: usize = 16;

/// Where the instruction at `site` leads.
fn target(site: PatchSite, bytes: [u8; SITE_LEN]) -> Result<u64, Errno> {
    match bytes {
        NOP => Ok(0),
        [CALL, distance @ ..] => {
            let next = site.get().wrapping_add(SITE_LEN as u64);
            Ok(next.wrapping_add_signed(i32::from_le_bytes(distance).into()))
        }
        _ => Err(Errno::INVALID),
    }
}

/// The way of the site of `poke`.
fn way(poke: &Poke) -> Result<Way, Errno> {
    Ok((target(poke.site, poke.old)?, target(poke.site, poke.new)?))
}

/// The ways of a batch's sites, in the order in which they are met; `None` for the rest.
fn ways(pokes: &[Poke]) -> Result<[Option<Way>; WAYS], Errno> {
    let mut ways = [None; WAYS];
    for poke in pokes {
        let way = Some(way(poke)?);
        let place = ways.iter_mut().find(|place| place.is_none() || **place == way);
        *place.ok_or(Errno::BUSY)? = way;
    }
    Ok(ways)
}

impl FtraceText {
    /// Hands the open batch to ftrace, unless that is done.
    fn land(&mut self) -> Result<(), Errno> {
        let Some(staged) = self.batch else { return Ok(()) };
        // SAFETY: `open` was given this slice, and its caller has the text open for it still:
        // nothing stores to sites outside of that, and `close` forgets it.
        let pokes = unsafe { core::slice::from_raw_parts(staged.pokes.as_ptr(), staged.count) };
        let mut sites = Sites::new(pokes.len())?;
        let ways = ways(pokes)?;
        for (position, &way) in ways.iter().flatten().enumerate() {
            let Err(error) = sites.lead(pokes, way) else { continue };
            for &(from, to) in ways.iter().flatten().take(position) {
                if let Err(error) = sites.lead(pokes, (to, from)) {
                    Line::log(format_args!("ftrace does not take back a call of {to:#x}: {error}"));
                }
            }
            return Err(error);
        }
        self.batch = None;
        Ok(())
    }
}

/// An array of sites, in memory of the kernel's.
struct Sites {
    memory: NonNull<u64>,
    len: usize,
}

impl Sites {
    fn new(len: usize) -> Result<Self, Errno> {
        let bytes = len.checked_mul(size_of::<u64>()).ok_or(Errno::NO_MEMORY)?;
        // SAFETY: it may sleep, as every caller of the engine may.
        let memory = unsafe { kernel::fentry_kernel_alloc(bytes) };
        Ok(Self { memory: NonNull::new(memory.cast()).ok_or(Errno::NO_MEMORY)?, len })
    }

    /// Leads the sites of those of `pokes` that go this way, or came it.
    fn lead(&mut self, pokes: &[Poke], (from, to): Way) -> Result<(), Errno> {
        if from == to {
            return Ok(());
        }
        // SAFETY: `new` has allocated `len` of them, zeroed, and nobody else has them.
        let places = unsafe { core::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) };
        let mut count = 0;
        let goes =
            |poke: &&Poke| matches!(way(poke), Ok(way) if way == (from, to) || way == (to, from));
        for (place, poke) in places.iter_mut().zip(pokes.iter().filter(goes)) {
            *place = poke.site.get();
            count += 1;
        }
        // SAFETY: the first `count` sites are in the slice; the engine says that `to` is
        // emitted.
        Errno::check(unsafe { kernel::fentry_kernel_land(places.as_ptr(), count, from, to) })
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`.
        unsafe { kernel::fentry_kernel_free(self.memory.as_ptr().cast()) };
    }
}

// SAFETY: a batch is landed by ftrace, whose protocol keeps every core from decoding part of an
// instruction, all at once at the first store to a site; stores to sites after that have
// nothing left to do. If ftrace refuses, nothing was changed. Padding is data to every core,
// and is written by ordinary stores to its page.
unsafe impl Text for FtraceText {
    type Error = Errno;

    /// Of a site that ftrace has for others too, this is what ftrace does for *us* there.
    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        // SAFETY: the array has `N` bytes.
        let read = unsafe { kernel::fentry_kernel_read(address, bytes.as_mut_ptr(), N) };
        Errno::check(read)?;
        if N == SITE_LEN && bytes.first() == Some(&CALL) {
            // SAFETY: the engine's callers take turns, and so do changes of what is led.
            let ours = match unsafe { kernel::fentry_kernel_led(address) } {
                0 => NOP,
                image => call_bytes(address, image).map_err(|_| Errno::INVALID)?,
            };
            for (to, from) in bytes.iter_mut().zip(ours) {
                *to = from;
            }
        }
        Ok(bytes)
    }

    fn open(&mut self, pokes: &[Poke]) -> Result<(), Errno> {
        self.batch = Some(Staged { pokes: NonNull::from(pokes).cast(), count: pokes.len() });
        Ok(())
    }

    fn close(&mut self) {
        self.batch = None;
        // SAFETY: nothing is being written.
        unsafe { kernel::fentry_kernel_write_end() };
    }

    unsafe fn store_byte(&mut self, _: u64, _: u8) -> Result<(), Errno> {
        self.land()
    }

    unsafe fn store_pair(&mut self, _: u64, _: [u8; 2]) -> Result<(), Errno> {
        self.land()
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Errno> {
        if N < SITE_LEN {
            // The tail of a site, whose head has landed it.
            return self.land();
        }
        // SAFETY: a slot, in the padding before a site of the batch (contract).
        Errno::check(unsafe { kernel::fentry_kernel_write(address, bytes.as_ptr(), N) })
    }
}

/// The kernel's cores.
#[derive(Clone, Copy, Debug)]
pub struct KernelCores;

// SAFETY: `sync_core` is run on every core that is online, by an interrupt that is waited for;
// one that comes online later has not fetched anything yet.
unsafe impl Cores for KernelCores {
    type Error = Errno;

    fn synchronise(&mut self) -> Result<(), Errno> {
        // SAFETY: interrupts are on, as in every caller of the engine.
        unsafe { kernel::fentry_kernel_sync_cores() };
        Ok(())
    }
}

/// The most tables that an engine has: four, and a column for each lane but the first.
const TABLES: usize = 4 + fentry::metadata::LANES as usize - 1;

/// Memory for tables: address space of `vmalloc`'s, with pages put there as they are needed.
/// All of it goes back when this is dropped.
#[derive(Debug)]
pub struct KernelTables {
    reservations: [Option<Reservation>; TABLES],
}

#[derive(Clone, Copy, Debug)]
struct Reservation {
    base: NonNull<u8>,
    committed: usize,
}

impl KernelTables {
    const fn new() -> Self {
        Self { reservations: [None; TABLES] }
    }

    /// Bytes of all pages that were put there.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.reservations.iter().flatten().map(|reservation| reservation.committed).sum()
    }

    fn place(&mut self, base: NonNull<u8>) -> Option<&mut Option<Reservation>> {
        let is_it = |place: &&mut Option<Reservation>| place.is_some_and(|it| it.base == base);
        self.reservations.iter_mut().find(is_it)
    }
}

// SAFETY: each reservation is an area of its own, aligned to a page; pages are zeroed, and
// putting them behind others moves none.
unsafe impl TableMemory for KernelTables {
    type Error = Errno;

    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Errno> {
        let place = self.reservations.iter_mut().find(|place| place.is_none());
        let place = place.ok_or(Errno::NO_MEMORY)?;
        // SAFETY: it may sleep, as every caller of the engine may.
        let base = NonNull::new(unsafe { kernel::fentry_kernel_reserve(bytes) });
        let base = base.ok_or(Errno::NO_MEMORY)?;
        *place = Some(Reservation { base, committed: 0 });
        Ok(base)
    }

    unsafe fn commit(&mut self, base: NonNull<u8>, from: usize, to: usize) -> Result<(), Errno> {
        let reservation = self.place(base).and_then(Option::as_mut).ok_or(Errno::INVALID)?;
        // SAFETY: the caller's contract is the same.
        Errno::check(unsafe { kernel::fentry_kernel_commit(base.as_ptr(), from, to) })?;
        reservation.committed = to;
        Ok(())
    }

    unsafe fn release(&mut self, base: NonNull<u8>, _: usize) {
        if let Some(place) = self.place(base) {
            *place = None;
            // SAFETY: reserved by `reserve`, and nobody uses it any more (contract).
            unsafe { kernel::fentry_kernel_release(base.as_ptr()) };
        }
    }
}

impl Drop for KernelTables {
    fn drop(&mut self) {
        for Reservation { base, .. } in self.reservations.iter().flatten() {
            // SAFETY: the engine that used it is being dropped, and its embedder drops it
            // only when no core runs an image.
            unsafe { kernel::fentry_kernel_release(base.as_ptr()) };
        }
    }
}
