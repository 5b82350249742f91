//! What is asked of the engine: programs, cookies, and edits of a function's programs.

use super::set::{Programs, SetEntry};
use crate::emit::Vectors;

/// A program to attach.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// The program's address: an `extern "C" fn(*mut Context, cookie: u64, data: u64)`.
    pub target: u64,
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
    /// The list has no program in one of the lanes.
    NotThere,
}

impl Edit<'_> {
    pub fn apply(&self, programs: &Programs) -> Result<Programs, EditError> {
        match *self {
            Edit::Append(entries) => {
                let mut edited = *programs;
                if entries.iter().all(|&entry| edited.push(entry)) {
                    Ok(edited)
                } else {
                    Err(EditError::Full)
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
