//! Emitting images: the code that runs programs.
//!
//! An *image* is emitted once for each [set of programs](crate::attach), not once for each
//! function: what differs between functions with the same programs is found through the index.
//! It is position-dependent, and emitted for the address where it will run.
//!
//! What an image hands to a program is a [`Context`] at a function's entry, and an
//! [`ExitContext`] at its return.
//!
//! Emitted code can meet the hardening rules of the program that it runs in: what entries that
//! indirect calls may reach begin with ([`x86_64::Preamble`], [`aarch64::Preamble`]), and what is
//! done to branches ([`Mitigations`], applied by [`x86_64::Hardening`] and
//! [`aarch64::Hardening`]).

pub mod aarch64;
mod context;
mod exit_context;
pub mod kcfi;
mod mitigation;
pub mod x86_64;

pub use context::Context;
pub use exit_context::ExitContext;
pub use mitigation::{HardeningError, Mitigations};

use core::fmt;

use crate::encode::EncodeError;

/// Which vector registers an image saves before it runs programs and restores afterwards.
///
/// A callee may read its vector arguments, so a program that may change them, and compiled
/// code may, must not be seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Vectors {
    /// None: every program of the image is known to leave them alone.
    Untouched,
    /// `xmm0` to `xmm7`: what a program compiled for SSE, which calls nothing that uses AVX,
    /// can change. The upper halves of `ymm0` to `ymm7` are left as they are.
    Xmm,
    /// `ymm0` to `ymm7`: what a program on a CPU with AVX can change. The upper halves of
    /// `zmm0` to `zmm7` are lost, so not for functions with 512-bit arguments.
    Ymm,
    /// `zmm0` to `zmm7`: what a program on a CPU with AVX-512 can change.
    Zmm,
}

/// How a body finds the index of the function that it was entered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IndexFrom {
    /// It stands in the function's slot, this many bytes before the return address that a
    /// body called from the patch site sees.
    Slot {
        /// [`EntryLayout::return_to_index`](crate::layout::EntryLayout::return_to_index).
        return_to_index: u16,
    },
    /// A thunk has put it in `r11d`: the function has no slot.
    Thunk,
}

/// Where a program's cookie stands: at `column + index * stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CookiePlace {
    /// The address of the cookie of index 0.
    pub column: u64,
    /// How far apart cookies are.
    pub stride: Stride,
}

/// How far apart the cookies of neighbouring indexes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stride {
    /// 8 bytes: a column of cookies.
    Eight,
    /// 16 bytes: the record table.
    Sixteen,
}

/// A call of one program: `program(context, cookie, data)` by the psABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramCall {
    /// The program's address.
    pub target: u64,
    /// What it gets as its third argument, if it wants one.
    pub data: Option<u64>,
    /// Where it finds its cookie.
    pub cookie: CookiePlace,
    /// Which session word of the call it gets the address of, as its fourth argument: one of
    /// [`SESSIONS`], shared by what runs before the function and what runs after it. The one
    /// before returns a `u64`: not zero declines the one after, for this call.
    pub session: Option<u8>,
}

/// How many session words a call has.
pub const SESSIONS: u8 = 8;

/// Why an image was not emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmitError {
    /// An instruction could not be encoded.
    Encode(EncodeError),
    /// The indexes of what is searched do not rise from one to the next.
    Order {
        /// The place of the first one that is not above the one before it.
        position: usize,
        /// The index there.
        index: u32,
    },
    /// A program is to get a session word that its calls do not have.
    Session {
        /// The word's number.
        number: u8,
        /// How many words a call has there: [`SESSIONS`], or none where nothing runs afterwards.
        words: u8,
    },
    /// The thunk's return would be in the lower half of a line of 64 bytes.
    LowerHalf {
        /// Where the thunk would be.
        address: u64,
    },
}

impl From<EncodeError> for EmitError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encode(error) => write!(f, "the image cannot be emitted: {error}"),
            Self::Session { number, words } => write!(
                f,
                "a program is to get session word {number}, and a call has {words} of them here; \
                 number sessions from 0, in images with programs at the exit"
            ),
            Self::LowerHalf { address } => write!(
                f,
                "a thunk at {address:#x} would return from the lower half of a line of 64 bytes, \
                 which ITS forbids; put it into an upper half, or give a return thunk"
            ),
            Self::Order { position, index } => write!(
                f,
                "index {index} at position {position} is not above the one before it; sort the \
                 list by index, with each index once"
            ),
        }
    }
}

impl core::error::Error for EmitError {}
