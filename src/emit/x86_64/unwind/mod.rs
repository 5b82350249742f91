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
mod table;

use super::entry::BODY_END;
use super::exit_thunk::{EXIT_THUNK_SIZE, MOVED};
use super::leave::{Bodies, Part};
use super::side_stack::SLOT_ABOVE;
use crate::emit::ExitContext;
use expression::Expression;
pub use expression::SideStackList;
pub use table::UnwindTable;
use table::{RBP, RBX, RSP};

/// Bytes from the slot of the return address to the value of `rsp` in the caller.
const SLOT: u8 = 8;

/// What a thunk's CFA is above the caller's stack pointer, while the caller's return address is
/// on the side stack. By its callee's CFA an unwinder tells a frame from others, and that of
/// the thunk's callee, which is where the thunk would be without it, is that stack pointer. No
/// other frame's is anything but a multiple of 8.
const IDENTITY: u8 = 4;

impl UnwindTable {
    /// Of an [`EntryBody`](super::EntryBody) of `size` bytes, emitted for `address`.
    #[must_use]
    pub fn of_entry_body(address: u64, size: usize) -> Self {
        let mut table = Self::new();
        let mut rows = table.of(address..address + size as u64);
        rows.push_rbp();
        rows.before_end(BODY_END);
        rows.cfa(RSP, SLOT);
        rows.same(RBP);
        rows.end();
        table.end();
        table
    }

    /// Of [entry thunks](super::entry_thunk), `size` bytes of them.
    #[must_use]
    pub fn of_entry_thunks(address: u64, size: usize) -> Self {
        let mut table = Self::new();
        table.of(address..address + size as u64).end();
        table.end();
        table
    }

    /// Of [exit thunks](super::exit_thunk), `size` bytes of them. Callers are found on
    /// `side_stacks`.
    #[must_use]
    pub fn of_exit_thunks(address: u64, size: usize, side_stacks: &SideStackList) -> Self {
        let mut table = Self::new();
        let mut rows = table.of(address..address + size as u64);
        // One row for all of them: what holds, the place in the thunk says.
        let mut cfa = Expression::new();
        cfa.register(RSP);
        cfa.is_within(EXIT_THUNK_SIZE as u8, MOVED);
        cfa.choose(|rsp| rsp.plus(SLOT), |rsp| rsp.plus(IDENTITY));
        rows.cfa_is(&cfa);
        let mut rsp = Expression::new();
        rsp.round_down_to_word();
        rows.value_is(RSP, &rsp);
        let mut caller = Expression::new();
        caller.is_within(EXIT_THUNK_SIZE as u8, MOVED);
        caller.choose(
            |cfa| {
                cfa.minus(SLOT);
                cfa.load();
            },
            |cfa| {
                cfa.minus(IDENTITY);
                cfa.find_caller(side_stacks);
            },
        );
        rows.return_address_is(&caller);
        rows.end();
        table.end();
        table
    }

    /// Of an image with [`SideStackBodies`](super::SideStackBodies), with what may stand before
    /// them and leaves the stack alone. Callers are found on `side_stacks`.
    #[must_use]
    pub fn of_side_stack_bodies(image: u64, marks: &Marks, side_stacks: &SideStackList) -> Self {
        let mut table = Self::new();
        let mut by_slot = Expression::new();
        by_slot.find_caller(side_stacks);
        // The hooked function, as it is at its entry: what is called from there is called by it.
        let mut function = Expression::new();
        function.load_at(RBX, core::mem::offset_of!(ExitContext, function) as i32);
        function.plus(1);

        table.of(image..marks.start).end();

        // The search for the frame of a function that others were left in.
        let mut rows = table.of(marks.start..marks.exit.start);
        rows.in_leave_body();
        rows.return_address_is(&by_slot);
        rows.end();

        let mut rows = table.of(marks.exit.start..marks.exit.end);
        rows.cfa(RSP, 0);
        rows.return_address_is(&by_slot);
        rows.advance(4);
        rows.cfa(RSP, 8);
        rows.advance(1);
        rows.cfa(RSP, 16);
        rows.saved(RBX, 16);
        rows.advance(1);
        rows.in_leave_body();
        rows.cfa(RSP, 24);
        rows.advance(3);
        rows.cfa(RBP, 24);
        // The slot is below the stack pointer, as it is at a function's entry.
        rows.at(marks.exit.found);
        rows.cfa(RBP, SLOT_ABOVE as u8);
        rows.saved(RBX, 8);
        rows.saved(RBP, 16);
        rows.return_address_is(&function);
        // Its frame is not the thread's any more.
        rows.before_end(21);
        rows.in_leave_body();
        rows.return_address_at(SLOT);
        rows.before_end(3);
        rows.cfa(RSP, 16);
        rows.same(RBP);
        rows.before_end(2);
        rows.cfa(RSP, 8);
        rows.same(RBX);
        rows.end();

        // What returns to a thunk whose function runs unhooked, and what else seldom runs.
        let mut rows = table.of(marks.exit.end..marks.enter.start);
        rows.in_enter_body();
        rows.advance(7);
        rows.same(RBX);
        rows.advance(2);
        rows.cfa(RSP, SLOT);
        rows.same(RBP);
        rows.advance(2);
        rows.in_enter_body();
        rows.at(marks.skip);
        rows.advance(17);
        rows.same(RBX);
        rows.advance(2);
        rows.cfa(RSP, SLOT);
        rows.same(RBP);
        rows.end();

        let mut rows = table.of(marks.enter.start..marks.enter.end);
        rows.push_rbp();
        rows.advance(2);
        rows.in_enter_body();
        rows.at(marks.enter.found);
        rows.return_address_is(&function);
        rows.before_end(4);
        rows.same(RBX);
        rows.return_address_at(SLOT);
        rows.before_end(2);
        rows.cfa(RSP, SLOT);
        rows.same(RBP);
        rows.end();
        table.end();
        table
    }
}

/// Where [`SideStackBodies`](super::SideStackBodies) were emitted, and places in them.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    pub(super) start: u64,
    pub(super) exit: Part,
    pub(super) enter: Part,
    /// What skips the origin, before the enter body.
    pub(super) skip: u64,
}

impl Marks {
    /// The bodies.
    #[must_use]
    pub const fn bodies(&self) -> Bodies {
        Bodies { enter: self.enter.start, exit: self.exit.start }
    }
}
