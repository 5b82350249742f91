//! `SIGTRAP`, for the breakpoint protocol.
//!
//! While a batch is written, a thread that comes to one of its sites executes `int3`, and the
//! kernel sends it `SIGTRAP`. The handler asks the resolver how the thread goes on. A trap that
//! is none of ours goes to the handler that was there before, or does what it did before.

use core::ffi::{c_int, c_void};
use core::fmt;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use core::time::Duration;
use std::time::Instant;

use rustix::io::Errno;

use super::threads::{self, ThreadName, ThreadsError};
use crate::patch::{Resume, TrapResolver};

/// What the engine's batches are published in, and the handler asks.
pub(super) static TRAPS: TrapResolver = TrapResolver::new();

/// The earlier action.
static EARLIER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static EARLIER_FLAGS: AtomicI32 = AtomicI32::new(0);

/// How long a thread may block the signal: glibc does so while it starts or ends one.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(1);

/// Why the breakpoint protocol cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrapsError {
    /// A thread blocks `SIGTRAP`. It would be killed where it meets a breakpoint.
    Blocked {
        /// The thread.
        tid: i32,
        /// Its name.
        name: ThreadName,
    },
    /// `SIGTRAP` has another handler now.
    Taken,
    /// The handler cannot be installed.
    Handler {
        /// The kernel's answer.
        errno: Errno,
    },
    /// Threads cannot be listed.
    Threads(ThreadsError),
}

impl fmt::Display for TrapsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked { tid, name } => write!(
                f,
                "thread {tid} ({name}) blocks SIGTRAP, and a breakpoint would kill it: unblock \
                 the signal there, or open the process with Protocol::ShortJump"
            ),
            Self::Taken => f.write_str(
                "SIGTRAP has got another handler since the process was opened: install that one \
                 before, and it is called for traps that are not this library's",
            ),
            Self::Handler { errno } => write!(
                f,
                "no handler for SIGTRAP can be installed ({errno}): allow rt_sigaction in the \
                 seccomp filter, or open the process with Protocol::ShortJump"
            ),
            Self::Threads(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for TrapsError {}

/// Installs the handler, in front of the one that is there.
pub(super) fn install() -> Result<(), TrapsError> {
    let earlier = action()?;
    if earlier.sa_sigaction == handler() {
        return Ok(());
    }
    EARLIER.store(earlier.sa_sigaction, Ordering::Relaxed);
    EARLIER_FLAGS.store(earlier.sa_flags, Ordering::Release);
    // SAFETY: all zero bytes are a valid `sigaction`.
    let mut ours: libc::sigaction = unsafe { core::mem::zeroed() };
    ours.sa_sigaction = handler();
    // Not deferred: an earlier handler may call hooked functions. On the alternate stack where
    // there is one, because a thread's own may be a small one of a language runtime.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: a handler that is async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGTRAP, &raw const ours, null_mut()) } {
        0 => Ok(()),
        _ => Err(TrapsError::Handler { errno: last_error() }),
    }
}

/// Whether breakpoints can be written now: our handler is there, and no thread blocks the
/// signal.
pub(super) fn check() -> Result<(), TrapsError> {
    if action()?.sa_sigaction != handler() {
        return Err(TrapsError::Taken);
    }
    let deadline = Instant::now() + BLOCKED_PATIENCE;
    loop {
        let blocking = threads::blocking(libc::SIGTRAP).map_err(TrapsError::Threads)?;
        let Some((tid, name)) = blocking else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(TrapsError::Blocked { tid, name });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn handler() -> usize {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_trap;
    handler as *const () as usize
}

fn action() -> Result<libc::sigaction, TrapsError> {
    // SAFETY: all zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: only reads the action, into `action`.
    match unsafe { libc::sigaction(libc::SIGTRAP, core::ptr::null(), &raw mut action) } {
        0 => Ok(action),
        _ => Err(TrapsError::Handler { errno: last_error() }),
    }
}

fn last_error() -> Errno {
    // SAFETY: always valid for the calling thread.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Async-signal-safe: atomics, and reads of text.
extern "C" fn on_trap(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives both pointers, valid until the handler returns.
    let ours = unsafe { resume(&*info, &mut *context.cast()) };
    if !ours {
        chain(signal, info, context);
    }
}

/// Has the thread go on as the new instruction wants it, if it executed one of our `int3`s.
///
/// # Safety
/// `context` is the thread's, as a handler gets it.
unsafe fn resume(info: &libc::siginfo_t, context: &mut libc::ucontext_t) -> bool {
    // What the kernel says of `int3` (arch/x86/kernel/traps.c, `do_int3_user`).
    if info.si_code != libc::SI_KERNEL {
        return false;
    }
    let registers = &mut context.uc_mcontext.gregs;
    // Behind the `int3`, which is one byte.
    let site = registers[libc::REG_RIP as usize].cast_unsigned().wrapping_sub(1);
    let reread = || {
        let byte: u8;
        // SAFETY: the thread has just executed this byte, and a handler of a module that was
        // unloaded since has no caller. In assembly, because other threads store to text.
        unsafe {
            core::arch::asm!(
                "mov {byte}, byte ptr [{site}]",
                byte = out(reg_byte) byte,
                site = in(reg) site,
                options(nostack, preserves_flags, readonly),
            );
        }
        byte
    };
    let target = match TRAPS.resolve(site, reread) {
        Resume::At(target) => target,
        Resume::Retry => site,
        Resume::Call { target, return_to } => {
            let stack = &mut registers[libc::REG_RSP as usize];
            *stack = stack.wrapping_sub(8);
            let top = core::ptr::with_exposed_provenance_mut::<u64>(*stack as usize);
            // SAFETY: the thread is at a function's entry, where a call may push, as it would
            // have done itself; nothing is kept below the stack pointer there.
            unsafe { top.write_volatile(return_to) };
            target
        }
        Resume::NotOurs => return false,
    };
    registers[libc::REG_RIP as usize] = target.cast_signed();
    true
}

/// Does with a trap what was done before.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let flags = EARLIER_FLAGS.load(Ordering::Acquire);
    // SAFETY: valid until the handler returns.
    let sent = unsafe { (*info).si_code } <= 0;
    match EARLIER.load(Ordering::Relaxed) {
        libc::SIG_IGN if sent => {}
        // The kernel does not let a trap be ignored.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action ends the process, here, as it would have before.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        earlier if flags & libc::SA_SIGINFO != 0 => {
            type Earlier = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: it was installed with this type.
            let earlier: Earlier = unsafe { core::mem::transmute(earlier) };
            earlier(signal, info, context);
        }
        earlier => {
            // SAFETY: it was installed with this type.
            let earlier: extern "C" fn(c_int) = unsafe { core::mem::transmute(earlier) };
            earlier(signal);
        }
    }
}
