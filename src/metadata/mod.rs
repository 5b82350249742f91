//! From the index in the padding to what is known of a function.
//!
//! ```text
//!  padding            record table                     cookie columns
//!  b8 07 00 00 00     [0][1]..[7: cookie, set, lanes]   lane 1: [0][1]..[7]
//!     ^ index 7                                         lane 2: [0][1]..[7]
//! ```
//!
//! A body finds the index with one load from its function's padding, and everything else by
//! arithmetic on the index: there is no hash, and nothing to search. [`SlotState`] reads and
//! writes the index; a [`Table`] holds one element for each index and grows without moving
//! any; a [`Record`] is what the emitted code reads.

mod column;
mod record;
mod slot;
mod table;

pub use column::{Column, TableError, TableMemory, Zeroed};
pub use record::{LANES, Record};
pub use slot::SlotState;
pub use table::{Element, Table};
