//! Where threads are: a checked stop of all, and surveys of one after the other.
//!
//! It is needed where core synchronisation is not enough, because what matters is where threads
//! *are*. Before five one-byte nops become one instruction, no thread may be between two of them,
//! at one moment, and those that are must be moved: that takes a stop, [`inspect_then`]. Before
//! emitted code is freed that no thread enters any more, each must have been seen outside once:
//! that takes no stop, and works for threads that cannot be stopped by a signal (`survey`).
//!
//! # Why a survey looks, and nobody counts
//! Bodies could count who is inside, in a word of each thread (`inc` and `dec` at an offset of
//! `fs`). Measured around the least that a body does, that took a call from 3.7 to 4.1 ns, and it
//! does not see a thread before the first instruction or behind the last. Looking costs calls
//! nothing. Measured on the same virtual machine (two cores of an AMD EPYC, Linux 6.18, November
//! 2026), the least of 100 calls of `Process::synchronize`: 83 us with no other thread, 43 us more
//! for each that sleeps, 90 us more for one that runs, 270 us more for one that runs and blocks
//! every signal. On a busy machine, a thread that waits for a core answers when it gets one.
//!
//! The rest of this page is about the stop.
//!
//! # How
//! Each other thread is sent a real-time signal that nobody uses, and waits in its handler.
//! The list of threads is read again until as many are held as the kernel counts: then no
//! thread is left that could start another. The inspector now reads the stacks of all of
//! them, asks the judge about each, and lets them go, moved where the judge said so.
//!
//! # What is promised
//! When [`inspect_then`] calls its last argument, every thread of this process but the
//! calling one is in the handler, and for each, and for the calling one, the judge has seen:
//! - whether its instruction pointer is in a watched range (of the calling thread: not, it
//!   is in this module);
//! - whether a word on its stack, from where it was interrupted to the end of the mapping,
//!   points strictly inside one: a return address, or the instruction pointer in the saved
//!   context of a signal handler that it is in. Words are not understood, so a stale or a
//!   chance one counts too; a pointer to a range's very start does not.
//!
//! # What is not
//! - Stacks that no thread is *on* are not looked at: those of suspended coroutines, and the
//!   ordinary stack of a thread that was interrupted on its alternate signal stack, which
//!   [`Seen::alternate_stack`] tells (not where it was set up with `SS_AUTODISARM`).
//! - Registers other than instruction and stack pointer are not looked at.
//! - Processes that share the address space without being threads (`vfork` and `posix_spawn`
//!   children until `execve`) are not seen. The thread that made one is held only afterwards.
//! - Held threads execute nothing serialising by being held: synchronise cores as ever.
//!
//! # What it costs others
//! Every thread has to be scheduled once: tens of microseconds where cores are free, some
//! milliseconds where more threads run than there are cores. Where one does not answer, holds
//! of 10 ms, 20 ms and so on, with all threads running in between, for 2 s until the error.
//! System calls that `SA_RESTART` does not
//! restart (signal(7): `poll`, `epoll_wait`, `nanosleep`, ...) return `EINTR` in other
//! threads, as with any signal.
//!
//! # What the judge and the action may do
//! Other threads are held wherever they were, maybe inside the allocator or with a lock.
//! Whoever allocates, frees, prints, locks or panics now may wait for a held thread for ever.

mod error;
mod gather;
mod helper;
mod list;
mod signal;
mod stacks;
mod survey;

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

pub use error::ThreadsError;
pub use list::ThreadName;
pub(super) use list::has_left;
pub(super) use survey::{Deaf, Survey};

use gather::{FIRST_HOLD, Gathered, Known, PATIENCE, Standing, choose_signal, gather, own_tid};
use signal::Hold;

/// One thread, as the judge sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its thread id.
    pub tid: i32,
    /// The instruction it executes next; `None` for the calling thread.
    pub instruction: Option<u64>,
    /// Its stack pointer.
    pub stack: u64,
    /// The watched range that [`instruction`](Self::instruction) is in, its start included.
    pub inside: Option<Range<u64>>,
    /// The word nearest to the top of its stack that points strictly inside a watched range.
    pub on_stack: Option<StackWord>,
    /// Whether it is on its alternate signal stack. Its ordinary stack has not been looked at.
    pub alternate_stack: bool,
}

impl Seen {
    /// Whether nothing says that the thread is in a watched range, or will return to one.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.inside.is_none() && self.on_stack.is_none() && !self.alternate_stack
    }
}

/// A word on a stack that points into a watched range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackWord {
    /// Where the word is.
    pub at: u64,
    /// The word.
    pub value: u64,
    /// The range.
    pub range: Range<u64>,
}

/// What becomes of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(Decision);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Leave,
    Move(u64),
    Refuse,
}

impl Verdict {
    /// It goes on where it is.
    pub const LEAVE: Self = Self(Decision::Leave);
    /// The inspection fails with [`ThreadsError::Refused`]; all threads go on where they are.
    pub const REFUSE: Self = Self(Decision::Refuse);

    /// It goes on at `address`, if no thread is refused. The calling thread cannot be moved.
    ///
    /// # Safety
    /// Continuing there with the same registers and stack is right for the program, as it is
    /// behind instructions that do nothing.
    #[must_use]
    pub const unsafe fn move_to(address: u64) -> Self {
        Self(Decision::Move(address))
    }
}

/// What an inspection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Threads judged, the calling one included.
    pub threads: usize,
    /// Threads moved.
    pub moved: usize,
}

/// How many threads this process has. Threads of the kernel's io_uring count.
///
/// # Errors
/// [`ThreadsError::Proc`] where `/proc` cannot be read.
pub fn thread_count() -> Result<usize, ThreadsError> {
    list::count().map_err(|errno| ThreadsError::Proc { errno })
}

/// Holds every other thread and has `judge` look at each, and at the calling one.
///
/// `watched` is sorted, its ranges apart from each other. For a patch site, watch the site:
/// a thread at its start is seen [`inside`](Seen::inside), and is fine there.
///
/// # Errors
/// See [`ThreadsError`]. Every thread goes on where it was.
pub fn inspect(
    watched: &[Range<u64>],
    judge: impl Fn(&Seen) -> Verdict,
) -> Result<Summary, ThreadsError> {
    inspect_then(watched, judge, || ()).map(|(summary, ())| summary)
}

/// A thread that blocks `signal`, if there is one, and its name. Threads of the kernel's do not
/// count.
pub(super) fn blocking(signal: i32) -> Result<Option<(i32, ThreadName)>, ThreadsError> {
    let mut found = None;
    list::for_each(|tid| {
        if found.is_none()
            && let Some(status) = list::Status::of(tid)
            && status.blocks(signal)
            && !status.has_ended()
            && !list::is_kernel_worker(tid)
        {
            found = Some((tid, status.name));
        }
    })
    .map_err(|errno| ThreadsError::Proc { errno })?;
    Ok(found)
}

/// Whether this is the calling thread's id.
pub(super) fn is_own(tid: i32) -> bool {
    tid == own_tid()
}

/// Where the calling function's frame ends.
#[inline(always)]
pub(super) fn stack_pointer() -> u64 {
    let stack: u64;
    // SAFETY: copies a register.
    unsafe {
        core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags));
    }
    stack
}

/// As [`inspect`], and calls `act` once while the threads are still held, unless one was
/// refused. What `act` captured is dropped when they have gone on.
///
/// # Errors
/// See [`ThreadsError`]. Then `act` was not called, and every thread goes on where it was.
pub fn inspect_then<R>(
    watched: &[Range<u64>],
    judge: impl Fn(&Seen) -> Verdict,
    act: impl FnMut() -> R,
) -> Result<(Summary, R), ThreadsError> {
    inspect_from(0, watched, judge, act)
}

/// As [`inspect`], with only a part of the calling thread's own stack looked at: from the
/// address `own_from` on, which is where a caller of this library had it. Below are frames of
/// this library, which hold addresses of patch sites without returning to them.
pub(super) fn inspect_callers(
    own_from: u64,
    watched: &[Range<u64>],
    judge: impl Fn(&Seen) -> Verdict,
) -> Result<Summary, ThreadsError> {
    inspect_from(own_from, watched, judge, || ()).map(|(summary, ())| summary)
}

fn inspect_from<R>(
    own_from: u64,
    watched: &[Range<u64>],
    judge: impl Fn(&Seen) -> Verdict,
    mut act: impl FnMut() -> R,
) -> Result<(Summary, R), ThreadsError> {
    for pair in watched.windows(2) {
        if let [first, second] = pair
            && first.end > second.start
        {
            return Err(ThreadsError::Unsorted { at: second.start });
        }
    }
    let _turn = Turn::take()?;
    let count = thread_count()?;
    if count == 1 {
        // Nobody is left who could start another thread.
        let mut own = [Known::own()];
        own[0].look_from(own_from);
        let summary = judge_all(&mut own, None, watched, &judge)?;
        return Ok((summary, act()));
    }
    let mut capacity = count * 2 + 64;
    let mut patience = FIRST_HOLD;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Before `hold`, so that it is freed after it: from the first signal on, until `hold`
        // is dropped, nothing here allocates or frees.
        let mut known = Vec::with_capacity(capacity + 1);
        let hold = Hold::new(choose_signal()?, capacity, None)
            .map_err(|errno| ThreadsError::Signal { tid: own_tid(), errno })?;
        let error = match gather(&hold, &mut known, Instant::now() + patience)? {
            Gathered::All => {
                known.iter_mut().for_each(|thread| thread.look_from(own_from));
                let summary = judge_all(&mut known, Some(&hold), watched, &judge)?;
                for (index, thread) in known.iter().enumerate() {
                    if let (Decision::Move(to), Some(slot)) = (thread.decision, hold.slot(index)) {
                        slot.move_to(to);
                    }
                }
                return Ok((summary, act()));
            }
            Gathered::Crowded => {
                let error = ThreadsError::TooMany { capacity };
                capacity *= 4;
                error
            }
            Gathered::Late(error) => {
                patience *= 2;
                error
            }
        };
        drop(hold);
        if Instant::now() > deadline {
            return Err(error);
        }
        // So that whoever waits for a thread that was held gets its turn.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Looks at every thread held, and at the calling one. Allocates nothing.
fn judge_all(
    known: &mut [Known],
    hold: Option<&Hold>,
    watched: &[Range<u64>],
    judge: &impl Fn(&Seen) -> Verdict,
) -> Result<Summary, ThreadsError> {
    let answer = |index| hold.and_then(|hold| hold.slot(index)).map(signal::Slot::answer);
    for (index, thread) in known.iter_mut().enumerate() {
        if thread.standing == Standing::Held {
            thread.stack_pointer = answer(index).map_or(0, |(_, stack, _)| stack);
        }
    }
    find_stacks(known)?;
    let mut summary = Summary::default();
    for (index, thread) in known.iter_mut().enumerate() {
        let (instruction, alternate_stack) = match thread.standing {
            Standing::Own => (None, signal::on_alternate_stack()),
            Standing::Held => {
                let Some((instruction, _, alternate)) = answer(index) else {
                    continue;
                };
                (Some(instruction), alternate)
            }
            Standing::Pending | Standing::Inert | Standing::Gone => continue,
        };
        if thread.stack.is_empty() {
            return Err(ThreadsError::NoStack { tid: thread.tid, stack: thread.stack_pointer });
        }
        let at = instruction.and_then(|address| stacks::containing(watched, address));
        let seen = Seen {
            tid: thread.tid,
            instruction,
            stack: thread.stack_pointer,
            inside: at.cloned(),
            // SAFETY: the stack of a held thread, which cannot unmap it, or of the calling one.
            on_stack: unsafe { stacks::scan(&thread.stack, watched) },
            alternate_stack,
        };
        thread.decision = judge(&seen).0;
        summary.threads += 1;
        match thread.decision {
            Decision::Leave => {}
            Decision::Move(_) if thread.standing == Standing::Held => summary.moved += 1,
            Decision::Move(_) | Decision::Refuse => return Err(ThreadsError::Refused { seen }),
        }
    }
    Ok(summary)
}

/// Finds the mapping each stack pointer is in. The threads are held, so none changes.
fn find_stacks(known: &mut [Known]) -> Result<(), ThreadsError> {
    stacks::for_each(|stack| {
        for thread in known.iter_mut() {
            if let Some(stack) = stack.above(thread.stack_pointer) {
                thread.stack = stack;
            }
        }
    })
    .map_err(|errno| ThreadsError::Proc { errno })
}

/// One inspection at a time: process id and thread id of who has it, or 0.
static TURN: AtomicU64 = AtomicU64::new(0);

struct Turn;

impl Turn {
    /// Not a mutex of `std`: a child forked while another thread had it must get it too.
    fn take() -> Result<Self, ThreadsError> {
        let pid = std::process::id();
        let tid = own_tid().cast_unsigned();
        let mine = u64::from(pid) << 32 | u64::from(tid);
        loop {
            match TURN.compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(Self),
                Err(other) if other == mine => return Err(ThreadsError::Nested),
                Err(other) if (other >> 32) as u32 != pid => {
                    let taken =
                        TURN.compare_exchange(other, mine, Ordering::Acquire, Ordering::Relaxed);
                    if taken.is_ok() {
                        signal::forget_parent();
                        return Ok(Self);
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.store(0, Ordering::Release);
    }
}
