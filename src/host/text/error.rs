//! Why text cannot be read or written.

use core::fmt;
use std::sync::Arc;

use rustix::io::Errno;

/// Why text cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextError {
    /// `/proc/self/maps` cannot be read.
    Maps {
        /// The kernel's answer.
        errno: Errno,
    },
    /// Two segments have an address in common.
    Overlap {
        /// The lowest such address.
        address: u64,
    },
    /// An address is in no segment, or the bytes at it do not end in the same one.
    Unknown {
        /// The address.
        address: u64,
    },
    /// The text is open already.
    AlreadyOpen,
    /// The kernel does not make the text writable. Nothing is open.
    Protected {
        /// The first address that should have become writable.
        address: u64,
        /// The segment's name.
        name: Arc<str>,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maps { errno } => {
                write!(f, "/proc/self/maps cannot be read ({errno}): mount /proc")
            }
            Self::Overlap { address } => {
                write!(f, "two text segments both have {address:#x}: give each address once")
            }
            Self::Unknown { address } => write!(
                f,
                "{address:#x} is not in a text segment of this process: if its library was \
                 loaded since, list the segments again",
            ),
            Self::AlreadyOpen => f.write_str("the text is already open: close it first"),
            Self::Protected { address, name, errno } => {
                write!(f, "text of {name} at {address:#x} cannot be made writable ({errno}): ")?;
                f.write_str(match *errno {
                    Errno::ACCESS => {
                        "SELinux (execmod), systemd's MemoryDenyWriteExecute, or a file mapped \
                         shared and opened for reading forbids it"
                    }
                    Errno::PERM => "a seccomp filter or mseal(2) forbids it",
                    Errno::NOMEM => {
                        "a page of it is not mapped any more, or the process has as many \
                         mappings as vm.max_map_count allows: raise it"
                    }
                    _ => "see mprotect(2)",
                })
            }
        }
    }
}

impl core::error::Error for TextError {}
