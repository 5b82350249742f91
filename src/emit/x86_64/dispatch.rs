//! A program for each function: who calls the right one.

use memoffset::offset_of;

use super::branch::Hardening;
use super::check::TARGET;
use crate::emit::{Context, EmitError, ExitContext, Stride};
use crate::encode::CodeBuffer;
use crate::encode::x86_64::{
    Condition, Mem, Reg, Scale, add_reg, cmp_imm32, jcc, mov_imm64, mov_load32, mov_load64,
};

/// A program that goes on as the program of the function it was entered from.
///
/// Where there are as many programs as functions, an image for each is what this library is
/// there to avoid. An image with a dispatcher in the place of its program serves all of them:
/// it calls the dispatcher directly, as it calls any program, with the same arguments, and the
/// dispatcher jumps to the function's own program with them, by the index in the context.
///
/// | | branches | text for each program | what changes a program |
/// |---|---|---|---|
/// | `Indexed` | one indirect branch | none | a store |
/// | `Search` | direct ones, log2 of the number of programs | 11 to 20 bytes | a new dispatcher |
///
/// Which is faster depends on how indirect branches are mitigated, and on whether the processor
/// foresees which function is next. `cargo bench --bench dispatch`, ns for a call on an AMD EPYC
/// guest, functions called in turn from a place each, and in a random order:
///
/// | programs | in turn: `Indexed` | with retpoline | `Search` | random: `Indexed` | with retpoline | `Search` |
/// |---|---|---|---|---|---|---|
/// | 4 | 2.4 | 7.2 | **1.6** | 6.7 | 7.6 | **4.9** |
/// | 16 | 2.5 | 7.1 | **2.2** | **7.8** | 8.1 | 11.4 |
/// | 64 | **2.5** | 7.1 | 2.8 | **7.5** | 7.6 | 15.1 |
/// | 256 | **3.3** | 7.3 | 5.1 | **7.6** | 7.6 | 20.3 |
/// | 1024 | **8.2** | 9.0 | **8.2** | **7.8** | 7.8 | 26.8 |
/// | 4096 | 11.7 | **11.4** | 19.3 | **10.0** | 10.2 | 39.5 |
///
/// So without mitigations `Indexed` is right from about 64 programs on. Where a retpoline is
/// asked for, `Search` is faster up to about 1024 as long as the order can be foreseen; where
/// it cannot, each comparison that is guessed wrongly costs what the retpoline costs once, and
/// `Search` is right for 4. It also has no branch that a landing pad, a hash or a thunk is
/// needed for.
#[derive(Clone, Copy, Debug)]
pub enum Dispatcher<'a> {
    /// The program's address stands at `column + index * stride`; none may be missing.
    Indexed {
        /// The address of what belongs to index 0.
        column: u64,
        /// How far apart the addresses are.
        stride: Stride,
    },
    /// Indexes and the programs' addresses, in the order of the indexes, each once. Functions
    /// with other indexes have no program. The programs are within a direct jump's reach.
    Search(&'a [(u32, u64)]),
}

/// Where the index is, in what programs get as their first argument.
const INDEX: Mem = Mem::at(Reg::Rdi, offset_of!(Context, index) as i32);

// One dispatcher serves programs at entries and at exits.
static_assertions::const_assert_eq!(offset_of!(Context, index), offset_of!(ExitContext, index));

/// How many programs are compared one after the other, where a search ends.
const LEAF: usize = 4;
/// Bytes of `cmp eax, index` and a conditional jump.
const STEP: usize = 11;
/// Bytes of a jump, and of what speculation stops at.
const LAST: usize = 6;
/// Bytes for each program at the most: leaves are at least half full, and there is a node less
/// than there are leaves.
const PROGRAM: usize = STEP + (STEP + LAST).div_ceil(LEAF / 2);

impl Dispatcher<'_> {
    /// Bytes that the dispatcher can take at the most.
    #[must_use]
    pub const fn max_size(&self) -> usize {
        match self {
            Self::Indexed { .. } => 20 + Hardening::MAX_SIZE,
            Self::Search(programs) => Hardening::MAX_SIZE + 3 + LAST + PROGRAM * programs.len(),
        }
    }

    /// Emits the dispatcher with the mitigations of `hardening` and returns its address, for
    /// [`ProgramCall::target`](crate::emit::ProgramCall::target).
    ///
    /// It changes what a program may change: `rax`, `r10`, `r11` and the flags.
    ///
    /// # Errors
    /// [`EmitError::Order`] if the indexes do not rise, and [`EmitError::Encode`] if `code` has
    /// too few bytes left or a program is 2 GiB or more away.
    pub fn emit(&self, code: &mut CodeBuffer<'_>, hardening: &Hardening) -> Result<u64, EmitError> {
        match *self {
            Self::Indexed { column, stride } => {
                let start = code.here();
                mov_load32(code, Reg::Rax, INDEX)?;
                mov_imm64(code, TARGET, column)?;
                if let Stride::Sixteen = stride {
                    add_reg(code, Reg::Rax, Reg::Rax)?;
                }
                let program = Mem::at(TARGET, 0).indexed(Reg::Rax, Scale::Eight);
                mov_load64(code, TARGET, program)?;
                hardening.emit_indirect_jump(code)?;
                Ok(start)
            }
            Self::Search(programs) => {
                in_order(programs)?;
                // For functions without a program.
                let miss = code.here();
                hardening.emit_return(code)?;
                let start = code.here();
                mov_load32(code, Reg::Rax, INDEX)?;
                Search { hardening, miss }.emit(code, programs)?;
                Ok(start)
            }
        }
    }
}

fn in_order(programs: &[(u32, u64)]) -> Result<(), EmitError> {
    for (position, (before, this)) in programs.iter().zip(programs.iter().skip(1)).enumerate() {
        if this.0 <= before.0 {
            return Err(EmitError::Order { position: position + 1, index: this.0 });
        }
    }
    Ok(())
}

/// The search for the index in `eax`.
struct Search<'a> {
    hardening: &'a Hardening,
    miss: u64,
}

impl Search<'_> {
    fn emit(&self, code: &mut CodeBuffer<'_>, programs: &[(u32, u64)]) -> Result<(), EmitError> {
        if programs.len() <= LEAF {
            for &(index, program) in programs {
                cmp_imm32(code, Reg::Rax, index)?;
                jcc(code, Condition::Equal, program)?;
            }
            return self.hardening.emit_jump(code, self.miss);
        }
        let (low, high) = programs.split_at(programs.len() / 2);
        // The upper half is never empty.
        if let Some(&(first, _)) = high.first() {
            cmp_imm32(code, Reg::Rax, first)?;
            let behind_low = code.here().wrapping_add(6 + self.size(low.len()));
            jcc(code, Condition::AboveOrEqual, behind_low)?;
        }
        self.emit(code, low)?;
        self.emit(code, high)
    }

    /// Bytes of the search among so many programs.
    fn size(&self, programs: usize) -> u64 {
        if programs <= LEAF {
            return (programs * STEP) as u64 + self.hardening.jump_size();
        }
        let low = programs / 2;
        STEP as u64 + self.size(low) + self.size(programs - low)
    }
}
