//! Attaching programs to functions: the engine that every embedder uses.
//!
//! ```text
//!  functions, programs                                    patch sites
//!        |                                                     ^
//!        v                                                     |
//!  for each function:  set it has --edit--> set it gets        |
//!                                              |               |
//!                                 image of that set (emitted once)
//!                                              |               |
//!                                              +--> one batch -+
//! ```
//!
//! * A *program set* is an ordered list of programs. Functions with the same list share the
//!   set and its image, in which programs are called directly.
//! * A *lane* is where a program's cookie for each function stands. A set's image has the
//!   lanes of its programs built in.
//! * Attaching, detaching, enabling and disabling are all the same: an edit of every
//!   function's list, which gives each function another set, and one batch of patches.
//!
//! The [`Engine`] allocates nothing and knows no operating system: an [`Embedder`] gives it
//! text, cores, and memory; [`embedding`] says how one is written. It keeps no list of what is
//! attached where, because it would have to be as long as the embedder's own; [`Lanes`] and the
//! functions are what detaching needs.
//!
//! **Retiring.** Detaching changes patch sites, and no new call runs the programs once it has
//! returned. Threads may still be inside the image or a program, so images, programs' data and
//! lanes stay as they are until the embedder says, in [`Engine::retire`], that every
//! thread has been seen outside.

mod describe;
mod edit;
#[doc = include_str!("embedder.md")]
pub mod embedding {}
mod engine;
mod error;
mod exit_thunks;
mod function;
mod image;
mod land;
mod lanes;
mod leads;
mod plan;
mod prepare;
mod quiesce;
mod retire;
mod set;
mod slots;
mod thunk;
mod thunk_block;

pub use edit::{Attachment, Cookies, Lanes, ProgramKind};
pub use engine::Engine;
pub use error::AttachError;
pub use function::{FunctionId, FunctionSpec, Region, SiteNop};
pub use quiesce::Quiesce;
pub use set::MAX_PROGRAMS;

pub(crate) use edit::Edit;

use core::fmt::{Debug, Display};

use crate::emit::ProgramCall;
use crate::emit::x86_64::{Hardening, Kept, Marks, SideStackPlace};
use crate::metadata::TableMemory;
use crate::patch::{Cores, Text};

/// What an operating system or a process provides to an [`Engine`].
pub trait Embedder {
    /// What any of the parts may report.
    type Error: Debug + Display;
    /// How text is read and written.
    type Text: Text<Error: Into<Self::Error>>;
    /// How cores are made to forget what they have fetched.
    type Cores: Cores<Error: Into<Self::Error>>;
    /// Where images go.
    type Images: ImageMemory<Error: Into<Self::Error>>;
    /// Where tables go.
    type Tables: TableMemory<Error: Into<Self::Error>>;
}

/// The parts of an [`Embedder`], given to an engine when it is made.
#[derive(Debug)]
pub struct Parts<E: Embedder> {
    /// How text is read and written. Thunks are text too: a site in memory from
    /// [`ImageMemory`] must be writable through it.
    pub text: E::Text,
    /// How cores are made to forget what they have fetched.
    pub cores: E::Cores,
    /// Where images go.
    pub images: E::Images,
    /// Where tables go.
    pub tables: E::Tables,
    /// How emitted code finds a thread's side stack, which programs at the exit of functions
    /// need; `None` where threads have none.
    pub side_stack: Option<SideStackPlace>,
    /// The mitigations that emitted code gets: [`Hardening::NONE`] in a process that has none.
    pub hardening: Hardening,
}

/// What was emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Emitted<'a> {
    /// An image.
    Image {
        /// The programs that run at the entry, in their order, and then those that may modify
        /// the return.
        entries: [&'a [ProgramCall]; 2],
        /// The programs that run at the exit, in the order of their attachment.
        exits: &'a [ProgramCall],
        /// Where its bodies for entry and exit are, if it has any. If not, it has an
        /// [`EntryBody`](crate::emit::x86_64::EntryBody), or without programs the jump to a
        /// replacement.
        bodies: Option<&'a Marks>,
    },
    /// The thunk of a function without a slot.
    EntryThunk {
        /// The index of its function.
        index: u32,
    },
    /// The thunk of a function with programs at its exit.
    ExitThunk {
        /// The index of its function.
        index: u32,
        /// Where the caller's return address is while the function runs.
        kept: Kept,
    },
}

/// Memory for emitted code.
///
/// # Safety
/// An implementer promises of memory that [`allocate`](Self::allocate) gives:
/// - every byte of it is within 2 GiB of every patch site of its region's functions;
/// - it is executable by every core that may run those functions, and stays so until freed;
/// - it holds `int3` where nothing has been [written](Self::write);
/// - what is written is visible to a core's instruction fetch by the time that core has seen
///   a branch to it that was stored later.
pub unsafe trait ImageMemory {
    /// What the embedder reports when there is no memory.
    type Error: Debug + Display;

    /// Gives `size` bytes, aligned to 64, to the functions of `region`.
    ///
    /// # Errors
    /// The embedder's.
    fn allocate(&mut self, region: Region, size: usize) -> Result<u64, Self::Error>;

    /// Writes `code` at `address`.
    ///
    /// # Safety
    /// The bytes are in memory from [`allocate`](Self::allocate), and no core executes them.
    ///
    /// # Errors
    /// The embedder's; then nothing was written.
    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Self::Error>;

    /// Is told what [`write`](Self::write) has written, before anything leads there: for
    /// embedders that name emitted code or have unwinders to tell of it. Does nothing unless
    /// implemented.
    fn emitted(&mut self, address: u64, code: &[u8], what: Emitted<'_>) {
        let _ = (address, code, what);
    }

    /// Takes memory back.
    ///
    /// # Safety
    /// `address` and `size` are those of an [`allocate`](Self::allocate), no patch site or
    /// thunk leads there, and no core is inside or has it as a return address.
    unsafe fn free(&mut self, address: u64, size: usize);
}
