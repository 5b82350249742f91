//! What the standard library and libc would have brought: the first instruction, the last
//! one, and moving bytes.

use core::arch::{asm, naked_asm};
use core::panic::PanicInfo;

/// Where the kernel enters the program, with the stack aligned to 16 bytes (psABI 3.4.1).
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    exit(crate::run())
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}

/// Named by the unwind tables of the `core` that Rust ships for Linux, and never called: a
/// panic aborts.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Ends the program: `exit_group`, system call 231 of x86-64 Linux.
pub fn exit(code: u8) -> ! {
    // SAFETY: the system call does not return.
    unsafe {
        asm!("syscall", "ud2", in("rax") 231, in("rdi") u64::from(code), options(noreturn));
    }
}

/// What compiled code calls for bytes. On a target without an operating system Rust brings
/// them along; on Linux libc does, which is not linked here.
#[cfg(target_os = "linux")]
mod bytes {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller of `memcpy` says that the ranges are good; DF is clear (psABI).
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _,
                inout("rsi") from => _, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // SAFETY: going forward, no byte is overwritten before it is read.
            return unsafe { memcpy(to, from, len) };
        }
        // SAFETY: as `memcpy`, from the last byte to the first; `len` is not 0 here.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") len => _,
                inout("rdi") to.wrapping_add(len - 1) => _,
                inout("rsi") from.wrapping_add(len - 1) => _, options(nostack));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller of `memset` says that the range is good; DF is clear (psABI).
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _,
                in("al") byte as u8, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        let mut at = 0;
        while at < len {
            // SAFETY: `at` is below `len`, and the caller says that both ranges are good. The
            // volatile reads keep the compiler from making this loop a call of `memcmp`.
            let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
            at += 1;
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: the contract is the same.
        unsafe { memcmp(a, b, len) }
    }
}
