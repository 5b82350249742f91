//! Whether the locks of the loader and the unwinder can be had, which in a forked child they may
//! never be.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU8, Ordering};
use core::time::Duration;
use std::time::Instant;

const USABLE: u8 = 0;
const UNKNOWN: u8 = 1;
const STUCK: u8 = 2;

/// Whether the locks of the loader and the unwinder can be had. The C libraries do not make them
/// usable in a child (glibc 2.36 and libgcc 12 do not): if another thread had one when the child
/// was forked, it has it for ever.
static LOCKS: AtomicU8 = AtomicU8::new(USABLE);

/// In a forked child: what was known of its parent is not known of it.
pub(super) fn ask_again() {
    LOCKS.store(UNKNOWN, Ordering::Relaxed);
}

/// How often, and how long, a process is given to take the locks.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_millis(200);

/// Whether what is loaded can be listed in this process, and unwind tables registered.
pub(super) fn are_usable() -> bool {
    if LOCKS.load(Ordering::Relaxed) == UNKNOWN {
        // Another thread of this process may have one for a moment.
        let usable = (0..TRIES).any(|_| another_can_take_them());
        LOCKS.store(if usable { USABLE } else { STUCK }, Ordering::Relaxed);
    }
    LOCKS.load(Ordering::Relaxed) == USABLE
}

unsafe extern "C" {
    /// Looks for the unwind table of an address, first among those that were registered (gcc,
    /// `libgcc/unwind-dw2-fde.h`).
    fn _Unwind_Find_FDE(address: *const c_void, bases: *mut [usize; 3]) -> *const c_void;
}

/// Whether a child of this process can take the locks, as a copy of this one would.
fn another_can_take_them() -> bool {
    extern "C" fn ignore(_: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
        1
    }
    let (none, mut status, mut bases) = (core::ptr::null_mut(), 0, [0; 3]);
    // SAFETY: the child does nothing but take the locks and end; where it waits for ever, it is
    // killed. The bare system call runs no handlers.
    unsafe {
        let child = libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as i32;
        if child == 0 {
            libc::dl_iterate_phdr(Some(ignore), none);
            _Unwind_Find_FDE(none, &raw mut bases);
            libc::_exit(0);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut ended = 0;
        while child > 0 && ended == 0 && Instant::now() < deadline {
            ended = libc::waitpid(child, &raw mut status, libc::__WCLONE | libc::WNOHANG);
            std::thread::sleep(Duration::from_micros(100));
        }
        if child > 0 && ended == 0 {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &raw mut status, libc::__WCLONE);
        }
        ended == child && status == 0
    }
}
