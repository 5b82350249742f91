//! Entry and exit with return addresses on a side stack.

use super::branch::Hardening;
use super::calls::check_sessions;
use super::enter::{Enter, Form};
use super::exit_thunk::Bodies;
use super::leave::{Leave, Return};
use super::side_stack::SideStackPlace;
use super::unwind::{Kind, Marks};
use crate::emit::{CookiePlace, EmitError, ProgramCall, SESSIONS, Vectors};
use crate::encode::CodeBuffer;

/// The bodies that the [thunks](super::exit_thunk) of any number of functions call and jump
/// to, to run the same programs at entry and exit.
///
/// Before the function `enter` moves the caller's return address to the thread's
/// [`SideStack`](super::SideStack) and runs the entry programs, each as
/// `program(context, cookie, data, session)`: `context` is a [`Context`](crate::emit::Context).
/// Then it runs those that may modify the return, in order, until one returns what is not
/// zero: the origin is then skipped, and this is what it seems to have returned, in `rax`.
/// `enter` changes what an [`EntryBody`](super::EntryBody) changes.
///
/// After the function `exit` runs the exit programs, in the reverse of their order here, each
/// as `program(context, cookie, data, session)`: `context` is an
/// [`ExitContext`](crate::emit::ExitContext).
/// It keeps `rax`, `rdx` and the vector registers 0 and 1, as wide as [`Vectors`] says. The x87
/// stack stays as it is, because programs compiled for SSE leave it alone: an exit program must
/// not use `long double`. Registers that hold no return value are changed as the psABI allows
/// any function.
///
/// A call runs unhooked, origin only, when the thread has no side stack or no frame is free.
#[derive(Clone, Copy, Debug)]
pub struct SideStackBodies<'a> {
    /// Where the functions' entries stand, found by their index.
    pub functions: CookiePlace,
    /// How the thread's side stack is found.
    pub side_stack: SideStackPlace,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The entry programs, in the order in which they run.
    pub entries: &'a [ProgramCall],
    /// The programs that may modify the return, in the order in which they run.
    pub modify: &'a [ProgramCall],
    /// The exit programs, in the order of their attachment.
    pub exits: &'a [ProgramCall],
}

impl SideStackBodies<'_> {
    /// Bytes that the bodies of so many programs can take at the most: `entries` and `modify`
    /// together, and `exits`.
    #[must_use]
    pub const fn max_size(entries: usize, exits: usize) -> usize {
        1152 + 96 * entries + 80 * exits
    }

    /// The same with mitigations.
    #[must_use]
    pub const fn max_hardened_size(entries: usize, exits: usize) -> usize {
        Self::max_size(entries, exits) + Hardening::MAX_SIZE * (entries + exits + 6)
    }

    /// Emits both bodies for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Session`] if a program is to get a session word that no call has.
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`max_size`](Self::max_size)
    /// says how many are enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Bodies, EmitError> {
        Ok(self.emit_marked(code)?.bodies())
    }

    /// As [`emit`](Self::emit), with what an
    /// [unwind table](super::UnwindTable::of_bodies) has to know.
    ///
    /// # Errors
    /// As those of [`emit`](Self::emit).
    pub fn emit_marked(&self, code: &mut CodeBuffer<'_>) -> Result<Marks, EmitError> {
        self.emit_hardened(code, &Hardening::NONE)
    }

    /// As [`emit_marked`](Self::emit_marked), with mitigations. A check is that of the programs'
    /// type, for those that a direct call does not reach. What makes a
    /// side stack is called without one: by direct calls only, where entries are guarded. Thunks
    /// are those of [`exit_thunk_hardened`](super::exit_thunk_hardened).
    ///
    /// # Errors
    /// As those of [`emit`](Self::emit), where [`max_hardened_size`](Self::max_hardened_size)
    /// says how many bytes are enough, or if a thunk or the count of calls is 2 GiB or more away.
    pub fn emit_hardened(
        &self,
        code: &mut CodeBuffer<'_>,
        hardening: &Hardening,
    ) -> Result<Marks, EmitError> {
        check_sessions(&[self.entries, self.modify, self.exits], SESSIONS)?;
        let start = code.here();
        let exit = Leave {
            hardening,
            thread_offset: self.side_stack.thread_offset,
            vectors: self.vectors,
            calls: self.exits,
            back: Return::Ret,
        }
        .emit(code)?;
        let (enter, framed, aside) = Enter {
            hardening,
            form: Form::Thunk { functions: self.functions, modify: self.modify },
            side_stack: self.side_stack,
            vectors: self.vectors,
            calls: self.entries,
            exits: self.exits,
        }
        .emit(code)?;
        Ok(Marks { start, exit, enter, kind: Kind::SideStack { framed, aside } })
    }
}
