//! What runs when a hooked function with exit programs is entered.

use super::branch::Hardening;
use super::call_frame::{
    ARGUMENTS, clear_sessions, frame, free_frame, keep_arguments, keep_index, load_function,
    run_entries,
};
use super::calls::{
    VECTOR_ARGUMENTS, align_stack, check_sessions, forget_return_address, restore_vectors,
    save_vectors,
};
use super::exit_thunk::{Bodies, ENTER_TO_EXIT, ENTER_TO_UNHOOKED, Kept};
use super::leave::{Leave, Part, Return, align};
use super::side_stack::{FRAME_SIZE, SideStackPlace, field};
use super::unwind::Marks;
use crate::emit::{CookiePlace, EmitError, IndexFrom, ProgramCall, SESSIONS, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, Reg, cmp_imm, cmp_load64, cmpxchg64, inc_mem64, jcc, lea, lea_rip, mov_load32,
    mov_load64, mov_load64_fs, mov_reg_reg, mov_store64, pop, push, sub_imm, test_reg, xor_reg32,
};
use crate::encode::{CodeBuffer, EncodeError};

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
        let (enter, aside) = Enter {
            hardening,
            form: Form::Thunk { functions: self.functions, modify: self.modify },
            side_stack: self.side_stack,
            vectors: self.vectors,
            calls: self.entries,
            exits: self.exits,
        }
        .emit(code)?;
        let Aside { unhooked_until, full: unhooked_end, skip_until, .. } = aside;
        let kept = Kept::OnSideStack;
        Ok(Marks { start, exit, enter, unhooked_until, unhooked_end, skip_until, kept })
    }
}

/// What differs between the forms that keep return addresses on a side stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    /// Called by an exit thunk, which has put the index into `r11d` and acts on the flags.
    Thunk {
        /// Where the functions' entries stand.
        functions: CookiePlace,
        modify: &'a [ProgramCall],
    },
    /// Called by the patch site: puts `stub` in the place of the caller's return address.
    Swap { index: IndexFrom, return_to_entry: u16, stub: u64 },
}

/// The body that runs before a hooked function.
///
/// It makes the context in the frame on the side stack: what programs are shown at the entry is
/// what they are shown at the exit, stored once. On the ordinary stack are, from `rbp`
/// downwards: the caller's `rbp`, and three registers that the body works with.
pub(super) struct Enter<'a> {
    pub hardening: &'a Hardening,
    pub form: Form<'a>,
    pub side_stack: SideStackPlace,
    pub vectors: Vectors,
    pub calls: &'a [ProgramCall],
    /// What runs afterwards: the sessions that it has are made here.
    pub exits: &'a [ProgramCall],
}

/// The registers that the body works with, in the order in which they are saved.
const WORKING: [Reg; 3] = [Reg::Rax, Reg::Rbx, Reg::R10];
/// Bytes that restoring what is saved after `rbx` takes, and `rbp` after it.
const AFTER_RBX: u64 = 2;
/// The lowest of the words saved first.
const SAVED: Mem = Mem::at(Reg::Rbp, -8 * WORKING.len() as i32);
/// The return address that the body has been called with.
const RETURN: Mem = Mem::at(Reg::Rbp, 8);
/// That of the function.
const CALLER: Mem = Mem::at(Reg::Rbp, 16);

/// A field of the last frame, where `rbx` is the next one.
macro_rules! last {
    ($field:ident) => {
        Mem::at(Reg::Rbx, frame!(Reg::Rbx, $field).disp - FRAME_SIZE)
    };
}

/// Places in the body that what stands before it goes on at.
#[derive(Clone, Copy)]
struct Resume {
    /// `rax` is the side stack, `r11` the index; the last frame has to be looked at.
    again: u64,
    /// The same with the next frame in `rbx`, and no frame is stale.
    live: u64,
}

/// What stands before the body: what seldom runs.
#[derive(Clone, Copy)]
pub(super) struct Aside {
    no_side_stack: u64,
    /// Up to here in what calls go on at that run unhooked, `rbx` is the body's.
    unhooked_until: u64,
    /// Right behind what calls go on at that run unhooked.
    full: u64,
    /// The last frame's slot is at or below this function's.
    stale: u64,
    /// A program's result, in `rax`, is what the function returns.
    skip: u64,
    /// Up to here in that, `rbx` is the frame.
    skip_until: u64,
}

impl Enter<'_> {
    /// Emits the body. Gives where it is, and what stands before it.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(Part, Aside), EncodeError> {
        // What seldom runs goes on in the middle of the body: a first attempt elsewhere shows
        // where that is.
        let mut trial = [0; 1280];
        let mut trial = CodeBuffer::new(&mut trial, code.here());
        let here = trial.here();
        let aside = self.aside(&mut trial, Resume { again: here, live: here })?;
        let (_, resume) = self.begin(&mut trial, aside)?;

        let aside = self.aside(code, resume)?;
        let (start, _) = self.begin(code, aside)?;
        self.push_frame(code, aside)?;
        let found = code.here();
        self.run(code, aside)?;
        if self.hardening.returns_flags() {
            // Neither zero nor a carry comes of it.
            test_reg(code, Reg::Rsp, Reg::Rsp)?;
        }
        restore_working(code)?;
        let returns = code.here();
        self.hardening.body_end(code)?;
        let until = returns.wrapping_sub(AFTER_RBX);
        Ok((Part { start, found, until, returns, end: code.here() }, aside))
    }

    /// Finds the side stack and looks at the last frame.
    fn begin(&self, code: &mut CodeBuffer<'_>, aside: Aside) -> Result<(u64, Resume), EncodeError> {
        align(code)?;
        let start = code.here();
        push(code, Reg::Rbp)?;
        mov_reg_reg(code, Reg::Rbp, Reg::Rsp)?;
        for register in WORKING {
            push(code, register)?;
        }
        if let Form::Swap { index: IndexFrom::Slot { return_to_index }, .. } = self.form {
            mov_load64(code, Reg::R11, RETURN)?;
            mov_load32(code, Reg::R11, Mem::at(Reg::R11, -i32::from(return_to_index)))?;
        }
        mov_load64_fs(code, Reg::Rax, self.side_stack.thread_offset)?;
        test_reg(code, Reg::Rax, Reg::Rax)?;
        jcc(code, Condition::Equal, aside.no_side_stack)?;
        let again = code.here();
        mov_load64(code, Reg::Rbx, Mem::at(Reg::Rax, field::TOP))?;
        cmp_load64(code, Reg::Rbp, last!(slot))?;
        jcc(code, Condition::AboveOrEqual, aside.stale)?;
        // A signal handler may have dropped that frame before it was looked at.
        cmp_load64(code, Reg::Rbx, Mem::at(Reg::Rax, field::TOP))?;
        jcc(code, Condition::NotEqual, again)?;
        Ok((start, Resume { again, live: code.here() }))
    }

    /// Takes the frame at `rbx` and fills it. Expects the index in `r11`.
    fn push_frame(&self, code: &mut CodeBuffer<'_>, aside: Aside) -> Result<(), EncodeError> {
        cmp_load64(code, Reg::Rbx, Mem::at(Reg::Rax, field::END))?;
        jcc(code, Condition::AboveOrEqual, aside.full)?;
        // From here on a signal handler leaves the frame alone.
        lea(code, Reg::R10, Mem::at(Reg::Rbx, FRAME_SIZE))?;
        mov_store64(code, Mem::at(Reg::Rax, field::TOP), Reg::R10)?;
        // In the order of the frame, because a core may join stores to one line of the cache
        // that follow each other.
        keep_arguments(code)?;
        keep_index(code, self.vectors)?;
        match self.form {
            Form::Thunk { functions, .. } => load_function(code, functions)?,
            Form::Swap { return_to_entry, .. } => {
                mov_load64(code, Reg::R10, RETURN)?;
                lea(code, Reg::R10, Mem::at(Reg::R10, -i32::from(return_to_entry)))?;
            }
        }
        mov_store64(code, frame!(Reg::Rbx, function), Reg::R10)?;
        mov_store64(code, frame!(Reg::Rbx, slot), Reg::Rbp)?;
        if let Form::Thunk { .. } = self.form {
            mov_load64(code, Reg::R10, RETURN)?;
            mov_store64(code, frame!(Reg::Rbx, through), Reg::R10)?;
        }
        mov_load64(code, Reg::R10, CALLER)?;
        mov_store64(code, frame!(Reg::Rbx, caller), Reg::R10)?;
        clear_sessions(code, self.calls, self.exits)
    }

    /// Runs the programs on the frame in `rbx`, and leaves the stack pointer at what was saved.
    fn run(&self, code: &mut CodeBuffer<'_>, aside: Aside) -> Result<(), EncodeError> {
        let modify = self.form.modify();
        if !self.calls.is_empty() || !modify.is_empty() {
            run_entries(code, self.hardening, self.vectors, self.calls, modify, aside.skip)?;
            lea(code, Reg::Rsp, SAVED)?;
        }
        if let Form::Swap { stub, .. } = self.form {
            lea_rip(code, Reg::R11, stub)?;
            mov_store64(code, CALLER, Reg::R11)?;
        }
        Ok(())
    }

    /// Emits what seldom runs. All of it but the last finds the stack pointer at what was saved.
    /// Where flags do not tell the thunk where to go on, what runs returns there.
    fn aside(&self, code: &mut CodeBuffer<'_>, resume: Resume) -> Result<Aside, EncodeError> {
        let unhooked = code.here();
        if self.hardening.returns_flags() {
            // Sets the carry and clears zero: the largest number is larger than the stack pointer.
            cmp_imm(code, Reg::Rsp, -1)?;
        } else {
            mov_load64(code, Reg::R11, RETURN)?;
            lea(code, Reg::R11, Mem::at(Reg::R11, ENTER_TO_UNHOOKED))?;
            mov_store64(code, RETURN, Reg::R11)?;
        }
        restore_working(code)?;
        let unhooked_until = code.here().wrapping_sub(AFTER_RBX);
        self.hardening.body_end(code)?;

        let full = code.here();
        inc_mem64(code, Mem::at(Reg::Rax, field::OVERFLOWED))?;
        self.hardening.jump(code, unhooked)?;

        // A signal handler that comes in between may drop the same frame, and others.
        let abandoned = code.here();
        mov_reg_reg(code, Reg::R10, Reg::Rax)?;
        sub_imm(code, Reg::Rbx, FRAME_SIZE)?;
        free_frame(code, Reg::Rbx)?;
        lea(code, Reg::Rax, Mem::at(Reg::Rbx, FRAME_SIZE))?;
        cmpxchg64(code, Mem::at(Reg::R10, field::TOP), Reg::Rbx)?;
        mov_reg_reg(code, Reg::Rax, Reg::R10)?;
        jcc(code, Condition::NotEqual, resume.again)?;
        inc_mem64(code, Mem::at(Reg::Rax, field::ABANDONED))?;
        self.hardening.jump(code, resume.again)?;

        let stale = code.here();
        // A frame that is being taken, by what this interrupts, may never have been used.
        mov_load64(code, Reg::R10, last!(slot))?;
        test_reg(code, Reg::R10, Reg::R10)?;
        jcc(code, Condition::Equal, resume.live)?;
        // A function that is reached by a tail call has the slot of the one that called it,
        // which is not left: this one will return to where that one would have.
        cmp_load64(code, Reg::Rbp, last!(slot))?;
        jcc(code, Condition::NotEqual, abandoned)?;
        match self.form {
            Form::Thunk { .. } => {
                mov_load64(code, Reg::R10, CALLER)?;
                sub_imm(code, Reg::R10, ENTER_TO_EXIT)?;
                cmp_load64(code, Reg::R10, last!(through))?;
            }
            Form::Swap { stub, .. } => {
                lea_rip(code, Reg::R10, stub)?;
                cmp_load64(code, Reg::R10, CALLER)?;
            }
        }
        jcc(code, Condition::NotEqual, abandoned)?;
        self.hardening.jump(code, resume.live)?;

        let no_side_stack = match self.side_stack.make {
            None => unhooked,
            Some(make) => {
                let at = code.here();
                push(code, Reg::R11)?;
                for argument in ARGUMENTS {
                    push(code, argument)?;
                }
                align_stack(code, make.vectors)?;
                save_vectors(code, make.vectors, VECTOR_ARGUMENTS)?;
                self.hardening.call_anywhere(code, make.target, false)?;
                restore_vectors(code, make.vectors, VECTOR_ARGUMENTS)?;
                forget_return_address(code)?;
                let pushed = 8 * (1 + ARGUMENTS.len() as i32);
                lea(code, Reg::Rsp, Mem::at(SAVED.base, SAVED.disp - pushed))?;
                for argument in ARGUMENTS.into_iter().rev() {
                    pop(code, argument)?;
                }
                pop(code, Reg::R11)?;
                test_reg(code, Reg::Rax, Reg::Rax)?;
                jcc(code, Condition::Equal, unhooked)?;
                self.hardening.jump(code, resume.again)?;
                at
            }
        };
        let skip = code.here();
        let mut skip_until = skip;
        if !self.form.modify().is_empty() {
            forget_return_address(code)?;
            mov_reg_reg(code, Reg::R11, Reg::Rax)?;
            lea(code, Reg::Rsp, SAVED)?;
            if !self.hardening.returns_flags() {
                mov_load64(code, Reg::R10, RETURN)?;
                lea(code, Reg::R10, Mem::at(Reg::R10, ENTER_TO_EXIT))?;
                // What the thunk would have taken off the stack.
                mov_store64(code, CALLER, Reg::R10)?;
            }
            restore_working(code)?;
            skip_until = code.here().wrapping_sub(AFTER_RBX);
            mov_reg_reg(code, Reg::Rax, Reg::R11)?;
            // Sets zero and clears the carry.
            xor_reg32(code, Reg::Rdx, Reg::Rdx)?;
            if !self.hardening.returns_flags() {
                lea(code, Reg::Rsp, Mem::at(Reg::Rsp, 8))?;
            }
            self.hardening.body_end(code)?;
        }
        Ok(Aside { no_side_stack, unhooked_until, full, stale, skip, skip_until })
    }
}

impl<'a> Form<'a> {
    const fn modify(&self) -> &'a [ProgramCall] {
        match *self {
            Self::Thunk { modify, .. } => modify,
            Self::Swap { .. } => &[],
        }
    }
}

/// Restores what the body worked with. Changes no flags.
fn restore_working(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    for register in WORKING.into_iter().rev() {
        pop(code, register)?;
    }
    pop(code, Reg::Rbp)
}
