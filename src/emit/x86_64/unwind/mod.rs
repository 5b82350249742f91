//! Unwind tables of emitted code: where each of its frames ends, and who called it.
//!
//! Format: `.eh_frame`, as in the Linux Standard Base, core specification 5.0, "Exception
//! frames"; instructions and expressions are those of DWARF 4, sections 6.4.2 and 2.5. Addresses
//! are absolute, so a table may be read wherever it stands.
//!
//! # What a stack shows
//! A body is called, or jumped to, when the hooked function has begun or has returned. In its
//! programs the tables show the function all the same, as it is at its entry, called by whom
//! it was called by:
//!
//! ```text
//!  in an entry program    program, body, function, caller
//!  in the function        function, thunk, caller         without exit programs: function, caller
//!  in an exit program     program, body, function, caller
//! ```
//!
//! # Side stacks
//! While a function with exit programs runs, nothing on the stack says who called it: that is in
//! a frame of the thread's side stack. An unwinder knows no thread, but the frame has the
//! address of the stack slot that the return address was in, and no two threads have the same
//! stack. So the tables have an expression that looks through all side stacks for that slot.

mod expression;
mod frame;
mod register;
mod side_stack;
mod table;

use core::mem::offset_of;

use super::branch::Hardening;
use super::enter::Aside;
use super::exit_thunk::{Bodies, Kept};
use super::leave::Part;
use crate::emit::ExitContext;
use expression::Expression;
pub use expression::SideStackList;
use register::{RBP, RSP};
pub use table::UnwindTable;

/// Bytes from the slot of the return address to the value of `rsp` in the caller.
const SLOT: u8 = 8;

impl UnwindTable {
    /// Of an [`EntryBody`](super::EntryBody) of `size` bytes, emitted for `address` with these
    /// mitigations.
    #[must_use]
    pub fn of_entry_body(address: u64, size: usize, hardening: &Hardening) -> Self {
        let mut table = Self::new();
        let mut rows = table.of(address..address + size as u64);
        rows.push_rbp();
        rows.before_end(hardening.body_end_size());
        rows.cfa(RSP, SLOT);
        rows.same(RBP);
        rows.end();
        table.end();
        table
    }

    /// Of `size` bytes of code that leaves the stack as it is: [entry thunks](super::entry_thunk),
    /// the jump to a [replacement](super::replacement).
    #[must_use]
    pub fn of_jumps(address: u64, size: usize) -> Self {
        let mut table = Self::new();
        table.jumps(address..address + size as u64);
        table.end();
        table
    }

    /// Of [exit thunks](super::exit_thunk), `size` bytes of them, of which all keep the return
    /// address there. Callers are found on `side_stacks`.
    ///
    /// `personality` is the address of a personality routine (Itanium C++ ABI, Exception Handling,
    /// section 2.5.2), if there is to be one: an unwinder calls it for each function that an
    /// exception leaves, of those that have these thunks. It finds nothing about the function but
    /// where its thunk is, and answers that unwinding goes on.
    #[must_use]
    pub fn of_exit_thunks(
        address: u64,
        size: usize,
        kept: Kept,
        side_stacks: &SideStackList,
        personality: Option<u64>,
    ) -> Self {
        let mut table = Self::with_personality(personality);
        let mut rows = table.of(address..address + size as u64);
        // One row for all of them: what holds, the place in the thunk says.
        match kept {
            Kept::OnSideStack => side_stack::exit_thunks(&mut rows, side_stacks),
            Kept::OnStack => frame::exit_thunks(&mut rows),
        }
        rows.end();
        table.end();
        table
    }

    /// Of an image with [`SideStackBodies`](super::SideStackBodies) or
    /// [`FrameBodies`](super::FrameBodies), and what may stand before them and leaves the stack as
    /// it is. Callers are found on `side_stacks`.
    #[must_use]
    pub fn of_bodies(image: u64, marks: &Marks, side_stacks: &SideStackList) -> Self {
        let mut table = Self::new();
        table.jumps(image..marks.start);
        match marks.kind {
            Kind::SideStack { framed, aside } => {
                side_stack::bodies(&mut table, marks, framed, &aside, side_stacks);
            }
            Kind::Frame { skip_until } => frame::bodies(&mut table, marks, skip_until),
        }
        table.end();
        table
    }
}

/// An address in the hooked function, as it is at its entry: what is called from there is called
/// by it. `register` points `into` so many bytes of its frame.
fn hooked_function(register: u8, into: i32) -> Expression {
    let mut function = Expression::new();
    function.load_at(register, offset_of!(ExitContext, function) as i32 - into);
    function.plus(1);
    function
}

/// Where bodies were emitted, and places in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub(super) start: u64,
    pub(super) exit: Part,
    pub(super) enter: Part,
    pub(super) kind: Kind,
}

/// What differs between the bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    SideStack {
        /// From here on in the enter body, `rbp` is in the frame.
        framed: u64,
        /// What stands between the bodies.
        aside: Aside,
    },
    Frame {
        /// Up to here in what skips the origin, before the enter body, `rbx` is the frame.
        skip_until: u64,
    },
}

impl Marks {
    /// The bodies.
    #[must_use]
    pub const fn bodies(&self) -> Bodies {
        let kept = match self.kind {
            Kind::SideStack { .. } => Kept::OnSideStack,
            Kind::Frame { .. } => Kept::OnStack,
        };
        Bodies { enter: self.enter.start, exit: self.exit.start, kept }
    }
}
