//! Images for x86-64.
//!
//! Four forms run programs at a function's entry and its return. They differ in what
//! becomes of the return-stack predictor, which expects every `ret` to return from the
//! `call` that it belongs to:
//!
//! | form | patch site | balanced | stack arguments | for |
//! |---|---|---|---|---|
//! | [`SideStackBodies`], [`exit_thunk`] | `jmp thunk` | yes | in place | every function |
//! | [`FrameBodies`], [`exit_thunk`] | `jmp thunk` | yes | copied | functions with known arguments |
//! | [`CalledTrampoline`] | `call` | no: a frame is skipped | copied | comparison |
//! | [`SwapBodies`] | `call` | no: a `ret` goes elsewhere | in place | comparison |

mod branch;
mod call_frame;
mod call_table;
mod called;
mod calls;
mod check;
mod dispatch;
mod enter;
mod entry;
mod exit_thunk;
mod frame;
mod leave;
mod preamble;
mod preamble_hash;
mod replacement;
mod side_stack;
mod side_stack_bodies;
mod swap;
mod thunk;
mod unwind;

pub use branch::{CallDepth, Hardening, Symbols};
pub use call_table::CallTable;
pub use called::CalledTrampoline;
pub use check::{Check, FINEIBT_PREFIX, Generation, TARGET};
pub use dispatch::Dispatcher;
pub use entry::EntryBody;
pub use exit_thunk::{Bodies, EXIT_THUNK_SIZE, Kept, exit_thunk, exit_thunk_hardened};
pub use frame::FrameBodies;
pub use preamble::{Arity, BHI_STUB_MAX, Bhi, FineIbt, Kcfi, Preamble, bhi_stub};
pub use preamble_hash::{HashPlace, PreambleError};
pub use replacement::{
    HARDENED_REPLACEMENT_SIZE, REPLACEMENT_SIZE, replacement, replacement_hardened,
};
pub use side_stack::{MakeSideStack, SideStack, SideStackError, SideStackPlace};
pub use side_stack_bodies::SideStackBodies;
pub use swap::SwapBodies;
pub use thunk::{THUNK_JUMP, THUNK_SIZE, entry_thunk, entry_thunk_hardened, is_thunk_place};
pub use unwind::{Marks, SideStackList, UnwindTable};
