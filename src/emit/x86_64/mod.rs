//! Images for x86-64.

mod entry;
mod thunk;

pub use entry::EntryBody;
pub use thunk::{THUNK_JUMP, THUNK_SIZE, entry_thunk};
