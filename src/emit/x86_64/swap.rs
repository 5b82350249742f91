//! The return-address swap, for comparison.

use super::branch::Hardening;
use super::calls::check_sessions;
use super::enter::{Enter, Form};
use super::exit_thunk::{Bodies, Kept};
use super::leave::{Leave, Return};
use super::side_stack::SideStackPlace;
use crate::emit::{EmitError, IndexFrom, ProgramCall, SESSIONS, Vectors};
use crate::encode::CodeBuffer;

/// The bodies of the form that function graph tracers use: the patch site calls `enter`, which
/// puts the address of `exit` in the place of the caller's return address, and `exit` jumps
/// back to the caller.
///
/// It gives programs what [`SideStackBodies`](super::SideStackBodies) gives them, and exists
/// to be compared with it. The function's `ret` and the jump in `exit` are both mispredicted
/// by a return-stack predictor that expects the caller; a hardware shadow stack forbids that
/// `ret`; and a caller's landing pad, if it had one, would be missed by the jump.
#[derive(Clone, Copy, Debug)]
pub struct SwapBodies<'a> {
    /// How the function's index is found.
    pub index: IndexFrom,
    /// Bytes from the entry to the return address that `enter` sees
    /// ([`EntryLayout::return_to_entry`](crate::layout::EntryLayout::return_to_entry)).
    pub return_to_entry: u16,
    /// How the thread's side stack is found.
    pub side_stack: SideStackPlace,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The entry programs, in the order in which they run.
    pub entries: &'a [ProgramCall],
    /// The exit programs, in the order of their attachment: they run in reverse.
    pub exits: &'a [ProgramCall],
}

impl SwapBodies<'_> {
    /// Bytes that the bodies of so many programs can take at the most.
    #[must_use]
    pub const fn max_size(entries: usize, exits: usize) -> usize {
        super::SideStackBodies::max_size(entries, exits)
    }

    /// Emits both bodies for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Session`] if a program is to get a session word that no call has.
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`max_size`](Self::max_size)
    /// says how many are enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Bodies, EmitError> {
        check_sessions(&[self.entries, self.exits], SESSIONS)?;
        let exit = Leave {
            hardening: &Hardening::NONE,
            thread_offset: self.side_stack.thread_offset,
            vectors: self.vectors,
            calls: self.exits,
            back: Return::Jump,
        }
        .emit(code)?;
        let (enter, ..) = Enter {
            hardening: &Hardening::NONE,
            form: Form::Swap {
                index: self.index,
                return_to_entry: self.return_to_entry,
                stub: exit.start,
            },
            side_stack: self.side_stack,
            vectors: self.vectors,
            calls: self.entries,
            exits: self.exits,
        }
        .emit(code)?;
        Ok(Bodies { enter: enter.start, exit: exit.start, kept: Kept::OnSideStack })
    }
}
