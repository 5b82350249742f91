//! Programs at entry and exit: how long calls take.
//!
//! The engine's own exits keep what they need of a call on a side stack of the thread, found by
//! way of `fs`. In a kernel that is user space's, and a task runs on several stacks: its own,
//! and those of interrupts. So here each function gets a trampoline that keeps it on the stack
//! that the function is called on, of the form that Linux's BPF had before 6.19. The functions'
//! arguments must all be in registers.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::CalledTrampoline;
use fentry::emit::{Context, CookiePlace, ExitContext, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;

use crate::array::Array;
use crate::kernel::{self, Errno, Line};

/// Buckets of a histogram: bucket *i* counts calls that took 2^i to 2^(i+1) - 1 cycles, and the
/// last one those that took longer.
pub const BUCKETS: usize = 40;

/// How often it is looked whether all calls have returned, some milliseconds apart.
const LOOKS: u32 = 500;

/// Bytes for one trampoline.
const SIZE: usize = CalledTrampoline::max_size(1, 1, 0).next_multiple_of(64);

/// A function to measure.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Where it is entered.
    pub entry: Entry,
    /// Its patch site.
    pub site: u64,
    /// Where its own body goes on.
    pub origin: Origin,
}

/// How long calls took, of all functions together: what the programs see.
#[derive(Debug)]
#[repr(C)]
struct Calls {
    /// Calls that have entered and not yet returned.
    active: AtomicU64,
    /// A histogram for each function.
    histograms: *const [AtomicU64; BUCKETS],
}

/// How long calls of some functions take, and what finds it out.
#[derive(Debug)]
pub struct Exits {
    histograms: Array<[AtomicU64; BUCKETS]>,
    /// One of it.
    calls: Array<Calls>,
    /// Executable memory: a trampoline for each function.
    trampolines: u64,
    /// Pairs of site and trampoline.
    ways: Array<[u64; 2]>,
}

/// The program at the entry.
extern "C" fn enter(_: *mut Context, _: u64, calls: u64, started: *mut u64) -> u64 {
    // SAFETY: the data is the address of what `Exits` has, until no call is active.
    let calls = unsafe { &*(calls as *const Calls) };
    calls.active.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the word is this call's. The counter of cycles can be read anywhere in a kernel.
    unsafe { started.write(_rdtsc()) };
    0
}

/// The program at the exit.
extern "C" fn leave(context: *mut ExitContext, _: u64, calls: u64, started: *mut u64) {
    // SAFETY: the emitted code has made both for this call, and `enter` has written the second.
    let (index, took) = unsafe { ((*context).index(), _rdtsc().wrapping_sub(started.read())) };
    let bucket = (took.checked_ilog2().unwrap_or(0) as usize).min(BUCKETS - 1);
    // SAFETY: as in `enter`.
    let calls = unsafe { &*(calls as *const Calls) };
    let histogram = calls.histograms.wrapping_add(index as usize).cast::<AtomicU64>();
    // SAFETY: there is a histogram for the index of each trampoline, and it has this bucket.
    unsafe { (*histogram.wrapping_add(bucket)).fetch_add(1, Ordering::Relaxed) };
    calls.active.fetch_sub(1, Ordering::Relaxed);
}

impl Exits {
    /// Measures calls of these functions from now on. Each function's position is its index.
    ///
    /// # Safety
    /// The functions return, and soon, and take no arguments on the stack; they are the
    /// kernel's own.
    ///
    /// # Errors
    /// What the kernel said; then nothing is measured.
    pub unsafe fn begin(functions: &[Measured]) -> Result<Self, Errno> {
        let bytes = functions.len().checked_mul(SIZE).ok_or(Errno::NO_MEMORY)?;
        // SAFETY: integers, and a pointer that may be null.
        let mut exits = unsafe {
            Self {
                histograms: Array::zeroed(functions.len())?,
                calls: Array::zeroed(1)?,
                trampolines: 0,
                ways: Array::zeroed(functions.len())?,
            }
        };
        let histograms = exits.histograms.as_slice().as_ptr();
        if let [calls] = exits.calls.as_mut_slice() {
            calls.histograms = histograms;
        }
        // SAFETY: it may sleep, as the caller may.
        exits.trampolines = unsafe { kernel::fentry_kernel_images(bytes) };
        if exits.trampolines == 0 {
            return Err(Errno::NO_MEMORY);
        }
        let emitted = exits.emit(functions);
        // SAFETY: nothing is being written.
        unsafe { kernel::fentry_kernel_write_end() };
        emitted?;
        // SAFETY: the trampolines are emitted, for the functions with these sites.
        Errno::check(unsafe { exits.lead(true) })?;
        Ok(exits)
    }

    /// Emits the trampolines, and leaves open what they are written through.
    fn emit(&mut self, functions: &[Measured]) -> Result<(), Errno> {
        let calls = self.calls.as_slice().as_ptr() as u64;
        // No program looks at its cookie; some word has to be there.
        let cookie =
            CookiePlace { column: self.ways.as_slice().as_ptr() as u64, stride: Stride::Eight };
        let call = |target| ProgramCall { target, data: Some(calls), cookie, session: Some(0) };
        let entries = [call(enter as *const () as u64)];
        let exits = [call(leave as *const () as u64)];
        let ways = self.ways.as_mut_slice().iter_mut();
        for (position, (way, function)) in ways.zip(functions).enumerate() {
            let at = self.trampolines.wrapping_add((position * SIZE) as u64);
            let mut bytes = [0; SIZE];
            let mut code = CodeBuffer::new(&mut bytes, at);
            let start = CalledTrampoline {
                index: position as u32,
                function: function.entry,
                origin: function.origin,
                stack_arguments: 0,
                vectors: Vectors::Untouched,
                entries: &entries,
                exits: &exits,
            }
            .emit(&mut code)
            .map_err(|error| {
                Line::log(format_args!("{}: {error}", function.entry));
                Errno::INVALID
            })?;
            let written = code.written();
            // SAFETY: memory of this one's, which nothing leads to yet.
            let answer =
                unsafe { kernel::fentry_kernel_write(at, written.as_ptr(), written.len()) };
            Errno::check(answer)?;
            *way = [function.site, start];
        }
        Ok(())
    }

    /// Leads the sites to their trampolines, or nowhere.
    ///
    /// # Safety
    /// The trampolines are emitted.
    unsafe fn lead(&self, on: bool) -> i32 {
        let ways = self.ways.as_slice();
        // SAFETY: the slice has so many; the rest is the caller's contract.
        unsafe { kernel::fentry_kernel_lead_each(ways.as_ptr().cast(), ways.len(), on.into()) }
    }

    /// Ends it. Waits until every call that is being measured has returned.
    ///
    /// # Errors
    /// What the kernel said, or [`Errno::BUSY`]: a call does not return, maybe because it waits
    /// for this. Then calls are still measured.
    pub fn end(&self) -> Result<(), Errno> {
        // SAFETY: emitted by `begin`.
        Errno::check(unsafe { self.lead(false) })?;
        // SAFETY: both may sleep, as the caller may. After the first, every task that was in
        // a trampoline before its call was counted has been counted; after the loop, none is
        // in a function or its programs; after the second, none is on its way out.
        unsafe {
            kernel::fentry_kernel_quiesce();
            let mut looks = 0;
            while self.calls.as_slice().iter().any(|it| it.active.load(Ordering::Relaxed) != 0) {
                looks += 1;
                if looks > LOOKS {
                    self.lead(true);
                    return Err(Errno::BUSY);
                }
                kernel::fentry_kernel_sleep();
            }
            kernel::fentry_kernel_quiesce();
        }
        Ok(())
    }

    /// How many calls of the function at `position` fell into each bucket.
    #[must_use]
    pub fn histogram(&self, position: usize) -> Option<[u64; BUCKETS]> {
        let histogram = self.histograms.as_slice().get(position)?;
        Some(histogram.each_ref().map(|calls| calls.load(Ordering::Relaxed)))
    }

    /// Bytes of it all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ways.as_slice().len() * (SIZE + size_of::<[u64; 2]>() + size_of::<[u64; BUCKETS]>())
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        if self.trampolines != 0 {
            // SAFETY: nothing leads there: `end` was called, or `begin` has failed.
            unsafe { kernel::fentry_kernel_images_free(self.trampolines) };
        }
    }
}
