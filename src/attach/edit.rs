//! What is asked of the engine: programs, cookies, and edits of a function's programs.

use super::set::{Programs, Role, SetEntry};
use crate::emit::{SESSIONS, Vectors};

/// When a program runs, and what it may do.
///
/// At a function's entry run, first, those of kind `Entry` and the entries of sessions, and
/// then those of kind `ModifyReturn`, in the order of attachment; then the origin or what
/// replaces it; then those of kind `Exit` and the exits of sessions, in the reverse of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramKind {
    /// At the entry (fentry): `extern "C" fn(*mut Context, cookie: u64, data: u64)`.
    Entry,
    /// At the exit (fexit): `extern "C" fn(*mut ExitContext, cookie: u64, data: u64)`.
    Exit,
    /// At the entry (fmod_ret), a function like that for `Entry` which returns a `u64`. If that
    /// is not zero, the origin is skipped and seems to have returned it, and the programs of
    /// this kind that come later do not run.
    ModifyReturn,
    /// At entry and exit, with 8 bytes for each call that both see, zero at first:
    /// `extern "C" fn(*mut Context, cookie: u64, data: u64, *mut u64) -> u64`, where a result
    /// that is not zero declines the exit for this call.
    Session {
        /// What runs at the exit:
        /// `extern "C" fn(*mut ExitContext, cookie: u64, data: u64, *mut u64)`.
        exit: u64,
    },
    /// Instead of the origin: a function of the same type. One for each function at a time.
    Replace,
}

/// A program to attach.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// The program's address.
    pub target: u64,
    /// When it runs, which says what function it is.
    pub kind: ProgramKind,
    /// Its third argument, if it wants one.
    pub data: Option<u64>,
    /// What it may do to vector registers.
    pub vectors: Vectors,
    /// Its cookies.
    pub cookies: Cookies<'a>,
}

/// A program's cookie for each function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cookies<'a> {
    /// The same for every function.
    Same(u64),
    /// The function's position in the list that is attached to, from 0.
    Position,
    /// One for each function of the list, in its order.
    Each(&'a [u64]),
}

impl Cookies<'_> {
    /// The cookie of the function at `position`.
    pub(crate) fn at(&self, position: usize) -> Option<u64> {
        match self {
            Self::Same(cookie) => Some(*cookie),
            Self::Position => Some(position as u64),
            Self::Each(cookies) => cookies.get(position).copied(),
        }
    }
}

/// The lanes that an attachment got, one bit each: with the functions, what names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "without its lanes, an attachment cannot be detached"]
pub struct Lanes(pub(crate) u32);

/// A change of a function's list of programs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit<'a> {
    /// Adds programs behind those that are there.
    Append(&'a [SetEntry]),
    /// Removes the programs in these lanes.
    Remove(u32),
    /// Enables or disables the programs in these lanes, where they stand.
    Enable(u32, bool),
}

/// Why an edit does not apply to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EditError {
    /// The list has no room.
    Full,
    /// The list has no room for another session.
    Sessions,
    /// The list has a replacement already.
    Replaced,
    /// The list has no program in one of the lanes.
    NotThere,
}

impl Edit<'_> {
    pub fn apply(&self, programs: &Programs) -> Result<Programs, EditError> {
        match *self {
            Edit::Append(entries) => {
                let mut edited = *programs;
                if !entries.iter().all(|&entry| edited.push(entry)) {
                    return Err(EditError::Full);
                }
                let count = |role| edited.as_slice().iter().filter(|e| e.role == role).count();
                if count(Role::Replace) > 1 {
                    Err(EditError::Replaced)
                } else if count(Role::Session) > SESSIONS.into() {
                    Err(EditError::Sessions)
                } else {
                    Ok(edited)
                }
            }
            Edit::Remove(lanes) => {
                if programs.lanes() & lanes != lanes {
                    return Err(EditError::NotThere);
                }
                let mut edited = Programs::EMPTY;
                let keep = |entry: &&SetEntry| entry.lane_bit() & lanes == 0;
                let fits = programs.as_slice().iter().filter(keep).all(|&entry| edited.push(entry));
                debug_assert!(fits, "part of a list is shorter than the list");
                Ok(edited)
            }
            Edit::Enable(lanes, enabled) => {
                if programs.lanes() & lanes != lanes {
                    return Err(EditError::NotThere);
                }
                let mut edited = *programs;
                for entry in edited.as_mut_slice() {
                    if entry.lane_bit() & lanes != 0 {
                        entry.enabled = enabled;
                    }
                }
                Ok(edited)
            }
        }
    }
}
