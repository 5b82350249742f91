//! Each processor's side stack, which programs at the exit of functions need.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use fentry::emit::x86_64::{SideStack, SideStackPlace};
use machine::PROCESSORS;
use machine::cpu::{FS_BASE, write_msr};

/// How many hooked functions can be active at once on a processor. Here they do not call each
/// other.
const DEPTH: u32 = 4;
/// Bytes of a side stack.
const SIZE: usize = SideStack::size_for(DEPTH);

/// What emitted code finds by `fs`.
#[repr(C, align(16))]
struct Own {
    /// The processor's side stack; null until it is made.
    side_stack: UnsafeCell<*mut SideStack>,
    memory: UnsafeCell<[u128; SIZE.div_ceil(16)]>,
}

// SAFETY: each processor uses its own.
unsafe impl Sync for Own {}

static OWN: [Own; PROCESSORS] = [const {
    Own {
        side_stack: UnsafeCell::new(ptr::null_mut()),
        memory: UnsafeCell::new([0; SIZE.div_ceil(16)]),
    }
}; PROCESSORS];

/// How emitted code finds a side stack.
pub const PLACE: SideStackPlace = SideStackPlace { thread_offset: 0, make: None };

/// Makes the side stack of `processor`, which runs this.
pub fn make(processor: usize) {
    let Some(own) = OWN.get(processor) else { return };
    let memory = NonNull::from(&own.memory).cast();
    // SAFETY: the memory has so many bytes, and is only this processor's. Where it were too
    // small, the pointer stays null, and calls run unhooked, which the workers see.
    unsafe {
        if let Ok(side_stack) = SideStack::init(memory, SIZE) {
            own.side_stack.get().write(side_stack.as_ptr());
        }
        // Compiled code does not use `fs`.
        write_msr(FS_BASE, ptr::from_ref(own) as u64);
    }
}
