//! Programs at entry and exit: how long calls take.
//!
//! A call's state is kept on the stack that the function is called on. The engine's other way
//! is a side stack of the thread, found by way of `fs`: in a kernel that is user space's, and a
//! task runs on several stacks, its own and those of interrupts. So the functions' arguments
//! must all be in registers.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::attach::{Attachment, Cookies, ProgramKind};
use fentry::emit::{Context, ExitContext, Vectors};

use crate::array::Array;
use crate::kernel::Errno;

/// Buckets of a histogram: bucket *i* counts calls that took 2^i to 2^(i+1) - 1 cycles, and the
/// last one those that took longer.
pub const BUCKETS: usize = 40;

/// How long calls took, of all functions together: what the programs see.
#[derive(Debug)]
#[repr(C)]
struct Calls {
    /// Calls that have entered and not yet returned.
    active: AtomicU64,
    /// A histogram for each function.
    histograms: *const [AtomicU64; BUCKETS],
}

/// How long calls of some functions take.
#[derive(Debug)]
pub struct Latencies {
    histograms: Array<[AtomicU64; BUCKETS]>,
    /// One of it.
    calls: Array<Calls>,
}

/// The program at the entry.
extern "C" fn enter(_: *mut Context, _: u64, calls: u64, started: *mut u64) -> u64 {
    // SAFETY: the data is the address of what `Latencies` has, until no call is active.
    let calls = unsafe { &*(calls as *const Calls) };
    calls.active.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the word is this call's. The counter of cycles can be read anywhere in a kernel.
    unsafe { started.write(_rdtsc()) };
    0
}

/// The program at the exit. Its cookie is the function's position.
extern "C" fn leave(_: *mut ExitContext, position: u64, calls: u64, started: *mut u64) {
    // SAFETY: the word is this call's, and `enter` has written it.
    let took = unsafe { _rdtsc().wrapping_sub(started.read()) };
    let bucket = (took.checked_ilog2().unwrap_or(0) as usize).min(BUCKETS - 1);
    // SAFETY: as in `enter`.
    let calls = unsafe { &*(calls as *const Calls) };
    let histogram = calls.histograms.wrapping_add(position as usize).cast::<AtomicU64>();
    // SAFETY: there is a histogram for each position, and it has this bucket.
    unsafe { (*histogram.wrapping_add(bucket)).fetch_add(1, Ordering::Relaxed) };
    calls.active.fetch_sub(1, Ordering::Relaxed);
}

impl Latencies {
    /// Of so many functions, none of which was called yet.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(functions: usize) -> Result<Self, Errno> {
        // SAFETY: integers, and a pointer that may be null.
        let (histograms, mut calls) =
            unsafe { (Array::zeroed(functions)?, Array::<Calls>::zeroed(1)?) };
        for calls in calls.as_mut_slice() {
            calls.histograms = histograms.as_slice().as_ptr();
        }
        Ok(Self { histograms, calls })
    }

    /// What measures: a function's cookie is its position. Neither program calls anything, takes
    /// a lock or touches a vector register.
    #[must_use]
    pub fn program(&self) -> Attachment<'static> {
        Attachment {
            target: enter as *const () as u64,
            kind: ProgramKind::Session { exit: leave as *const () as u64 },
            data: Some(self.calls.as_slice().as_ptr() as u64),
            vectors: Vectors::Untouched,
            cookies: Cookies::Position,
        }
    }

    /// Whether a call that is being measured has not returned yet.
    #[must_use]
    pub fn active(&self) -> bool {
        self.calls.as_slice().iter().any(|it| it.active.load(Ordering::Relaxed) != 0)
    }

    /// How many calls of the function at `position` fell into each bucket.
    #[must_use]
    pub fn histogram(&self, position: usize) -> Option<[u64; BUCKETS]> {
        let histogram = self.histograms.as_slice().get(position)?;
        Some(histogram.each_ref().map(|calls| calls.load(Ordering::Relaxed)))
    }

    /// Bytes of it all.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.histograms.as_slice().len() * size_of::<[u64; BUCKETS]>() + size_of::<Calls>()
    }
}
