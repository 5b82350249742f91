//! The user-space embedder: a process that traces itself, on Linux and x86-64.
//!
//! [`Process`] is the front door: it finds the functions of the process that have a patch
//! site, and attaches programs to them.
//!
//! ```text
//!  discover, names   which functions there are
//!  process           the front door: select, attach, detach
//!  embedder          the engine's traits, by way of
//!     text             writing to text: one mprotect pair a batch, never without X
//!     cores            membarrier SYNC_CORE
//!     memory           emitted code within 2 GiB of text, never W and X; tables
//!     threads          where threads are, where that matters
//!     traps            SIGTRAP, for the breakpoint protocol
//!     fork             children that go on
//!  unwind            unwind tables of emitted code, for the C runtime
//!  visible           emitted code, shown to perf and debuggers
//! ```

pub mod cores;
pub mod discover;
mod embedder;
mod error;
mod fork;
mod functions;
pub mod glob;
mod lines;
mod link;
mod lock;
mod locks;
pub mod maps;
pub mod memory;
pub mod names;
mod near;
mod process;
mod program;
mod quiescence;
mod shared;
mod side_stacks;
mod state;
pub mod text;
pub mod threads;
pub mod traps;
mod unwind;
mod visible;

pub use embedder::Host;
pub use error::{AttachError, FindError, HostError, OpenError, Stopped, SynchronizeError};
pub use functions::{Function, Functions};
pub use link::{DetachError, Link};
pub use lock::Unavailable;
pub use process::Process;
pub use program::{Cookies, Program, Programs, Recursion, Session};
pub use quiescence::Quiescence;
pub use side_stacks::{Missed, SIDE_STACK_DEPTH};
pub use visible::{Visibility, VisibilityError};

pub use crate::emit::{Context, ExitContext, Vectors};
pub use crate::patch::Protocol;
