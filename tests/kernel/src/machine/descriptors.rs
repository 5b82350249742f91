//! Segments, and the stacks that traps change to.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::PROCESSORS;

/// The selector of the kernel's code.
pub const CODE: u16 = 0x08;
const TASK: u16 = 0x10;

/// The interrupt stack, numbered from 1, of the breakpoint trap. A handler on the stack that it
/// interrupted could not push a return address there: its own frame is in the way.
pub const BREAKPOINT_STACK: u8 = 1;
/// The interrupt stack of faults that nobody expects, of which the stack may be the cause.
pub const FAULT_STACK: u8 = 2;

const STACK_SIZE: usize = 16 << 10;

/// A task state segment (Intel SDM volume 3, 9.7): all that counts in it are the stacks.
#[repr(C, packed(4))]
struct Task {
    reserved: u32,
    privileged: [u64; 3],
    reserved_too: u64,
    interrupt_stacks: [u64; 7],
    reserved_again: u64,
    reserved_still: u16,
    io_map: u16,
}

const _: () = assert!(size_of::<Task>() == 104);

/// What a processor has for itself.
#[repr(C, align(16))]
struct Own {
    stacks: [[u8; STACK_SIZE]; 2],
    descriptors: [u64; 4],
    task: Task,
}

struct Owns(UnsafeCell<[Own; PROCESSORS]>);

// SAFETY: each processor uses its own.
unsafe impl Sync for Owns {}

static OWNS: Owns = Owns(UnsafeCell::new(
    [const {
        Own {
            stacks: [[0; STACK_SIZE]; 2],
            descriptors: [0; 4],
            task: Task {
                reserved: 0,
                privileged: [0; 3],
                reserved_too: 0,
                interrupt_stacks: [0; 7],
                reserved_again: 0,
                reserved_still: 0,
                io_map: 0,
            },
        }
    }; PROCESSORS],
));

/// What `lgdt` and `lidt` load.
#[repr(C, packed)]
pub struct TableRegister {
    pub limit: u16,
    pub address: u64,
}

/// Loads what belongs to `processor`, which is the one that runs this, for the first time.
///
/// # Safety
/// `processor` is less than [`PROCESSORS`], and no other processor has this number.
pub unsafe fn load(processor: usize) {
    // SAFETY: inside the array, and only this processor uses it (contract).
    let own = unsafe { &mut *OWNS.0.get().cast::<Own>().add(processor) };
    let top = |stack: &[u8; STACK_SIZE]| stack.as_ptr_range().end as u64;
    let [breakpoint, fault] = &own.stacks;
    own.task.interrupt_stacks = [top(breakpoint), top(fault), 0, 0, 0, 0, 0];
    let base = &raw const own.task as u64;
    // None: it would be behind the segment's end.
    own.task.io_map = size_of::<Task>() as u16;
    // An available 64-bit task state segment: Intel SDM volume 3, 9.2.3.
    let limit = size_of::<Task>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    // Nothing, 64-bit code, and the two halves of the task's.
    own.descriptors = [0, 0x00af_9a00_0000_ffff, low, base >> 32];
    let limit = size_of_val(&own.descriptors) as u16 - 1;
    let register = TableRegister { limit, address: own.descriptors.as_ptr() as u64 };
    // SAFETY: the descriptors stay, and the code segment is what `cs` holds already.
    unsafe {
        asm!("lgdt [{register}]", "ltr {task:x}", register = in(reg) &raw const register,
            task = in(reg) TASK, options(nostack));
    }
}
