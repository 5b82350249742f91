//! Looking at a thread that runs and blocks every signal: by `ptrace(2)`.
//!
//! A thread cannot trace another one of its own process, so a helper process does, which lives
//! for one look. It shares this process's memory, and the thread that made it waits for its end
//! (`CLONE_VM | CLONE_VFORK`, as `posix_spawn` does). The thread that is looked at stands still
//! for some microseconds; it gets no signal.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use std::vec::Vec;

use rustix::io::Errno;

use super::signal::Question;

/// What the helper found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It was seen.
    Seen {
        /// Whether it is outside of what is watched.
        outside: bool,
    },
    /// It did not stop in time.
    Late,
    /// It cannot be traced.
    Refused(Errno),
}

/// What the helper is to do.
struct Task<'a> {
    tid: i32,
    question: &'a Question,
    finding: Finding,
}

/// Bytes of the helper's stack.
const STACK: usize = 64 << 10;
/// How often the helper asks whether the thread has stopped, 50 microseconds apart.
const TRIES: usize = 400;

/// Looks at thread `tid` of this process, which is not the calling one.
pub(super) fn look(tid: i32, question: &Question) -> Finding {
    let mut task = Task { tid, question, finding: Finding::Late };
    let mut stack: Vec<u128> = std::vec![0; STACK / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    // SAFETY: the helper has a stack of its own, and shares everything else with the calling
    // thread, which does not run before the helper has ended, and whose task it alone uses. All
    // signals are blocked meanwhile, so that no handler runs in the helper. It has no exit
    // signal, so that nobody is told of its end but by `waitpid` with `__WCLONE`.
    unsafe {
        let mut all = core::mem::zeroed();
        let mut before = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        let top = stack.as_mut_ptr_range().end;
        let helper = libc::clone(help, top.cast(), flags, (&raw mut task).cast());
        if helper < 0 {
            task.finding = Finding::Refused(last_error());
        } else {
            while libc::waitpid(helper, null_mut(), libc::__WCLONE) < 0
                && last_error() == Errno::INTR
            {}
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
    }
    task.finding
}

/// What the helper runs. Nothing but system calls and reads: the other threads go on, and may
/// have any lock.
extern "C" fn help(task: *mut c_void) -> c_int {
    // SAFETY: `look`'s, which waits.
    let task = unsafe { &mut *task.cast::<Task<'_>>() };
    task.finding = trace(task).unwrap_or_else(Finding::Refused);
    // The thread goes on when its tracer has ended, if it has not before.
    0
}

fn trace(task: &Task<'_>) -> Result<Finding, Errno> {
    request(libc::PTRACE_SEIZE, task.tid, null_mut())?;
    request(libc::PTRACE_INTERRUPT, task.tid, null_mut())?;
    let Some(status) = stopped(task.tid)? else { return Ok(Finding::Late) };
    // SAFETY: all zero bytes are a valid value, which is integers.
    let mut registers: libc::user_regs_struct = unsafe { core::mem::zeroed() };
    request(libc::PTRACE_GETREGS, task.tid, (&raw mut registers).cast())?;
    // What cannot be read now is looked at again.
    let outside = task.question.is_outside(registers.rip, registers.rsp) == Ok(true);
    // A signal that stopped it instead is handed on; the stop that was asked for is none.
    let asked = status >> 16 == libc::PTRACE_EVENT_STOP;
    let signal = if asked { 0 } else { libc::WSTOPSIG(status) };
    request(libc::PTRACE_DETACH, task.tid, core::ptr::without_provenance_mut(signal as usize))?;
    Ok(Finding::Seen { outside })
}

/// Waits until the thread has stopped; `None` if it does not.
fn stopped(tid: i32) -> Result<Option<c_int>, Errno> {
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
    for _ in 0..TRIES {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
            0 => {
                // SAFETY: sleeps.
                unsafe { libc::nanosleep(&raw const pause, null_mut()) };
            }
            found if found == tid && libc::WIFSTOPPED(status) => return Ok(Some(status)),
            found if found == tid => return Err(Errno::SRCH),
            _ => return Err(last_error()),
        }
    }
    Ok(None)
}

fn request(request: libc::c_uint, tid: i32, data: *mut c_void) -> Result<(), Errno> {
    // SAFETY: the requests above either take a number for data or write to what it points to,
    // which is large enough. None changes the thread but in that it stops and goes on.
    let result = unsafe { libc::ptrace(request, tid, null_mut::<c_void>(), data) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    // SAFETY: always valid for the calling thread.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
