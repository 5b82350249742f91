//! What the boot code calls: the first Rust that a processor runs.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::paging::{self, PAGE, Rights};
use crate::{PROCESSORS, apic, descriptors, traps};

/// Bytes of each processor's stack. The lowest page of it is not mapped.
const STACK_SIZE: usize = 1 << 20;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; PROCESSORS]>);

// SAFETY: each processor uses one of the stacks, and nothing else does.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; PROCESSORS]));

global_asm!(
    include_str!("boot.s"),
    main = sym processor_main,
    stacks = sym STACKS,
    stack_size = const STACK_SIZE,
    processors = const PROCESSORS,
    options(att_syntax),
);

unsafe extern "C" {
    fn main() -> !;
    fn other_main(processor: usize) -> !;
}

/// Where the boot code leads, on the stack of `processor`, whose number is its own.
extern "C" fn processor_main(processor: usize) -> ! {
    if processor == 0 {
        paging::build();
        for stack in 0..PROCESSORS {
            let lowest = &raw const STACKS as u64 + (stack * STACK_SIZE) as u64;
            paging::protect(lowest..lowest + PAGE, Rights::None);
        }
        traps::build();
    }
    // SAFETY: built by the first processor before it started the others.
    unsafe {
        paging::activate();
        descriptors::load(processor);
        traps::load();
    }
    apic::enable();
    // SAFETY: the binary defines them, as the module says.
    unsafe { if processor == 0 { main() } else { other_main(processor) } }
}
