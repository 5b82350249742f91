//! What runs when a hooked function with exit programs is entered.

use super::entry::{
    CALLER, FUNCTION, INDEX, RETURN, SAVED, VECTOR_ARGUMENTS, align_stack, call_anywhere,
    call_program, forget_return_address, restore_registers, restore_vectors, save, save_vectors,
};
use super::exit_thunk::ENTER_TO_EXIT;
use super::leave::{Bodies, Leave, Return, align, frame, free_frame};
use super::side_stack::{FRAME_SIZE, SideStackPlace, field};
use crate::emit::{EmitError, IndexFrom, ProgramCall, Vectors};
use crate::encode::x86_64::{
    Condition, Mem, Reg, Scale, cmp_imm, cmp_load64, cmpxchg64, inc_mem64, int3, jcc, jmp, lea,
    lea_rip, mov_imm64, mov_load32, mov_load64, mov_load64_fs, mov_reg_reg, mov_store64, push, ret,
    sub_imm, test_reg, xor_reg32,
};
use crate::encode::{CodeBuffer, EncodeError};

/// The bodies that the [thunks](super::exit_thunk) of any number of functions call and jump
/// to, to run the same programs at entry and exit.
///
/// Before the function `enter` moves the caller's return address to the thread's
/// [`SideStack`](super::SideStack) and runs the entry programs, each as
/// `program(context, cookie, data, session)`: `context` is a [`Context`](crate::emit::Context),
/// and `session` the address of 8 bytes of this call that are zero at first. It changes what
/// an [`EntryBody`](super::EntryBody) changes.
///
/// After the function `exit` runs the exit programs, in the reverse of their order here, each
/// as `program(context, cookie, data)`: `context` is an [`ExitContext`](crate::emit::ExitContext).
/// It keeps `rax`, `rdx` and the vector registers 0 and 1, as wide as [`Vectors`] says. The x87
/// stack stays as it is, because programs compiled for SSE leave it alone: an exit program must
/// not use `long double`. Registers that hold no return value are changed as the psABI allows
/// any function.
///
/// A call runs unhooked, origin only, when the thread has no side stack or no frame is free.
#[derive(Clone, Copy, Debug)]
pub struct SideStackBodies<'a> {
    /// Where the functions' entries stand: that of index *i*, 8 bytes, at `functions + 8 * i`.
    pub functions: u64,
    /// How the thread's side stack is found.
    pub side_stack: SideStackPlace,
    /// What is saved around the programs.
    pub vectors: Vectors,
    /// The entry programs, in the order in which they run.
    pub entries: &'a [ProgramCall],
    /// The exit programs, in the order of their attachment.
    pub exits: &'a [ProgramCall],
}

impl SideStackBodies<'_> {
    /// Bytes that the bodies of so many programs can take at the most.
    #[must_use]
    pub const fn max_size(entries: usize, exits: usize) -> usize {
        1152 + 64 * entries + 56 * exits
    }

    /// Emits both bodies for the address where `code` will run.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`max_size`](Self::max_size)
    /// says how many are enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Bodies, EmitError> {
        let exit = Leave {
            thread_offset: self.side_stack.thread_offset,
            vectors: self.vectors,
            calls: self.exits,
            back: Return::Ret,
        }
        .emit(code)?;
        let enter = Enter {
            form: Form::Thunk { functions: self.functions },
            side_stack: self.side_stack,
            vectors: self.vectors,
            calls: self.entries,
        }
        .emit(code)?;
        Ok(Bodies { enter, exit })
    }
}

/// What differs between the forms that keep return addresses on a side stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// Called by an exit thunk, which has put the index into `r11d` and acts on the flags.
    Thunk {
        /// Where the functions' entries stand.
        functions: u64,
    },
    /// Called by the patch site: puts `stub` in the place of the caller's return address.
    Swap { index: IndexFrom, return_to_entry: u16, stub: u64 },
}

/// The body that runs before a hooked function.
pub(super) struct Enter<'a> {
    pub form: Form,
    pub side_stack: SideStackPlace,
    pub vectors: Vectors,
    pub calls: &'a [ProgramCall],
}

/// A field of the last frame, where `r10` is the next one.
macro_rules! last {
    ($field:ident) => {
        Mem::at(Reg::R10, frame!(Reg::R10, $field).disp - FRAME_SIZE)
    };
}

/// From the next frame to the arguments in the last one.
const ARGUMENTS: i32 = last!(args).disp;

/// Places in the body that what stands before it goes on at.
#[derive(Clone, Copy)]
struct Resume {
    /// `rax` is the side stack, `r11` the index; the last frame has to be looked at.
    again: u64,
    /// The same with the next frame in `r10`, and no frame is stale.
    live: u64,
}

/// What stands before the body: what seldom runs.
#[derive(Clone, Copy)]
struct Aside {
    no_side_stack: u64,
    full: u64,
    /// The last frame's slot is at or below this function's.
    stale: u64,
}

impl Enter<'_> {
    /// Emits the body and returns where it begins.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<u64, EncodeError> {
        // What seldom runs goes on in the middle of the body: a first attempt elsewhere shows
        // where that is.
        let mut trial = [0; 1024];
        let mut trial = CodeBuffer::new(&mut trial, code.here());
        let here = trial.here();
        let aside = self.aside(&mut trial, Resume { again: here, live: here })?;
        let (_, resume) = self.begin(&mut trial, aside)?;

        let aside = self.aside(code, resume)?;
        let (start, _) = self.begin(code, aside)?;
        self.push_frame(code, aside)?;
        self.run(code)?;
        restore_registers(code)?;
        // The last addition was to the stack pointer: neither zero nor a carry came of it.
        ret(code)?;
        int3(code)?;
        Ok(start)
    }

    /// Makes the context and looks at the last frame.
    fn begin(&self, code: &mut CodeBuffer<'_>, aside: Aside) -> Result<(u64, Resume), EncodeError> {
        align(code)?;
        let start = code.here();
        save(code)?;
        match self.form {
            Form::Swap { index: IndexFrom::Slot { return_to_index }, .. } => {
                mov_load64(code, Reg::R11, RETURN)?;
                mov_load32(code, Reg::R11, Mem::at(Reg::R11, -i32::from(return_to_index)))?;
            }
            Form::Thunk { .. } | Form::Swap { .. } => {}
        }
        mov_store64(code, INDEX, Reg::R11)?;
        mov_load64_fs(code, Reg::Rax, self.side_stack.thread_offset)?;
        test_reg(code, Reg::Rax, Reg::Rax)?;
        jcc(code, Condition::Equal, aside.no_side_stack)?;
        let again = code.here();
        mov_load64(code, Reg::R10, Mem::at(Reg::Rax, field::TOP))?;
        cmp_load64(code, Reg::Rbp, last!(slot))?;
        jcc(code, Condition::AboveOrEqual, aside.stale)?;
        // A signal handler may have dropped that frame before it was looked at.
        cmp_load64(code, Reg::R10, Mem::at(Reg::Rax, field::TOP))?;
        jcc(code, Condition::NotEqual, again)?;
        Ok((start, Resume { again, live: code.here() }))
    }

    /// Takes the frame at `r10` and fills it; leaves the index in `rax`, and in `r10` the frame
    /// behind it.
    fn push_frame(&self, code: &mut CodeBuffer<'_>, aside: Aside) -> Result<(), EncodeError> {
        cmp_load64(code, Reg::R10, Mem::at(Reg::Rax, field::END))?;
        jcc(code, Condition::AboveOrEqual, aside.full)?;
        // From here on a signal handler leaves the frame alone.
        lea(code, Reg::R10, Mem::at(Reg::R10, FRAME_SIZE))?;
        mov_store64(code, Mem::at(Reg::Rax, field::TOP), Reg::R10)?;
        mov_store64(code, last!(slot), Reg::Rbp)?;
        for (argument, number) in SAVED.into_iter().zip(0..6) {
            mov_store64(code, Mem::at(Reg::R10, ARGUMENTS + 8 * number), argument)?;
        }
        mov_store64(code, last!(index), Reg::R11)?;
        mov_reg_reg(code, Reg::Rax, Reg::R11)?;
        mov_load64(code, Reg::R11, CALLER)?;
        mov_store64(code, last!(caller), Reg::R11)?;
        match self.form {
            Form::Thunk { functions } => {
                mov_load64(code, Reg::R11, RETURN)?;
                mov_store64(code, last!(through), Reg::R11)?;
                mov_imm64(code, Reg::R11, functions)?;
                let entry = Mem::at(Reg::R11, 0).indexed(Reg::Rax, Scale::Eight);
                mov_load64(code, Reg::R11, entry)?;
            }
            Form::Swap { return_to_entry, .. } => {
                mov_load64(code, Reg::R11, RETURN)?;
                lea(code, Reg::R11, Mem::at(Reg::R11, -i32::from(return_to_entry)))?;
            }
        }
        mov_store64(code, last!(function), Reg::R11)?;
        mov_store64(code, FUNCTION, Reg::R11)?;
        xor_reg32(code, Reg::R11, Reg::R11)?;
        mov_store64(code, last!(session), Reg::R11)
    }

    /// Runs the programs on the context. Expects the index in `rax`, and the frame
    /// before `r10`.
    fn run(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        if !self.calls.is_empty() {
            // The word below the context.
            let session = Mem::at(Reg::Rbp, super::entry::CONTEXT.disp - 8);
            lea(code, Reg::R10, last!(session))?;
            push(code, Reg::R10)?;
            align_stack(code, self.vectors)?;
            save_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
            for (position, program) in self.calls.iter().enumerate() {
                if position > 0 {
                    mov_load64(code, Reg::Rax, INDEX)?;
                }
                mov_load64(code, Reg::Rcx, session)?;
                call_program(code, program, super::entry::CONTEXT)?;
            }
            restore_vectors(code, self.vectors, VECTOR_ARGUMENTS)?;
            forget_return_address(code)?;
        }
        if let Form::Swap { stub, .. } = self.form {
            lea_rip(code, Reg::R11, stub)?;
            mov_store64(code, CALLER, Reg::R11)?;
        }
        Ok(())
    }

    /// Emits what seldom runs. All of it finds the context made, and the stack pointer at it.
    fn aside(&self, code: &mut CodeBuffer<'_>, resume: Resume) -> Result<Aside, EncodeError> {
        let unhooked = code.here();
        restore_registers(code)?;
        // Sets the carry and clears zero: the largest number is larger than the stack pointer.
        cmp_imm(code, Reg::Rsp, -1)?;
        ret(code)?;
        int3(code)?;

        let full = code.here();
        inc_mem64(code, Mem::at(Reg::Rax, field::OVERFLOWED))?;
        jmp(code, unhooked)?;

        // A signal handler that comes in between may drop the same frame, and others.
        let abandoned = code.here();
        mov_reg_reg(code, Reg::R11, Reg::Rax)?;
        sub_imm(code, Reg::R10, FRAME_SIZE)?;
        free_frame(code, Reg::R10, Reg::Rax)?;
        lea(code, Reg::Rax, Mem::at(Reg::R10, FRAME_SIZE))?;
        cmpxchg64(code, Mem::at(Reg::R11, field::TOP), Reg::R10)?;
        mov_reg_reg(code, Reg::Rax, Reg::R11)?;
        mov_load64(code, Reg::R11, INDEX)?;
        jcc(code, Condition::NotEqual, resume.again)?;
        inc_mem64(code, Mem::at(Reg::Rax, field::ABANDONED))?;
        jmp(code, resume.again)?;

        // A function that is reached by a tail call has the slot of the one that called it,
        // which is not left: this one will return to where that one would have.
        let stale = code.here();
        jcc(code, Condition::NotEqual, abandoned)?;
        mov_load64(code, Reg::R11, CALLER)?;
        match self.form {
            Form::Thunk { .. } => {
                sub_imm(code, Reg::R11, ENTER_TO_EXIT)?;
                cmp_load64(code, Reg::R11, last!(through))?;
            }
            Form::Swap { stub, .. } => {
                push(code, Reg::R11)?;
                lea_rip(code, Reg::R11, stub)?;
                cmp_load64(code, Reg::R11, Mem::at(Reg::Rsp, 0))?;
                lea(code, Reg::Rsp, super::entry::CONTEXT)?;
            }
        }
        jcc(code, Condition::NotEqual, abandoned)?;
        mov_load64(code, Reg::R11, INDEX)?;
        jmp(code, resume.live)?;

        let no_side_stack = match self.side_stack.make {
            None => unhooked,
            Some(make) => {
                let at = code.here();
                align_stack(code, make.vectors)?;
                save_vectors(code, make.vectors, VECTOR_ARGUMENTS)?;
                call_anywhere(code, make.target)?;
                restore_vectors(code, make.vectors, VECTOR_ARGUMENTS)?;
                xor_reg32(code, Reg::R11, Reg::R11)?;
                mov_store64(code, Mem::at(Reg::Rsp, -8), Reg::R11)?;
                mov_load64(code, Reg::R11, INDEX)?;
                lea(code, Reg::Rsp, super::entry::CONTEXT)?;
                for (argument, number) in SAVED.into_iter().zip(0..6) {
                    mov_load64(code, argument, Mem::at(Reg::Rsp, 8 * number))?;
                }
                test_reg(code, Reg::Rax, Reg::Rax)?;
                jcc(code, Condition::Equal, unhooked)?;
                jmp(code, resume.again)?;
                at
            }
        };
        Ok(Aside { no_side_stack, full, stale })
    }
}
