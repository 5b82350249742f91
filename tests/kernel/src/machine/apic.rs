//! The local interrupt controller, by which processors interrupt each other (Intel SDM volume
//! 3, chapter 12).

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::paging::APIC;
use crate::{PROCESSORS, cpu};

/// Offsets of registers.
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;

/// A command to all processors but this one.
const TO_OTHERS: u32 = 3 << 18;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 5 << 8;
const START: u32 = 6 << 8;
const SENDING: u32 = 1 << 12;

/// Where a started processor begins: this page, see `boot.s`.
const START_PAGE: u32 = 8;

/// Processors whose controller is enabled.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

fn register(offset: u64) -> *mut u32 {
    ptr::with_exposed_provenance_mut((APIC + offset) as usize)
}

/// Enables this processor's controller.
pub(crate) fn enable() {
    // SAFETY: mapped by `paging`; bit 8 enables, and the vector of spurious interrupts, which
    // nothing here causes, is the last.
    unsafe { register(SPURIOUS).write_volatile(0x1ff) };
    RUNNING.fetch_add(1, Ordering::AcqRel);
}

fn command(command: u32) {
    // SAFETY: mapped by `paging`; all that is ever written is in this file.
    unsafe {
        register(COMMAND).write_volatile(command);
        while register(COMMAND).read_volatile() & SENDING != 0 {
            core::hint::spin_loop();
        }
    }
}

/// Starts all other processors, and gives the number of those that run, this one included.
/// A processor that has not come after two seconds is not there.
pub fn start_others() -> usize {
    command(TO_OTHERS | ASSERT | INIT);
    cpu::pause(10_000);
    for _ in 0..2 {
        command(TO_OTHERS | ASSERT | START | START_PAGE);
        cpu::pause(200);
    }
    for _ in 0..2_000 {
        if RUNNING.load(Ordering::Acquire) >= PROCESSORS {
            break;
        }
        cpu::pause(1_000);
    }
    RUNNING.load(Ordering::Acquire)
}

/// Interrupts all other processors with `vector`.
pub fn interrupt_others(vector: u8) {
    command(TO_OTHERS | ASSERT | u32::from(vector));
}

/// Says that the interrupt in progress is handled.
pub fn end_of_interrupt() {
    // SAFETY: mapped by `paging`.
    unsafe { register(END_OF_INTERRUPT).write_volatile(0) };
}
