//! `fork`: a child gets what is emitted as its own, and goes on as its parent would.
//!
//! Text, tables and closures are private memory, which the kernel copies for a child. Emitted
//! code is not, as it is mapped twice: it is copied while nothing changes, and the child maps its
//! copy at the same addresses before `fork` returns there. Only then does the parent's next
//! change, or the child's, not reach the other.
//!
//! Children of `vfork` and `posix_spawn`, which end or call `exec` soon, and of the bare system
//! call, run no handlers: they can run what is attached, and change nothing.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use core::time::Duration;
use std::time::Instant;

use super::error::OpenError;
use super::shared::Shared;

/// What the handlers are about.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(core::ptr::null_mut());
/// Whether the thread that has the lock is forking, and could prepare for it.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// Sees to it that children which are forked from now on have their own.
pub(super) fn watch(shared: &'static Shared) -> Result<(), OpenError> {
    SHARED.store(core::ptr::from_ref(shared).cast_mut(), Ordering::Release);
    // SAFETY: the handlers are always there.
    match unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) } {
        0 => Ok(()),
        errno => Err(OpenError::Fork { errno }),
    }
}

fn shared() -> Option<&'static Shared> {
    // SAFETY: null, or what `watch` was given.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }
}

extern "C" fn before() {
    if shared().is_some_and(Shared::before_fork) {
        PREPARED.store(true, Ordering::Relaxed);
    }
}

/// Whether the calling thread has prepared. Another one that prepares waits for the lock that
/// this one has, or the other way round.
fn take_prepared(shared: &Shared) -> bool {
    shared.is_locked_here() && PREPARED.swap(false, Ordering::Relaxed)
}

extern "C" fn in_parent() {
    if let Some(shared) = shared()
        && take_prepared(shared)
    {
        // SAFETY: this thread has prepared.
        unsafe { shared.after_fork(false, true) };
    }
}

extern "C" fn in_child() {
    if let Some(shared) = shared() {
        let prepared = PREPARED.swap(false, Ordering::Relaxed);
        // SAFETY: the only thread of a child.
        unsafe { shared.after_fork(true, prepared) };
    }
    LOCKS.store(UNKNOWN, Ordering::Relaxed);
}

const USABLE: u8 = 0;
const UNKNOWN: u8 = 1;
const STUCK: u8 = 2;

/// Whether the locks of the loader and the unwinder can be had. The C libraries do not make them
/// usable in a child (glibc 2.36 and libgcc 12 do not): if another thread had one when the child
/// was forked, it has it for ever.
static LOCKS: AtomicU8 = AtomicU8::new(USABLE);

/// How often, and how long, a process is given to take the locks.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_millis(200);

/// Whether what is loaded can be listed in this process, and unwind tables registered.
pub(super) fn locks_are_usable() -> bool {
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
