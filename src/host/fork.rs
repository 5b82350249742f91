//! `fork`: a child gets what is emitted as its own, and goes on as its parent would.
//!
//! Text, tables and closures are private memory, which the kernel copies for a child. Emitted
//! code is not, as it is mapped twice: it is copied while nothing changes, and the child maps its
//! copy at the same addresses before `fork` returns there. Only then does the parent's next
//! change, or the child's, not reach the other.
//!
//! Children of `vfork` and `posix_spawn`, which end or call `exec` soon, and of the bare system
//! call, run no handlers: they can run what is attached, and change nothing.

use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::error::OpenError;
use super::locks;
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
    locks::ask_again();
}
