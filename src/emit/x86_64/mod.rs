//! Images for x86-64.
//!
//! Three forms run programs at a function's entry and its return. They differ in what
//! becomes of the return-stack predictor, which expects every `ret` to return from the
//! `call` that it belongs to:
//!
//! | form | patch site | balanced | stack arguments | for |
//! |---|---|---|---|---|
//! | [`SideStackBodies`], [`exit_thunk`] | `jmp thunk` | yes | in place | every function |
//! | [`CalledTrampoline`] | `call` | no: a frame is skipped | copied | comparison |
//! | [`SwapBodies`] | `call` | no: a `ret` goes elsewhere | in place | comparison |

mod called;
mod enter;
mod entry;
mod exit_thunk;
mod leave;
mod replacement;
mod side_stack;
mod swap;
mod thunk;

pub use called::CalledTrampoline;
pub use enter::SideStackBodies;
pub use entry::EntryBody;
pub use exit_thunk::{EXIT_THUNK_SIZE, exit_thunk};
pub use leave::Bodies;
pub use replacement::{REPLACEMENT_SIZE, replacement};
pub use side_stack::{MakeSideStack, SideStack, SideStackError, SideStackPlace};
pub use swap::SwapBodies;
pub use thunk::{THUNK_JUMP, THUNK_SIZE, entry_thunk};
