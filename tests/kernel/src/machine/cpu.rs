//! Instructions that Rust has no name for.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// The base of `fs`, which emitted code finds a processor's own data by.
pub const FS_BASE: u32 = 0xc000_0100;

/// Writes a byte to a port.
///
/// # Safety
/// What the device does then harms nobody.
pub unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller's contract.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem)) };
}

/// Writes four bytes to a port.
///
/// # Safety
/// As [`out8`].
pub unsafe fn out32(port: u16, value: u32) {
    // SAFETY: the caller's contract.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, nomem)) };
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists, and the processor goes on as its caller expects with this value in it.
pub unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's contract.
    unsafe { asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack)) };
}

/// What `cpuid` says. It is also a serialising instruction (Intel SDM volume 3, 10.3).
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Lets interrupts in.
///
/// # Safety
/// Interrupt handlers are loaded.
pub unsafe fn enable_interrupts() {
    // SAFETY: the caller's contract.
    unsafe { asm!("sti", options(nostack)) };
}

/// Waits for about this many microseconds: a write to port 0x80 takes one on a PC.
pub fn pause(microseconds: u32) {
    for _ in 0..microseconds {
        // SAFETY: the port shows codes while the BIOS runs, and does nothing now.
        unsafe { out8(0x80, 0) };
    }
}
