//! Synchronising cores with `membarrier(2)`.

use core::fmt;

use rustix::io::Errno;
use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

use crate::patch::Cores;

/// Synchronises the cores that run this process, by interrupting each of them
/// (`MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE`).
///
/// Cores that do not run a thread of this process need no interrupt: the kernel executes a
/// serialising instruction before it returns to one of its threads
/// (kernel/sched/membarrier.c, `membarrier_mm_sync_core_before_usermode`).
///
/// # What it covers
/// Every thread that runs in this address space, those of a `vfork` child included. Text
/// that is *shared* with another process (a `MAP_SHARED` file written by one of the two) is
/// not covered in the other process: the command knows address spaces, not files.
///
/// # `fork` and `execve`
/// The registration belongs to the address space. A forked child gets a copy of it with the
/// copy of the address space, `execve` clears it (kernel/sched/membarrier.c,
/// `membarrier_exec_mmap`). [`synchronise`](Cores::synchronise) registers again, once, where
/// the kernel says that the process is not registered.
#[derive(Clone, Copy, Debug)]
pub struct Membarrier {
    _registered: (),
}

impl Membarrier {
    /// Registers this process.
    ///
    /// Registering while several threads run waits for an RCU grace period, some
    /// milliseconds; before the first thread is started it takes one.
    ///
    /// # Errors
    /// [`CoresError`]: the kernel has no such command, or a sandbox forbids it.
    pub fn register() -> Result<Self, CoresError> {
        // A query never fails: where the system call is missing it has no bits.
        let supported = membarrier_query();
        if !supported.contains(MembarrierQuery::PRIVATE_EXPEDITED_SYNC_CORE) {
            return Err(CoresError::Unavailable { commands: supported.bits() });
        }
        membarrier(MembarrierCommand::RegisterPrivateExpeditedSyncCore)
            .map_err(|errno| CoresError::Refused { command: "registration", errno })?;
        Ok(Self { _registered: () })
    }
}

// SAFETY: the kernel has every core that runs a thread of this address space execute a
// serialising instruction between entry and return of the command (`ipi_sync_core`), the
// calling core included, and every other core before it returns to one of its threads.
unsafe impl Cores for Membarrier {
    type Error = CoresError;

    fn synchronise(&mut self) -> Result<(), CoresError> {
        let command = MembarrierCommand::PrivateExpeditedSyncCore;
        match membarrier(command) {
            Err(Errno::PERM) => {
                Self::register()?;
                membarrier(command)
            }
            result => result,
        }
        .map_err(|errno| CoresError::Refused { command: "barrier", errno })
    }
}

/// Why cores cannot be synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CoresError {
    /// The kernel does not offer the command.
    Unavailable {
        /// The bits of `MEMBARRIER_CMD_QUERY`; 0 where there is no such system call.
        commands: u32,
    },
    /// The kernel offers the command and refuses it.
    Refused {
        /// Which of the two commands.
        command: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

impl fmt::Display for CoresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { commands: 0 } => f.write_str(
                "membarrier(2) is not available: it needs Linux 4.16 with CONFIG_MEMBARRIER, and \
                 a seccomp filter that allows it (system call 324)",
            ),
            Self::Unavailable { commands } => write!(
                f,
                "membarrier(2) offers commands {commands:#x} and not \
                 PRIVATE_EXPEDITED_SYNC_CORE (0x20): it needs Linux 4.16 with \
                 CONFIG_ARCH_HAS_MEMBARRIER_SYNC_CORE",
            ),
            Self::Refused { command, errno } => write!(
                f,
                "membarrier(2) refused the SYNC_CORE {command}: {errno}; allow system call 324 \
                 in the seccomp filter of this process",
            ),
        }
    }
}

impl core::error::Error for CoresError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_cores_synchronise_again_and_again() {
        let mut cores = Membarrier::register().unwrap();
        for _ in 0..100 {
            cores.synchronise().unwrap();
        }
    }
}
