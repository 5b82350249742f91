//! The other processors: made to synchronise, and seen to be outside.

use core::convert::Infallible;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::patch::Cores;
use machine::traps::SYNCHRONISE;
use machine::{PROCESSORS, apic, cpu, paging};

/// How often processors have synchronised because they were asked to.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// How often each processor has been outside of all that may be hooked.
static PASSES: [AtomicU64; PROCESSORS] = [const { AtomicU64::new(0) }; PROCESSORS];

/// The processors.
pub struct Processors {
    others: u64,
    /// How often they were all synchronised.
    pub synchronised: u64,
}

impl Processors {
    pub const fn new(processors: usize) -> Self {
        Self { others: processors as u64 - 1, synchronised: 0 }
    }
}

// SAFETY: `synchronise` returns when every other processor has executed `cpuid`, a serialising
// instruction (Intel SDM volume 3, 10.3), in a handler of an interrupt that was sent after the
// call began, and this one has, too.
unsafe impl Cores for Processors {
    type Error = Infallible;

    fn synchronise(&mut self) -> Result<(), Infallible> {
        let all = ANSWERS.load(Ordering::Acquire) + self.others;
        apic::interrupt_others(SYNCHRONISE as u8);
        cpu::cpuid(0, 0);
        paging::look_again();
        while ANSWERS.load(Ordering::Acquire) < all {
            spin_loop();
        }
        self.synchronised += 1;
        Ok(())
    }
}

/// What a processor does that is asked to synchronise.
pub fn answer() {
    cpu::cpuid(0, 0);
    ANSWERS.fetch_add(1, Ordering::Release);
    apic::end_of_interrupt();
}

/// Says that `processor` is in nothing that may be hooked, and in no image.
pub fn outside(processor: usize) {
    if let Some(passes) = PASSES.get(processor) {
        passes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Waits until each processor has been outside `times` since now.
pub fn wait_outside(processors: usize, times: u64) {
    let before = PASSES.each_ref().map(|passes| passes.load(Ordering::Acquire));
    for (passes, before) in PASSES.iter().zip(before).take(processors).skip(1) {
        while passes.load(Ordering::Acquire) < before + times {
            spin_loop();
        }
    }
}
