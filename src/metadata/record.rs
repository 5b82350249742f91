//! What is known of one function.

use super::{Element, Zeroed};
use crate::sync::{AtomicU32, AtomicU64};

/// How many cookies a function can have at once, and so how many programs: each program on a
/// function has a *lane*, and its cookie stands in that lane.
pub const LANES: u32 = 32;

/// One function's record, 16 bytes; the record at index *i* stands at `table + 16 * i`.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | the cookie of lane 0 |
/// | 8 | 4 | the function's program set; 0 when nothing is attached |
/// | 12 | 4 | lanes whose cookies may still be read by a body, one bit each |
///
/// Emitted code reads the cookie while Rust code changes the rest, so every field is atomic.
/// The cookies of lanes 1 and up are not here but in a column each, at `column + 8 * i`: a
/// function with one program pays for one cookie.
#[derive(Debug)]
#[repr(C)]
pub struct Record {
    pub(crate) cookie: AtomicU64,
    pub(crate) set: AtomicU32,
    pub(crate) lanes: AtomicU32,
}

impl Record {
    /// Bytes from the start of a record to the cookie of lane 0.
    pub const COOKIE: usize = memoffset::offset_of!(Self, cookie);
}

static_assertions::const_assert_eq!(size_of::<Record>(), 16);
static_assertions::const_assert_eq!(Record::COOKIE, 0);
static_assertions::const_assert_eq!(memoffset::offset_of!(Record, set), 8);
static_assertions::const_assert_eq!(memoffset::offset_of!(Record, lanes), 12);

// SAFETY: all zeroes is a record with nothing attached, and every field is atomic.
unsafe impl Zeroed for Record {}

impl Element for Record {
    fn link(&self) -> &AtomicU32 {
        &self.set
    }
}
