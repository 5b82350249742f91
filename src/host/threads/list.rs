//! The threads of this process, as `/proc/self/task` lists them. Allocates nothing and takes
//! no lock: every other thread may be held meanwhile.

use core::ffi::CStr;
use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use core::ops::ControlFlow;
use core::str::FromStr;
use std::vec::Vec;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::host::lines;

/// `PF_IO_WORKER` (include/linux/sched.h): a thread of the kernel's io_uring, which is
/// listed with the process's threads since Linux 5.12 and never runs its text.
const PF_IO_WORKER: u64 = 0x10;
/// `PF_EXITING`: it ends, and has been in user space for the last time. Set before who waits for
/// the thread's end is told (kernel/exit.c, `do_exit`).
const PF_EXITING: u64 = 0x4;

/// How files of `/proc` are opened.
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Calls `visit` with the thread ids, the calling thread's included. Threads that start or
/// end meanwhile may be missing, and when one ends others may be too.
pub(super) fn for_each(mut visit: impl FnMut(i32)) -> Result<(), Errno> {
    let flags = OPEN.union(OFlags::DIRECTORY);
    let directory = rustix::fs::open(c"/proc/self/task", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) => {
                if let Some(tid) = number(entry.file_name().to_bytes()) {
                    visit(tid);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Appends the thread ids of every thread that existed at one moment during the call.
/// `Ok(false)` where threads start and end too fast for such a moment to be found.
pub(super) fn all(tids: &mut Vec<i32>) -> Result<bool, Errno> {
    for _ in 0..TRIES {
        tids.clear();
        for_each(|tid| tids.push(tid))?;
        // Whoever was listed and still exists existed when the kernel counted; if it counted no
        // more, nobody was missed. A thread id is not given again before all others have been.
        if count()? == tids.len() && tids.iter().all(|&tid| exists(tid)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How often [`all`] lists.
const TRIES: usize = 1000;

fn exists(tid: i32) -> bool {
    // SAFETY: no signal is sent.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) == 0 }
}

/// How many threads the kernel counts.
pub(super) fn count() -> Result<usize, Errno> {
    let mut count = None;
    lines::for_each(c"/proc/self/status", |line| match line.strip_prefix(b"Threads:") {
        Some(value) => {
            count = number(value);
            ControlFlow::Break(())
        }
        None => ControlFlow::Continue(()),
    })?;
    count.ok_or(Errno::ILSEQ)
}

/// A thread's name (15 bytes at most), as `/proc` writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ThreadName {
    bytes: [u8; 64],
    len: usize,
}

impl ThreadName {
    pub(super) fn unknown() -> Self {
        Self::new(b"?")
    }

    fn new(name: &[u8]) -> Self {
        let mut bytes = [0; 64];
        let len = name.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(name) {
            *to = *from;
        }
        Self { bytes, len }
    }
}

impl fmt::Display for ThreadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.get(..self.len).unwrap_or_default().utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ThreadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What `/proc/self/task/T/status` says of a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) name: ThreadName,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, as proc(5) lists them.
    pub(super) state: u8,
    /// Bit `n - 1` for signal `n`.
    pub(super) blocked: u64,
    /// How often it has left a core, on its own or not.
    pub(super) switches: u64,
    /// Whether another process traces it, as debuggers do.
    pub(super) traced: bool,
}

impl Status {
    /// `None` where there is no such thread (any more).
    pub(super) fn of(tid: i32) -> Option<Self> {
        let name = ThreadName::unknown();
        let mut status = Self { name, state: 0, blocked: 0, switches: 0, traced: false };
        let mut complete = false;
        lines::for_each(Path::new(tid, "status").path()?, |line| {
            if let Some(name) = line.strip_prefix(b"Name:\t") {
                status.name = ThreadName::new(name);
            } else if let Some(state) = line.strip_prefix(b"State:\t") {
                status.state = state.first().copied().unwrap_or(0);
            } else if let Some(tracer) = line.strip_prefix(b"TracerPid:") {
                status.traced = number::<u64>(tracer) != Some(0);
            } else if let Some(mask) = line.strip_prefix(b"SigBlk:\t") {
                status.blocked = core::str::from_utf8(mask)
                    .ok()
                    .and_then(|mask| u64::from_str_radix(mask, 16).ok())
                    .unwrap_or(0);
            } else if let Some(count) = line.strip_prefix(b"voluntary_ctxt_switches:") {
                status.switches += number::<u64>(count).unwrap_or(0);
            } else if let Some(count) = line.strip_prefix(b"nonvoluntary_ctxt_switches:") {
                status.switches += number::<u64>(count).unwrap_or(0);
                complete = true;
            }
            ControlFlow::Continue(())
        })
        .ok()?;
        complete.then_some(status)
    }

    /// Whether it has ended for good, though still listed: the first thread of a process
    /// stays so until the others have ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    pub(super) fn blocks(&self, signal: i32) -> bool {
        self.blocked & bit(signal) != 0
    }
}

/// Where a thread is, as far as the kernel tells without stopping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a system call, a fault or a stop: it executes `instruction` when it goes on, with
    /// this stack pointer.
    Asleep {
        /// The instruction it executes next.
        instruction: u64,
        /// Its stack pointer.
        stack: u64,
    },
    /// It runs, or waits for a core.
    Running,
    /// There is no such thread (any more).
    Gone,
}

impl Place {
    /// Reads `/proc/self/task/T/syscall`, which is there on every x86-64 kernel
    /// (`CONFIG_HAVE_ARCH_TRACEHOOK`) and readable for threads of one's own process. The kernel
    /// waits until a thread that sleeps has left its core (lib/syscall.c, `collect_syscall`).
    pub(super) fn of(tid: i32) -> Self {
        let mut place = Self::Gone;
        let path = Path::new(tid, "syscall");
        let Some(path) = path.path() else { return place };
        let read = lines::for_each(path, |line| {
            // `running`; or a number, up to six arguments, stack and instruction pointer.
            let mut last = line.rsplit(|&byte| byte == b' ').map(hexadecimal);
            place = match (last.next().flatten(), last.next().flatten()) {
                (Some(instruction), Some(stack)) => Self::Asleep { instruction, stack },
                _ => Self::Running,
            };
            ControlFlow::Break(())
        });
        if read.is_ok() { place } else { Self::Gone }
    }
}

fn hexadecimal(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(word.strip_prefix(b"0x")?).ok()?, 16).ok()
}

/// The bit of `signal` in a mask.
pub(super) fn bit(signal: i32) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|shift| 1u64.checked_shl(shift)).unwrap_or(0)
}

/// Whether the thread is one of the kernel's that is listed with ours.
pub(super) fn is_kernel_worker(tid: i32) -> bool {
    flags(tid).is_some_and(|flags| flags & PF_IO_WORKER != 0)
}

/// Whether the thread ends, or is gone: it runs this process's text no more. It may be listed
/// after it was joined, and even after its stack has become another thread's. Leaves `errno`
/// alone; where `/proc` cannot be read, says no for one that is listed.
pub(in crate::host) fn has_left(tid: i32) -> bool {
    let gone = Pid::from_raw(tid).is_none_or(|tid| test_kill_process(tid).is_err());
    gone || flags(tid).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// The thread's `PF` flags (include/linux/sched.h), as far as they can be read.
fn flags(tid: i32) -> Option<u64> {
    let file = rustix::fs::open(Path::new(tid, "stat").path()?, OPEN, Mode::empty()).ok()?;
    // Up to the flags: a thread may ask on a signal handler's stack, which has not much room.
    let mut start = [0; 192];
    let read = rustix::io::read(&file, &mut start).ok()?;
    let line = start.get(..read)?;
    // The name, in parentheses, may have spaces and parentheses itself. Behind it: state, five
    // numbers, and the flags (proc(5): field 9).
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let fields = line.get(end + 1..)?.split(|&byte| byte == b' ');
    fields.filter(|field| !field.is_empty()).nth(6).and_then(number)
}

fn number<T: FromStr>(digits: &[u8]) -> Option<T> {
    core::str::from_utf8(digits).ok()?.trim().parse().ok()
}

/// `/proc/self/task/T/FILE`, on the stack.
struct Path {
    bytes: [u8; 48],
    len: usize,
}

impl Path {
    fn new(tid: i32, file: &str) -> Self {
        let mut path = Self { bytes: [0; 48], len: 0 };
        // Ten digits at most, so it fits; `path` finds no terminator otherwise.
        let _ = write!(path, "/proc/self/task/{tid}/{file}\0");
        path
    }

    fn path(&self) -> Option<&CStr> {
        CStr::from_bytes_with_nul(self.bytes.get(..self.len)?).ok()
    }
}

impl Write for Path {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.len + part.len();
        let to = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        to.copy_from_slice(part.as_bytes());
        self.len = end;
        Ok(())
    }
}
