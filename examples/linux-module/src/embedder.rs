//! The engine's traits, as a Linux kernel fulfils them.
//!
//! # Whose patch sites they are
//! Every traced function of Linux has a patch site, and ftrace owns all of them: it checks what
//! stands there before it writes, switches itself off if that is not what it wrote last, and
//! shares a site among tracers, kprobes, BPF and live patches. Writing to sites behind its back
//! would break it for everybody. So sites are led to an image by ftrace's *direct calls*,
//! which are just what the engine wants a site to be: `call image`, or, with programs at the
//! exit, `jmp thunk`. Where another tracer is on the same function, ftrace has the site call its
//! own trampoline instead, and that goes on to the image with the same return address, or to the
//! thunk with the caller's: a body finds its slot, and a thunk its caller, all the same.
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
use fentry::emit::x86_64::Hardening;
use fentry::encode::x86_64::{call_bytes, jmp_bytes};
use fentry::metadata::TableMemory;
use fentry::patch::{Cores, Poke, SITE_LEN, Text};

use crate::array::Array;
use crate::images::KernelImages;
use crate::kernel::{self, Change, Errno, JUMP, Line, Way};

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
///
/// # Errors
/// There is no memory.
pub fn parts() -> Result<Parts<Kernel>, Errno> {
    Ok(Parts {
        text: FtraceText { batch: None },
        cores: KernelCores,
        images: KernelImages::new()?,
        tables: KernelTables::new(),
        // Emitted code finds side stacks by `fs`, which in a kernel is user space's.
        side_stack: None,
        hardening: Hardening::NONE,
    })
}

/// `nopl 0(%rax,%rax,1)`: what stands at a site that ftrace leads nowhere.
const NOP: [u8; SITE_LEN] = [0x0f, 0x1f, 0x44, 0, 0];
/// `call rel32`.
const CALL: u8 = 0xe8;
/// `jmp rel32`.
const JMP: u8 = 0xe9;

/// The kernel's text: sites by way of ftrace, padding by way of another mapping.
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

/// Where the instruction at `site` leads, marked if by a jump; 0 for nowhere.
fn target(site: PatchSite, bytes: [u8; SITE_LEN]) -> Result<u64, Errno> {
    if bytes == NOP {
        return Ok(0);
    }
    let [opcode, distance @ ..] = bytes;
    let mark = match opcode {
        CALL => 0,
        JMP => JUMP,
        _ => return Err(Errno::INVALID),
    };
    let next = site.get().wrapping_add(SITE_LEN as u64);
    Ok(next.wrapping_add_signed(i32::from_le_bytes(distance).into()) | mark)
}

/// What ftrace is asked for to change a site's target; `None` if that stays.
fn change(from: u64, to: u64) -> Option<(Change, u64)> {
    match (from, to) {
        (from, to) if from == to => None,
        (0, to) => Some((Change::Lead, to)),
        (from, 0) => Some((Change::Release, from)),
        (_, to) => Some((Change::Redirect, to)),
    }
}

/// Whether a batch is landed, or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forth,
    Back,
}

/// The changes, of which each is one request, in the order in which they are made.
const CHANGES: [Change; 3] = [Change::Lead, Change::Redirect, Change::Release];

/// Has ftrace make those changes of `pokes` that are of this kind, or takes them back. `ways` has
/// room for all.
fn hand_over(
    pokes: &[Poke],
    ways: &mut [Way],
    kind: Change,
    direction: Direction,
) -> Result<(), Errno> {
    let mut asked = kind;
    let mut count = 0;
    for poke in pokes {
        let (from, to) = (target(poke.site, poke.old)?, target(poke.site, poke.new)?);
        let Some((found, mut target)) = change(from, to) else { continue };
        if found != kind {
            continue;
        }
        if direction == Direction::Back
            && let Some(back) = change(to, from)
        {
            (asked, target) = back;
        }
        *ways.get_mut(count).ok_or(Errno::NO_MEMORY)? = Way { site: poke.site.get(), target };
        count += 1;
    }
    if count == 0 {
        return Ok(());
    }
    // SAFETY: the first `count` are filled in; the engine says that code is emitted where they
    // lead.
    Errno::check(unsafe { kernel::fentry_kernel_lead(ways.as_ptr(), count, asked) })
}

impl FtraceText {
    /// Hands the open batch to ftrace, unless that is done.
    fn land(&mut self) -> Result<(), Errno> {
        let Some(staged) = self.batch else { return Ok(()) };
        // SAFETY: `open` was given this slice, and its caller has the text open for it still:
        // nothing stores to sites outside of that, and `close` forgets it.
        let pokes = unsafe { core::slice::from_raw_parts(staged.pokes.as_ptr(), staged.count) };
        // SAFETY: ways are integers.
        let mut ways = unsafe { Array::zeroed(pokes.len()) }?;
        let ways = ways.as_mut_slice();
        for (position, &kind) in CHANGES.iter().enumerate() {
            let Err(error) = hand_over(pokes, ways, kind, Direction::Forth) else { continue };
            for &done in CHANGES.iter().take(position).rev() {
                if let Err(error) = hand_over(pokes, ways, done, Direction::Back) {
                    Line::log(format_args!("ftrace does not take back a change: {error}"));
                }
            }
            return Err(error);
        }
        self.batch = None;
        Ok(())
    }
}

// SAFETY: a batch is landed by ftrace, whose protocol keeps every core from decoding part of an
// instruction, all of it at the first store to a site; stores to sites after that have nothing
// left to do. If ftrace refuses, nothing was changed, or it is taken back. Padding is data to
// every core, and is written by ordinary stores to its page.
unsafe impl Text for FtraceText {
    type Error = Errno;

    /// Of a site that ftrace has for several tracers, this is where it leads for the one that may
    /// have an address of its own there.
    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        // SAFETY: the array has `N` bytes.
        let read = unsafe { kernel::fentry_kernel_read(address, bytes.as_mut_ptr(), N) };
        Errno::check(read)?;
        if N == SITE_LEN && matches!(bytes.first(), Some(&(CALL | JMP))) {
            // SAFETY: it may be called anywhere.
            let direct = match unsafe { kernel::fentry_kernel_led(address) } {
                0 => Ok(NOP),
                thunk if thunk & JUMP != 0 => jmp_bytes(address, thunk & !JUMP),
                image => call_bytes(address, image),
            };
            let direct = direct.map_err(|_| Errno::INVALID)?;
            for (to, from) in bytes.iter_mut().zip(direct) {
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
