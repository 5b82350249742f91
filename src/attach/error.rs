//! Why an attachment did not happen.

use core::fmt::{self, Debug, Display};

use super::{MAX_PROGRAMS, Region};
use crate::addr::{Entry, Slot};
use crate::emit::{EmitError, SESSIONS};
use crate::metadata::{LANES, SlotState, TableError};
use crate::patch::{CheckError, PatchError};

/// Why an operation of the [`Engine`](super::Engine) did not happen. Nothing that can be executed
/// was changed, unless it is a [`PatchError::Stuck`]. `E` is the embedder's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachError<E> {
    /// The list of functions is empty.
    NoFunctions,
    /// The list of programs is empty.
    NoPrograms,
    /// An id is not of a function that is registered.
    UnknownFunction {
        /// The id's index.
        index: u32,
    },
    /// A program has a list of cookies, and not one for each function.
    CookieCount {
        /// How many cookies it has.
        cookies: usize,
        /// How many functions there are.
        functions: usize,
    },
    /// A function would get more than [`MAX_PROGRAMS`].
    TooManyPrograms {
        /// The function.
        entry: Entry,
    },
    /// A function would get more than [`SESSIONS`] programs with a session.
    TooManySessions {
        /// The function.
        entry: Entry,
    },
    /// A function would get a second replacement.
    Replaced {
        /// The function.
        entry: Entry,
    },
    /// The function has programs, and they would have to be gone.
    Attached {
        /// The function.
        entry: Entry,
    },
    /// The programs need a side stack, and the embedder has told of none.
    NoSideStack,
    /// All lanes of one of the functions are in use or may still be read.
    NoLane,
    /// The function does not have the programs that were to be changed.
    NotAttached {
        /// The function.
        entry: Entry,
    },
    /// The patch site is five one-byte nops, between which a thread may stand.
    NotPrepared {
        /// The function.
        entry: Entry,
    },
    /// The slot holds something else than nops or the function's index.
    SlotTaken {
        /// The slot.
        slot: Slot,
        /// What was found there.
        found: [u8; SlotState::MAX_SIZE],
    },
    /// The buffer for pokes is too small.
    Scratch {
        /// How many pokes are needed.
        needed: usize,
    },
    /// More kinds of functions than the engine can tell apart.
    TooManyClasses,
    /// The image cannot be emitted.
    Emit(EmitError),
    /// A table cannot grow.
    Table(TableError<E>),
    /// There is no memory for an image.
    Images {
        /// The region that has none.
        region: Region,
        /// What the embedder said.
        cause: E,
    },
    /// The text could not be read or written.
    Text(E),
    /// The batch did not land.
    Patch(PatchError<E, E>),
}

impl<E: Display> Display for AttachError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFunctions => f.write_str("no functions to attach to: the selection is empty"),
            Self::NoPrograms => f.write_str("no programs to attach"),
            Self::UnknownFunction { index } => write!(f, "no function has the index {index}"),
            Self::CookieCount { cookies, functions } => {
                write!(f, "{cookies} cookies for {functions} functions: give one for each")
            }
            Self::TooManyPrograms { entry } => write!(
                f,
                "the function at {entry} would have more than {MAX_PROGRAMS} programs; detach one"
            ),
            Self::TooManySessions { entry } => write!(
                f,
                "the function at {entry} would have more than {SESSIONS} programs with a \
                 session; detach one"
            ),
            Self::Replaced { entry } => write!(
                f,
                "the function at {entry} is replaced already; detach what replaces it first"
            ),
            Self::Attached { entry } => write!(
                f,
                "the function at {entry} has programs; detach them before saying how many \
                 arguments it has on the stack"
            ),
            Self::NoSideStack => f.write_str(
                "programs at the exit of functions need a side stack for each thread, and \
                 `Parts::side_stack` is `None`: say how it is found",
            ),
            Self::NoLane => write!(
                f,
                "all {LANES} lanes of a function hold cookies that may still be read; let the \
                 detached programs retire first"
            ),
            Self::NotAttached { entry } => {
                write!(f, "these programs are not attached to the function at {entry}")
            }
            Self::NotPrepared { entry } => write!(
                f,
                "the patch site of the function at {entry} is five one-byte nops: prepare it \
                 while no other thread runs, or compile with clang"
            ),
            Self::SlotTaken { slot, found } => write!(
                f,
                "the padding at {slot} holds {found:02x?}, neither nops nor this function's \
                 index: another tool uses it"
            ),
            Self::Scratch { needed } => write!(f, "the buffer needs room for {needed} pokes"),
            Self::TooManyClasses => f.write_str(
                "too many combinations of layout and region; functions whose text is gone keep \
                 theirs until quiescence, so wait for that",
            ),
            Self::Emit(error) => Display::fmt(error, f),
            Self::Table(error) => Display::fmt(error, f),
            Self::Images { cause, .. } => write!(f, "no memory for an image: {cause}"),
            Self::Text(error) => write!(f, "text cannot be read or written: {error}"),
            Self::Patch(error) => Display::fmt(error, f),
        }
    }
}

impl<E: Debug + Display> core::error::Error for AttachError<E> {}

impl<E> From<EmitError> for AttachError<E> {
    fn from(error: EmitError) -> Self {
        Self::Emit(error)
    }
}

impl<E> AttachError<E> {
    /// What the embedder said when it was asked for image memory.
    pub(super) fn no_image<M: Into<E>>(region: Region, cause: M) -> Self {
        Self::Images { region, cause: cause.into() }
    }

    /// A table's error, with the embedder's own made `E`.
    pub(super) fn table<M: Into<E>>(error: TableError<M>) -> Self {
        Self::Table(match error {
            TableError::Full { capacity } => TableError::Full { capacity },
            TableError::Memory(cause) => TableError::Memory(cause.into()),
        })
    }

    /// What was found at the sites of a batch, with the embedder's own error made `E`.
    pub(super) fn check<T: Into<E>>(error: CheckError<T>) -> Self {
        Self::Patch(PatchError::Check(match error {
            CheckError::Conflicts { count, first } => CheckError::Conflicts { count, first },
            CheckError::Duplicate { site } => CheckError::Duplicate { site },
            CheckError::Read { site, cause } => CheckError::Read { site, cause: cause.into() },
        }))
    }

    /// A batch's error, with the embedder's own made `E`.
    pub(super) fn patch<T: Into<E>, C: Into<E>>(error: PatchError<T, C>) -> Self {
        Self::Patch(match error {
            PatchError::Check(error) => return Self::check(error),
            PatchError::Open(cause) => PatchError::Open(cause.into()),
            PatchError::Store { site, cause } => PatchError::Store { site, cause: cause.into() },
            PatchError::Synchronise(cause) => PatchError::Synchronise(cause.into()),
            PatchError::Stuck { site } => PatchError::Stuck { site },
        })
    }
}
