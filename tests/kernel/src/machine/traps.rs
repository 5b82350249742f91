//! Exceptions and interrupts, all of which the binary's `trap` handles.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use crate::console::power_off;
use crate::descriptors::{BREAKPOINT_STACK, CODE, FAULT_STACK, TableRegister};
use crate::paging::{KERNEL, Range};
use crate::println;

global_asm!(include_str!("traps.s"));

/// The vector of the breakpoint, `int3`.
pub const BREAKPOINT: u64 = 3;
/// The vector of the invalid opcode, `ud2` among them.
pub const INVALID_OPCODE: u64 = 6;
const DOUBLE_FAULT: u64 = 8;
/// The vector of control protection: a missed landing pad, or a shadow stack that disagrees.
pub const CONTROL_PROTECTION: u64 = 21;
/// The vector of the interrupt that asks a processor to synchronise.
pub const SYNCHRONISE: u64 = 32;

/// Vectors with an entry.
const VECTORS: usize = 33;

/// What a trap has interrupted, as `traps.s` saves it.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Interrupted {
    /// In the order in which they are on the stack, `r15` first.
    registers: [u64; 15],
    /// Which trap it is.
    pub vector: u64,
    /// What the processor says of it, 0 where it says nothing.
    pub error: u64,
    /// The next instruction.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The names of the registers, as they are on the stack.
const REGISTERS: [&str; 15] = [
    "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rdi", "rsi", "rbp", "rbx", "rdx", "rcx",
    "rax",
];

impl Interrupted {
    /// Whether the next instruction is in `range`.
    pub fn is_in(&self, range: &Range) -> bool {
        range.contains(&self.rip)
    }

    /// Pushes `word` on the stack that was interrupted. For the breakpoint trap, whose handler
    /// has another.
    pub fn push(&mut self, word: u64) {
        self.rsp = self.rsp.wrapping_sub(8);
        let slot = core::ptr::with_exposed_provenance_mut::<u64>(self.rsp as usize);
        // SAFETY: the kernel has no red zone, so the word below its stack pointer is free.
        unsafe { slot.write(word) };
    }

    /// The word at the stack pointer; `None` where no stack of the kernel's can be.
    pub fn pushed(&self) -> Option<u64> {
        let stack = core::ptr::with_exposed_provenance::<u64>(self.rsp as usize);
        let is_stack = self.rsp >= KERNEL && stack.is_aligned();
        // SAFETY: what runs in the kernel has its stack pointer in a stack, which is mapped.
        is_stack.then(|| unsafe { stack.read_volatile() })
    }

    /// What is in `rdi`.
    pub const fn first_argument(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, rdi, ..] = self.registers;
        rdi
    }

    /// Ends everything: nobody expected this trap.
    pub fn unexpected(&self) -> ! {
        let Self { vector, error, rip, rsp, .. } = self;
        // The registers first, so that the last line says what happened.
        for (name, value) in REGISTERS.iter().zip(&self.registers) {
            println!("{name} {value:#x}");
        }
        println!("unexpected trap: vector={vector} error={error:#x} rip={rip:#x} rsp={rsp:#x}");
        power_off()
    }
}

/// An entry of the interrupt descriptor table (Intel SDM volume 3, 7.14.1).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    target_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    target_middle: u16,
    target_high: u32,
    reserved: u32,
}

impl Gate {
    const NONE: Self = Self {
        target_low: 0,
        selector: 0,
        stack: 0,
        kind: 0,
        target_middle: 0,
        target_high: 0,
        reserved: 0,
    };

    const fn new(target: u64, stack: u8) -> Self {
        Self {
            target_low: target as u16,
            selector: CODE,
            stack,
            // Present, an interrupt gate: handlers run with interrupts off.
            kind: 0x8e,
            target_middle: (target >> 16) as u16,
            target_high: (target >> 32) as u32,
            reserved: 0,
        }
    }
}

#[repr(C, align(16))]
struct Gates(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: written by the first processor while there is no other, and read by processors only.
unsafe impl Sync for Gates {}

static GATES: Gates = Gates(UnsafeCell::new([Gate::NONE; VECTORS]));

unsafe extern "C" {
    #[link_name = "trap_entries"]
    static ENTRIES: [u64; VECTORS];
}

/// Fills the table.
pub(crate) fn build() {
    // SAFETY: the first processor does this, before there is another.
    let gates = unsafe { &mut *GATES.0.get() };
    // SAFETY: `traps.s` lists an entry for each vector.
    let entries = unsafe { &ENTRIES };
    for ((gate, &entry), vector) in gates.iter_mut().zip(entries).zip(0_u64..) {
        let stack = match vector {
            BREAKPOINT => BREAKPOINT_STACK,
            DOUBLE_FAULT => FAULT_STACK,
            _ => 0,
        };
        *gate = Gate::new(entry, stack);
    }
}

/// Loads the table on this processor.
///
/// # Safety
/// It is [built](build), and this processor's segments are loaded.
pub(crate) unsafe fn load() {
    let limit = size_of::<Gates>() as u16 - 1;
    let register = TableRegister { limit, address: GATES.0.get() as u64 };
    // SAFETY: the table is built and stays (contract).
    unsafe { asm!("lidt [{}]", in(reg) &raw const register, options(nostack)) };
}
