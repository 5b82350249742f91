//! The checked stop of every thread.
#![cfg(all(feature = "std", target_os = "linux"))]

mod held;
mod seen;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A test that has a thread which cannot be held would fail the others.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

fn wait_for(what: impl Fn() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

/// Every real-time signal's action, to see that it is restored.
fn actions() -> Vec<usize> {
    (libc::SIGRTMIN()..=libc::SIGRTMAX())
        .map(|signal| {
            // SAFETY: all zero bytes are a valid `sigaction`, which is only read into.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                assert_eq!(libc::sigaction(signal, core::ptr::null(), &raw mut action), 0);
                action.sa_sigaction
            }
        })
        .collect()
}

/// Calls the function when it is dropped: a test that fails must let its threads end, which
/// the scope waits for.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
