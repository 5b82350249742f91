//! What can go wrong, named so that a user can act on it.

use core::fmt;
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

use super::cores::CoresError;
use super::discover::{DiscoverError, Reason};
use super::lock::Unavailable;
use super::memory::MemoryError;
use super::text::TextError;
use super::threads::ThreadsError;
use super::traps::TrapsError;
use crate::attach;
use crate::patch::{Conflict, PatchError, Protocol};

/// What the operating system refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError {
    /// Text cannot be read or written.
    Text(TextError),
    /// Cores cannot be synchronised.
    Cores(CoresError),
    /// There is no memory.
    Memory(MemoryError),
    /// Threads cannot be stopped and looked at.
    Threads(ThreadsError),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(error) => error.fmt(f),
            Self::Cores(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Threads(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for HostError {}

impl From<TextError> for HostError {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}

impl From<CoresError> for HostError {
    fn from(error: CoresError) -> Self {
        Self::Cores(error)
    }
}

impl From<MemoryError> for HostError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl From<ThreadsError> for HostError {
    fn from(error: ThreadsError) -> Self {
        Self::Threads(error)
    }
}

/// Why a process cannot be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The modules cannot be listed.
    Discover(DiscoverError),
    /// The operating system refused something.
    Host(HostError),
    /// The engine cannot be set up, or a module's functions cannot be registered.
    Engine(attach::AttachError<HostError>),
    /// More modules with patch sites than there are region numbers.
    TooManyModules,
    /// The C library has no memory for what it is to call when the process forks.
    Fork {
        /// Its answer.
        errno: i32,
    },
    /// Breakpoints cannot be used.
    Traps(TrapsError),
    /// The process was opened before, with another protocol.
    OtherProtocol {
        /// That one.
        opened: Protocol,
    },
    /// Not here and now.
    Unavailable(Unavailable),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discover(error) => error.fmt(f),
            Self::Host(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
            Self::TooManyModules => f.write_str("more than 65,535 modules have patch sites"),
            Self::Fork { errno } => write!(f, "pthread_atfork(3) fails with {errno}: free memory"),
            Self::Traps(error) => error.fmt(f),
            Self::OtherProtocol { opened } => write!(
                f,
                "the process was opened with Protocol::{opened:?}, and there is one for all: ask \
                 for that, or open it before others do"
            ),
            Self::Unavailable(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OpenError {}

impl From<TrapsError> for OpenError {
    fn from(error: TrapsError) -> Self {
        Self::Traps(error)
    }
}

impl From<DiscoverError> for OpenError {
    fn from(error: DiscoverError) -> Self {
        Self::Discover(error)
    }
}

impl<E: Into<HostError>> From<E> for OpenError {
    fn from(error: E) -> Self {
        Self::Host(error.into())
    }
}

impl From<attach::AttachError<HostError>> for OpenError {
    fn from(error: attach::AttachError<HostError>) -> Self {
        Self::Engine(error)
    }
}

/// A function that stopped an attachment, and what was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The function's name, with its module's.
    pub function: String,
    /// What was found.
    pub conflict: Conflict,
}

/// Why programs were not attached, detached or switched. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachError {
    /// Functions whose patch sites do not hold what they should, every one of them.
    Stopped(Vec<Stopped>),
    /// A function of this library itself.
    OwnFunction {
        /// Its name.
        function: String,
    },
    /// Breakpoints cannot be used now.
    Traps(TrapsError),
    /// Not here and now.
    Unavailable(Unavailable),
    /// A module of the selection was unloaded.
    Unloaded {
        /// Its name.
        module: String,
    },
    /// The patch site is five one-byte nops, and it could not be made sure that no thread is
    /// between two of them.
    NotPrepared {
        /// The function's name, with its module's.
        function: String,
        /// Why not.
        cause: Box<HostError>,
    },
    /// Anything else, and which function it concerns, if it is one.
    Engine {
        /// The function's name, with its module's.
        function: Option<String>,
        /// What the engine said.
        cause: Box<attach::AttachError<HostError>>,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(stopped) => {
                write!(f, "{} functions cannot be patched", stopped.len())?;
                for Stopped { function, conflict } in stopped {
                    write!(f, "\n  {function}: {conflict}")?;
                }
                Ok(())
            }
            Self::OwnFunction { function } => write!(
                f,
                "`{function}` is part of what runs programs, and would call itself: leave it out \
                 of the selection, or compile fentry without patchable entries"
            ),
            Self::Unloaded { module } => {
                write!(f, "{module} was unloaded since the functions were selected: select again")
            }
            Self::Traps(error) => error.fmt(f),
            Self::Unavailable(error) => error.fmt(f),
            Self::NotPrepared { function, cause } => write!(
                f,
                "`{function}` was compiled with one-byte nops, and threads run already: call \
                 Process::open before starting threads, or compile with clang ({cause})"
            ),
            Self::Engine { function: Some(function), cause } => write!(f, "`{function}`: {cause}"),
            Self::Engine { function: None, cause } => cause.fmt(f),
        }
    }
}

impl core::error::Error for AttachError {}

impl AttachError {
    /// Whether retiring what was detached may give what was missing.
    pub(super) fn is_no_lane(&self) -> bool {
        let Self::Engine { cause, .. } = self else { return false };
        matches!(**cause, attach::AttachError::NoLane)
    }

    /// Whether a patch site may lead to the programs for ever.
    pub(super) fn is_stuck(&self) -> bool {
        let Self::Engine { cause, .. } = self else { return false };
        matches!(**cause, attach::AttachError::Patch(PatchError::Stuck { .. }))
    }
}

/// Why there is no function of a name that can be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindError {
    /// No module has a function of that name.
    NoSuchFunction {
        /// The name.
        name: String,
    },
    /// There is such a function, but the compiler left no patch site.
    NoPatchSite {
        /// The name, with the module's.
        function: String,
    },
    /// There is such a function, but its patch site cannot be used.
    Rejected {
        /// The name, with the module's.
        function: String,
        /// Why not.
        reason: Reason,
    },
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchFunction { name } => write!(
                f,
                "no loaded module has a function `{name}`: check the spelling, and whether the \
                 compiler inlined it or the file was stripped"
            ),
            Self::NoPatchSite { function } => write!(
                f,
                "`{function}` has no patch site: compile its file with \
                 -fpatchable-function-entry=21,16"
            ),
            Self::Rejected { function, reason } => write!(f, "`{function}`: {reason}"),
        }
    }
}

impl core::error::Error for FindError {}

/// Why it cannot be said that no thread is inside what was detached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SynchronizeError {
    /// A thread stayed inside, or seemed to, for as long as was waited.
    Inside {
        /// The thread's id.
        tid: i32,
    },
    /// Another thread was still dropping closures that had been detached, for as long as was
    /// waited. It may be waiting for this one.
    Dropping,
    /// Threads cannot be looked at.
    Threads(ThreadsError),
    /// Not here and now.
    Unavailable(Unavailable),
}

impl fmt::Display for SynchronizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside { tid } => write!(
                f,
                "thread {tid} is still in a program, or has the address of one on its stack; try \
                 again when it has returned"
            ),
            Self::Dropping => f.write_str(
                "another thread is still dropping closures that were detached; try again, but not \
                 where it waits for this thread",
            ),
            Self::Threads(cause) => cause.fmt(f),
            Self::Unavailable(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SynchronizeError {}

impl From<Unavailable> for OpenError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<Unavailable> for AttachError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<Unavailable> for SynchronizeError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}
