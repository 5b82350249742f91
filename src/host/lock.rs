//! A lock that knows its owner, so that who has it cannot wait for itself.

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;

/// Why something cannot be done here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The calling thread is in the middle of another operation: this is a program, or a signal
    /// handler, that interrupts it.
    Nested,
    /// This process was forked where it could not get its own copy of what is emitted.
    Forked {
        /// The process that has it.
        owner: u32,
    },
    /// This process was forked while another thread of its parent was loading or unloading a
    /// library, or unwinding its stack, so that what is loaded cannot be listed.
    Loader,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested => f.write_str(
                "this thread is in the middle of attaching, detaching or synchronizing, and a \
                 program or signal handler interrupts that: do it on another thread, or later",
            ),
            Self::Forked { owner } => write!(
                f,
                "the hooks are those of process {owner}, of which this is a child that was forked \
                 without fork(3), in the middle of an operation, or without memory: call exec, or \
                 do it in the parent"
            ),
            Self::Loader => f.write_str(
                "what is loaded cannot be listed, because another thread was loading a library or \
                 unwinding when this process was forked: find functions before, or call exec",
            ),
        }
    }
}

impl core::error::Error for Unavailable {}

/// Somebody waits.
const WAITERS: u32 = 1 << 31;

/// A value that one thread has at a time.
pub(super) struct Lock<T> {
    /// The thread id of who has it, or 0; and whether somebody waits. One word, so that a
    /// signal handler finds either nobody or its own thread in it, whenever it comes.
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: one thread has the value at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for it. [`Unavailable::Nested`] if the calling thread has it.
    pub fn lock(&self) -> Result<Guard<'_, T>, Unavailable> {
        let own = own_tid();
        // Who has waited cannot know whether others still do.
        let mut mine = own;
        loop {
            let word =
                match self.word.compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return Ok(Guard(self, PhantomData)),
                    Err(word) => word,
                };
            if word & !WAITERS == own {
                return Err(Unavailable::Nested);
            }
            let waiting = word | WAITERS;
            if word == waiting
                || self
                    .word
                    .compare_exchange(word, waiting, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                mine = own | WAITERS;
                let _ = futex::wait(&self.word, futex::Flags::PRIVATE, waiting, None);
            }
        }
    }

    /// Whether the calling thread has it.
    pub fn is_own(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !WAITERS == own_tid()
    }

    /// Gives back what a [`Guard`] that was forgotten had.
    ///
    /// # Safety
    /// The calling thread has it, by such a guard; or it is the only one of a forked child, and
    /// who had it is in the parent.
    pub unsafe fn release(&self) {
        if self.word.swap(0, Ordering::Release) & WAITERS != 0 {
            let _ = futex::wake(&self.word, futex::Flags::PRIVATE, 1);
        }
    }

    /// The value.
    ///
    /// # Safety
    /// The calling thread has it, and no other reference to it is used meanwhile.
    #[expect(clippy::mut_from_ref, reason = "as a guard does")]
    pub unsafe fn get(&self) -> &mut T {
        // SAFETY: contract.
        unsafe { &mut *self.value.get() }
    }
}

fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// The value, until it is dropped, on the thread that has it. A panic meanwhile does not poison
/// it.
pub(super) struct Guard<'a, T>(&'a Lock<T>, PhantomData<*const ()>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread has it while this exists.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread has it while this exists, of which there is one.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread has it.
        unsafe { self.0.release() };
    }
}
