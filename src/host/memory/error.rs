//! Why there is no memory.

use core::fmt;
use core::ops::Range;

use rustix::io::Errno;

use crate::host::maps::PAGE;
use crate::host::near::Refusal;

/// Why there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryError {
    /// No gap of the address space within reach of the text is large enough.
    NoRoom {
        /// The first address of the text.
        near: u64,
        /// The end of the text.
        end: u64,
        /// Bytes wanted.
        len: usize,
    },
    /// `/proc/self/maps` cannot be read.
    Maps {
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel refuses the mapping.
    Map {
        /// The kernel's answer.
        errno: Errno,
        /// Bytes wanted.
        len: usize,
    },
    /// No hole of the arena is large enough.
    Full {
        /// Bytes wanted.
        len: usize,
        /// The alignment wanted.
        align: usize,
        /// The largest hole, before alignment.
        largest: usize,
    },
    /// The alignment is not a power of two of at most 4096.
    Align {
        /// The alignment wanted.
        align: usize,
    },
    /// The code does not fit into its allocation.
    Outside {
        /// Where the allocation runs.
        run: u64,
        /// Where in it the code should begin.
        offset: usize,
        /// Bytes of code.
        len: usize,
    },
    /// The allocation is another arena's.
    Foreign {
        /// Where the allocation runs.
        run: u64,
    },
    /// The table would outgrow its address space.
    TableFull {
        /// Bytes wanted.
        len: usize,
        /// Bytes reserved.
        reserved: usize,
    },
    /// This process is a forked child of the one that reserved the memory.
    Forked {
        /// The process that reserved it.
        owner: u32,
    },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { near, end, len } => write!(
                f,
                "no free address space of {len} bytes within 2 GiB of {near:#x}..{end:#x}: ask \
                 for less, or for each library by itself",
            ),
            Self::Maps { errno } => {
                write!(f, "/proc/self/maps cannot be read ({errno}): mount /proc")
            }
            Self::Map { errno, len } => write!(
                f,
                "{len} bytes cannot be mapped ({errno}): EACCES and EPERM come from SELinux or \
                 seccomp forbidding executable memory, ENOMEM from RLIMIT_AS or vm.max_map_count",
            ),
            Self::Full { len, align, largest } => write!(
                f,
                "no {len} bytes aligned to {align} are free (the largest hole has {largest}): \
                 reserve another arena",
            ),
            Self::Align { align } => {
                write!(f, "alignment {align}: give a power of two of at most {PAGE}")
            }
            Self::Outside { run, offset, len } => write!(
                f,
                "{len} bytes of code at offset {offset} do not fit the allocation at {run:#x}",
            ),
            Self::Foreign { run } => {
                write!(f, "{run:#x} was not allocated from this arena: free it where it was")
            }
            Self::TableFull { len, reserved } => write!(
                f,
                "the table needs {len} bytes and {reserved} are reserved: reserve more at first",
            ),
            Self::Forked { owner } => write!(
                f,
                "the memory belongs to process {owner}, of which this one is a forked child: it \
                 can run the code and not change it; reserve memory of its own",
            ),
        }
    }
}

impl core::error::Error for MemoryError {}

impl MemoryError {
    /// What it means that `len` bytes could not be placed near `text`.
    pub(super) fn refused(refusal: Refusal, text: &Range<u64>, len: usize) -> Self {
        match refusal {
            Refusal::Maps(errno) => Self::Maps { errno },
            Refusal::Map(errno) => Self::Map { errno, len },
            Refusal::NoRoom => Self::NoRoom { near: text.start, end: text.end, len },
        }
    }
}
