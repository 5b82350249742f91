//! Whether the loader answers, which it may not in a forked child.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU8, Ordering};
use core::time::Duration;
use std::time::Instant;

const USABLE: u8 = 0;
const UNKNOWN: u8 = 1;
const STUCK: u8 = 2;

/// Whether the loader's lock can be had. The C library does not make it usable in a child (glibc
/// 2.36 does not): if another thread had it when the child was forked, it has it for ever.
static LOADER: AtomicU8 = AtomicU8::new(USABLE);

/// In a forked child: what was known of its parent is not known of it.
pub(super) fn ask_again() {
    LOADER.store(UNKNOWN, Ordering::Relaxed);
}

/// How often, and how long, a process is given to take the lock.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_millis(200);

/// Whether what is loaded can be listed in this process.
pub(super) fn is_usable() -> bool {
    if LOADER.load(Ordering::Relaxed) == UNKNOWN {
        // Another thread of this process may have the lock for a moment.
        let usable = (0..TRIES).any(|_| another_can_list());
        LOADER.store(if usable { USABLE } else { STUCK }, Ordering::Relaxed);
    }
    LOADER.load(Ordering::Relaxed) == USABLE
}

/// Whether a child of this process can take the loader's lock, as a copy of this one would.
fn another_can_list() -> bool {
    extern "C" fn ignore(_: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
        1
    }
    let (none, mut status) = (core::ptr::null_mut(), 0);
    // SAFETY: the child does nothing but take the lock and end; where it waits for ever, it is
    // killed. The bare system call runs no handlers.
    unsafe {
        let child = libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as i32;
        if child == 0 {
            libc::dl_iterate_phdr(Some(ignore), none);
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
