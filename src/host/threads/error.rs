//! Why threads could not be inspected.

use core::fmt;

use rustix::io::Errno;

use super::{Seen, ThreadName};

/// Why threads could not be inspected. Every thread goes on where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadsError {
    /// A thread blocks the signal, and every other that could be used.
    Blocked {
        /// The thread.
        tid: i32,
        /// Its name.
        name: ThreadName,
        /// The signal's number.
        signal: i32,
    },
    /// A thread runs, blocks every signal that could be used, and cannot be traced.
    Untraceable {
        /// The thread.
        tid: i32,
        /// Its name.
        name: ThreadName,
        /// The answer of ptrace(2), or of clone(2) for the process that traces.
        errno: Errno,
    },
    /// A thread does not block the signal and does not take it either.
    Unresponsive {
        /// The thread.
        tid: i32,
        /// Its name.
        name: ThreadName,
        /// Its state, a letter of proc(5): `D` waits in the kernel, `T` and `t` are stopped.
        state: char,
    },
    /// The judge refused a thread, or moved the calling one.
    Refused {
        /// What it saw.
        seen: Seen,
    },
    /// A thread's stack pointer is in no readable memory.
    NoStack {
        /// The thread.
        tid: i32,
        /// Its stack pointer.
        stack: u64,
    },
    /// Threads start and end too fast for a moment to be found at which all are held.
    Restless {
        /// Threads asked until then.
        started: usize,
    },
    /// More threads started than were counted before.
    TooMany {
        /// How many there was room for.
        capacity: usize,
    },
    /// Every real-time signal has a handler, or no one is unblocked in all threads.
    NoSignal,
    /// The signal cannot be sent.
    Signal {
        /// To which thread.
        tid: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// `/proc/self` cannot be read, or is another process's (`ESRCH`).
    Proc {
        /// The kernel's answer.
        errno: Errno,
    },
    /// Called by the judge or the action of an inspection.
    Nested,
    /// The watched ranges are not sorted, or have addresses in common.
    Unsorted {
        /// The start of the range that is out of order.
        at: u64,
    },
}

impl fmt::Display for ThreadsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked { tid, name, signal } => write!(
                f,
                "thread {tid} ({name}) blocks signal {signal}, so it cannot be held: prepare \
                 before starting threads, or unblock SIGRTMIN+{} in it",
                signal - libc::SIGRTMIN(),
            ),
            Self::Untraceable { tid, name, errno } => write!(
                f,
                "thread {tid} ({name}) runs and blocks every signal, and ptrace(2) refuses it \
                 ({errno}): unblock a real-time signal in it, detach its debugger, or allow \
                 tracing (seccomp filter; where kernel.yama.ptrace_scope is 1, \
                 prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY))",
            ),
            Self::Unresponsive { tid, name, state } => write!(
                f,
                "thread {tid} ({name}, state {state}) does not react to a signal: let it come \
                 out of its system call or continue it if it is stopped, then try again",
            ),
            Self::Refused { seen } => {
                write!(f, "thread {} is not outside the watched code: ", seen.tid)?;
                if let (Some(address), Some(range)) = (seen.instruction, &seen.inside) {
                    write!(f, "it executes {address:#x} in {:#x}..{:#x}", range.start, range.end)?;
                } else if let Some(word) = &seen.on_stack {
                    let (start, end) = (word.range.start, word.range.end);
                    write!(f, "its stack has {:#x} in {start:#x}..{end:#x}", word.value)?;
                } else if seen.alternate_stack {
                    f.write_str("it is in a signal handler on an alternate stack")?;
                } else {
                    f.write_str("the judge refused it")?;
                }
                f.write_str("; try again when it has gone on")
            }
            Self::NoStack { tid, stack } => write!(
                f,
                "the stack pointer {stack:#x} of thread {tid} is in no readable memory, so \
                 where it will return to is not known; try again",
            ),
            Self::Restless { started } => {
                write!(f, "threads start and end too fast to be held ({started} asked); try again",)
            }
            Self::TooMany { capacity } => {
                write!(f, "more than {capacity} threads started meanwhile; try again")
            }
            Self::NoSignal => f.write_str(
                "no real-time signal is free: one from SIGRTMIN to SIGRTMAX must have its \
                 default action and be unblocked in every thread",
            ),
            Self::Signal { tid, errno } => write!(
                f,
                "thread {tid} cannot be signalled ({errno}): allow rt_tgsigqueueinfo (297) in \
                 the seccomp filter; for EAGAIN raise RLIMIT_SIGPENDING",
            ),
            Self::Proc { errno } => write!(
                f,
                "/proc/self does not list this process's threads ({errno}): mount the /proc of \
                 its pid namespace",
            ),
            Self::Nested => f.write_str(
                "an inspection cannot be made from within another: act after it has returned",
            ),
            Self::Unsorted { at } => {
                write!(f, "the watched range at {at:#x} is out of order: sort and merge them")
            }
        }
    }
}

impl core::error::Error for ThreadsError {}
