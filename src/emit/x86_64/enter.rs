//! What runs when a hooked function with exit programs is entered.

use super::branch::{Hardening, LINE};
use super::call_frame::{ARGUMENTS, Programs, field, load_function};
use super::calls::{
    VECTOR_ARGUMENTS, align_stack, forget_return_address, restore_vectors, save_vectors,
};
use super::exit_thunk::{ENTER_TO_EXIT, ENTER_TO_UNHOOKED};
use super::leave::{Part, align_behind};
use super::side_stack::{FRAME, FRAME_SIZE, FRAME_SLOT, LINK, SLOT_ABOVE, SideStackPlace, control};
use crate::emit::{CookiePlace, IndexFrom, ProgramCall, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, NOP_MAX, Reg, add_imm, cmp_imm, cmp_load64, cmpxchg64, dec_mem64, inc_mem64,
    jcc, jcc_short, lea, lea_rip, mov_load32, mov_load64, mov_load64_fs, mov_reg_reg, mov_store64,
    nop, pop, push, sub_imm, test_reg, xor_reg32,
};
use crate::encode::{CodeBuffer, EncodeError};

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
/// what they are shown at the exit, stored once. On the ordinary stack are, below its return
/// address, the two registers that it works with; `rsp` points at them when the frame is looked
/// for, taken and filled.
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
const WORKING: [Reg; 2] = [Reg::Rax, Reg::R10];
/// The return address that the body has been called with.
const RETURN: Mem = Mem::at(Reg::Rsp, SLOT_ABOVE - 8);
/// That of the function.
const CALLER: Mem = Mem::at(Reg::Rsp, SLOT_ABOVE);
static_assertions::const_assert_eq!(SLOT_ABOVE as usize, 8 * WORKING.len() + 8);

/// The last frame in use, and then the one that is taken.
const LAST: Mem = Mem::at(Reg::R10, -LINK);
const TAKEN: Mem = LAST;

/// Where a frame has the thunk's return address until the function returns: what tells a tail
/// call of the function from a frame that was left behind.
macro_rules! through {
    ($frame:expr) => {
        field!($frame, rdx)
    };
}

/// Places in the body that what stands before it goes on at.
#[derive(Clone, Copy)]
struct Resume {
    /// `rax` is the side stack, `r11` the index; the last frame has to be looked at.
    again: u64,
    /// The same with that frame's link in `r10`, and it is not stale.
    live: u64,
    /// The frame with its link in `r10` has been taken.
    taken: u64,
}

/// What stands before the body: what seldom runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aside {
    /// Restores registers for a call that runs unhooked, which is what begins it.
    pub unhooked: u64,
    /// Every frame is in use.
    pub full: u64,
    /// A handler has used the frame that has been taken since its slot was written.
    pub used: u64,
    /// Between these, a word more is on the stack.
    pub dropping: (u64, u64),
    /// The last frame's slot is at or below this function's.
    pub stale: u64,
    /// Between these, a side stack is made; both are one where nothing makes any.
    pub making: (u64, u64),
    /// A program's result, in `rax`, is what the function returns.
    pub skip: u64,
    /// Up to here in that, `rbp` is in the frame. The same where nothing skips the function.
    pub skip_until: u64,
    /// Behind all of it.
    pub end: u64,
}

/// Jumps to what seldom runs, right before the body.
struct WayOut {
    no_side_stack: u64,
    stale: u64,
    full: u64,
    used: u64,
}

impl Enter<'_> {
    /// Emits the body. Gives where it is, from where on in it `rbp` is in the frame, and what
    /// stands before it.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(Part, u64, Aside), EncodeError> {
        // What seldom runs goes on in the middle of the body: a first attempt elsewhere shows
        // where that is.
        let mut trial = [0; 1280];
        let mut trial = CodeBuffer::new(&mut trial, code.here());
        let here = trial.here();
        let aside = self.aside(&mut trial, Resume { again: here, live: here, taken: here })?;
        let (_, resume) = self.begin(&mut trial, &aside)?;

        let aside = self.aside(code, resume)?;
        let (start, _) = self.begin(code, &aside)?;
        let framed = code.here();
        // Code is read by lines of the cache: if one ends here, what follows begins with the next.
        let missing = (LINE - framed % LINE) as usize;
        if missing <= NOP_MAX {
            nop(code, missing)?;
        }
        self.fill(code)?;
        let found = code.here();
        self.run(code, aside)?;
        if self.hardening.returns_flags() {
            // Neither zero nor a carry comes of it.
            test_reg(code, Reg::Rsp, Reg::Rsp)?;
        }
        mov_load64(code, Reg::Rbp, field!(FRAME, link))?;
        let until = code.here();
        restore_working(code)?;
        let returns = code.here();
        self.hardening.body_end(code)?;
        Ok((Part { start, found, until, returns, end: code.here() }, framed, aside))
    }

    /// Emits jumps to what seldom runs, in reach of short ones: the fewer bytes a body has, the
    /// sooner a processor has read it.
    fn way_out(&self, code: &mut CodeBuffer<'_>, aside: &Aside) -> Result<WayOut, EncodeError> {
        align_behind(code, 4 * self.hardening.jump_size())?;
        let mut jump = |target| {
            let here = code.here();
            self.hardening.jump(code, target)?;
            Ok(here)
        };
        Ok(WayOut {
            no_side_stack: jump(aside.making.0)?,
            stale: jump(aside.stale)?,
            full: jump(aside.full)?,
            used: jump(aside.used)?,
        })
    }

    /// Finds the side stack, looks at its last frame, and takes the next.
    fn begin(
        &self,
        code: &mut CodeBuffer<'_>,
        aside: &Aside,
    ) -> Result<(u64, Resume), EncodeError> {
        let out = self.way_out(code, aside)?;
        let start = code.here();
        for register in WORKING {
            push(code, register)?;
        }
        if let Form::Swap { index: IndexFrom::Slot { return_to_index }, .. } = self.form {
            mov_load64(code, Reg::R11, RETURN)?;
            mov_load32(code, Reg::R11, Mem::at(Reg::R11, -i32::from(return_to_index)))?;
        }
        self.load_side_stack(code)?;
        test_reg(code, Reg::Rax, Reg::Rax)?;
        jcc_short(code, Condition::Equal, out.no_side_stack)?;
        let again = code.here();
        mov_load64(code, Reg::R10, Mem::at(Reg::Rax, control::LAST))?;
        cmp_load64(code, Reg::Rsp, field!(LAST, slot))?;
        jcc_short(code, Condition::AboveOrEqual, out.stale)?;
        let live = code.here();
        cmp_load64(code, Reg::R10, Mem::at(Reg::Rax, control::END))?;
        jcc_short(code, Condition::AboveOrEqual, out.full)?;
        add_imm(code, Reg::R10, FRAME_SIZE)?;
        mov_store64(code, field!(TAKEN, slot), Reg::Rsp)?;
        mov_store64(code, field!(TAKEN, link), Reg::Rbp)?;
        mov_store64(code, Mem::at(Reg::Rax, control::LAST), Reg::R10)?;
        let taken = code.here();
        cmp_load64(code, Reg::Rsp, field!(TAKEN, slot))?;
        jcc_short(code, Condition::NotEqual, out.used)?;
        mov_reg_reg(code, Reg::Rbp, Reg::R10)?;
        Ok((start, Resume { again, live, taken }))
    }

    fn load_side_stack(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        mov_load64_fs(code, Reg::Rax, self.side_stack.thread_offset)
    }

    /// Fills the frame. Expects the index in `r11`.
    fn fill(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        let programs = self.programs();
        // In the order of the frame, because a core may join stores to one line of the cache
        // that follow each other.
        programs.keep_arguments(code)?;
        if let Form::Thunk { .. } = self.form {
            mov_load64(code, Reg::R10, RETURN)?;
            mov_store64(code, through!(FRAME), Reg::R10)?;
        }
        programs.keep_index(code)?;
        match self.form {
            Form::Thunk { functions, .. } => load_function(code, functions)?,
            Form::Swap { return_to_entry, .. } => {
                mov_load64(code, Reg::R10, RETURN)?;
                lea(code, Reg::R10, Mem::at(Reg::R10, -i32::from(return_to_entry)))?;
            }
        }
        mov_store64(code, field!(FRAME, function), Reg::R10)?;
        mov_load64(code, Reg::R10, CALLER)?;
        mov_store64(code, field!(FRAME, caller), Reg::R10)?;
        programs.clear_sessions(code)
    }

    /// Runs the programs, and leaves the stack pointer at what was saved.
    fn run(&self, code: &mut CodeBuffer<'_>, aside: Aside) -> Result<(), EncodeError> {
        let programs = self.programs();
        if !programs.entries.is_empty() || !programs.modify.is_empty() {
            programs.run_entries(code, aside.skip)?;
            mov_load64(code, Reg::Rsp, FRAME_SLOT)?;
        }
        if let Form::Swap { stub, .. } = self.form {
            lea_rip(code, Reg::R11, stub)?;
            mov_store64(code, CALLER, Reg::R11)?;
        }
        Ok(())
    }

    const fn programs(&self) -> Programs<'_> {
        Programs {
            hardening: self.hardening,
            vectors: self.vectors,
            frame: FRAME,
            entries: self.calls,
            modify: self.form.modify(),
            exits: self.exits,
        }
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
        let restores = code.here();
        restore_working(code)?;
        self.hardening.body_end(code)?;

        let full = code.here();
        inc_mem64(code, Mem::at(Reg::Rax, control::OVERFLOWED))?;
        self.hardening.jump(code, unhooked)?;

        let used = code.here();
        mov_store64(code, field!(TAKEN, slot), Reg::Rsp)?;
        mov_store64(code, field!(TAKEN, link), Reg::Rbp)?;
        cmp_load64(code, Reg::R10, Mem::at(Reg::Rax, control::LAST))?;
        jcc(code, Condition::Equal, resume.taken)?;
        // Another handler has dropped it, and counted it, by the slot of the first.
        dec_mem64(code, Mem::at(Reg::Rax, control::ABANDONED))?;
        self.hardening.jump(code, resume.again)?;

        let (dropping, stale) = self.drop_stale(code, resume)?;
        let making = self.make(code, unhooked, resume)?;
        let skip = code.here();
        let skip_until = if self.form.modify().is_empty() { skip } else { self.skip(code)? };
        let end = code.here();
        Ok(Aside { unhooked: restores, full, used, dropping, stale, making, skip, skip_until, end })
    }

    /// Emits what drops the last frame, if it was left behind. Gives between which places there is
    /// a word more on the stack, and where to begin.
    fn drop_stale(
        &self,
        code: &mut CodeBuffer<'_>,
        resume: Resume,
    ) -> Result<((u64, u64), u64), EncodeError> {
        // A signal handler that comes in between may drop the same frame, and others.
        let left = code.here();
        push(code, Reg::R11)?;
        let from = code.here();
        mov_reg_reg(code, Reg::R11, Reg::Rax)?;
        mov_reg_reg(code, Reg::Rax, Reg::R10)?;
        sub_imm(code, Reg::R10, FRAME_SIZE)?;
        cmpxchg64(code, Mem::at(Reg::R11, control::LAST), Reg::R10)?;
        mov_reg_reg(code, Reg::Rax, Reg::R11)?;
        pop(code, Reg::R11)?;
        let until = code.here();
        jcc(code, Condition::NotEqual, resume.again)?;
        inc_mem64(code, Mem::at(Reg::Rax, control::ABANDONED))?;
        self.hardening.jump(code, resume.again)?;

        let stale = code.here();
        // A function that is reached by a tail call has the slot of the one that called it,
        // which is not left: this one will return to where that one would have.
        jcc(code, Condition::NotEqual, left)?;
        match self.form {
            Form::Thunk { .. } => {
                mov_load64(code, Reg::Rax, CALLER)?;
                sub_imm(code, Reg::Rax, ENTER_TO_EXIT)?;
                cmp_load64(code, Reg::Rax, through!(LAST))?;
            }
            Form::Swap { stub, .. } => {
                lea_rip(code, Reg::Rax, stub)?;
                cmp_load64(code, Reg::Rax, CALLER)?;
            }
        }
        self.load_side_stack(code)?;
        jcc(code, Condition::NotEqual, left)?;
        self.hardening.jump(code, resume.live)?;
        Ok(((from, until), stale))
    }

    /// Emits what makes a side stack, and goes on with it or at `unhooked`. Gives between which
    /// places it has a stack frame of its own.
    fn make(
        &self,
        code: &mut CodeBuffer<'_>,
        unhooked: u64,
        resume: Resume,
    ) -> Result<(u64, u64), EncodeError> {
        let Some(make) = self.side_stack.make else {
            return Ok((unhooked, unhooked));
        };
        let start = code.here();
        push(code, Reg::Rbp)?;
        mov_reg_reg(code, Reg::Rbp, Reg::Rsp)?;
        push(code, Reg::R11)?;
        for argument in ARGUMENTS {
            push(code, argument)?;
        }
        align_stack(code, make.vectors)?;
        save_vectors(code, make.vectors, VECTOR_ARGUMENTS)?;
        self.hardening.call_anywhere(code, make.target, false)?;
        restore_vectors(code, make.vectors, VECTOR_ARGUMENTS)?;
        forget_return_address(code)?;
        lea(code, Reg::Rsp, Mem::at(Reg::Rbp, -8 * (1 + ARGUMENTS.len() as i32)))?;
        for argument in ARGUMENTS.into_iter().rev() {
            pop(code, argument)?;
        }
        pop(code, Reg::R11)?;
        pop(code, Reg::Rbp)?;
        let until = code.here();
        test_reg(code, Reg::Rax, Reg::Rax)?;
        jcc(code, Condition::Equal, unhooked)?;
        self.hardening.jump(code, resume.again)?;
        Ok((start, until))
    }

    /// Emits what skips the function. Gives up to where `rbp` is in the frame.
    fn skip(&self, code: &mut CodeBuffer<'_>) -> Result<u64, EncodeError> {
        forget_return_address(code)?;
        mov_reg_reg(code, Reg::R11, Reg::Rax)?;
        mov_load64(code, Reg::Rsp, FRAME_SLOT)?;
        if !self.hardening.returns_flags() {
            mov_load64(code, Reg::R10, RETURN)?;
            lea(code, Reg::R10, Mem::at(Reg::R10, ENTER_TO_EXIT))?;
            // What the thunk would have taken off the stack.
            mov_store64(code, CALLER, Reg::R10)?;
        }
        mov_load64(code, Reg::Rbp, field!(FRAME, link))?;
        let until = code.here();
        restore_working(code)?;
        mov_reg_reg(code, Reg::Rax, Reg::R11)?;
        // Sets zero and clears the carry.
        xor_reg32(code, Reg::Rdx, Reg::Rdx)?;
        if !self.hardening.returns_flags() {
            lea(code, Reg::Rsp, Mem::at(Reg::Rsp, 8))?;
        }
        self.hardening.body_end(code)?;
        Ok(until)
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
    Ok(())
}
