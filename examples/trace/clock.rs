//! The processor's own clock: what can be read at every call without being most of it.

use core::arch::x86_64::_rdtsc;
use std::time::Instant;

/// What the clock shows, in ticks of a length that does not change.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets a process use it that
    // has not forbidden itself to (`PR_SET_TSC`).
    unsafe { _rdtsc() }
}

/// A moment on the processor's clock and on the system's: how long a tick is, a later look at
/// both tells.
pub struct Moment {
    ticks: u64,
    time: Instant,
}

impl Moment {
    pub fn now() -> Self {
        Self { ticks: ticks(), time: Instant::now() }
    }

    /// Nanoseconds of a tick, as far as the time since this moment tells: the longer, the truer.
    pub fn nanoseconds_of_tick(&self) -> f64 {
        let ticks = ticks().saturating_sub(self.ticks).max(1);
        self.time.elapsed().as_nanos() as f64 / ticks as f64
    }
}
