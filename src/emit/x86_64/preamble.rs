//! What stands before, and at, an entry that indirect calls may reach.

use crate::emit::EmitError;
use crate::emit::kcfi::without_landing_pad;
use crate::encode::x86_64::{
    Condition, NOP4_OSP, NOP4_UDB, Reg, call, cmov, cs, endbr64, int3, jcc, jcc_short, mov_imm32,
    nop, ret, sub_imm32, ud2,
};
use crate::encode::{CodeBuffer, EncodeError};

use super::check::{Check, FINEIBT_PREFIX, Generation};

/// How many arguments a function takes in registers, as clang 21 and later say it in a kCFI
/// preamble (`-fsanitize-kcfi-arity`); 7 where one or more are on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arity(u8);

impl Arity {
    /// The arity of a function with an argument on the stack.
    pub const STACK: Self = Self(7);

    /// This many arguments in registers; `None` from 8 on.
    #[must_use]
    pub const fn new(arguments: u8) -> Option<Self> {
        if arguments <= Self::STACK.0 { Some(Self(arguments)) } else { None }
    }

    /// The number of arguments.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The register whose number says so: where the hash is moved to.
    const fn register(self) -> Reg {
        match self.0 {
            1 => Reg::Rcx,
            2 => Reg::Rdx,
            3 => Reg::Rbx,
            4 => Reg::Rsp,
            5 => Reg::Rbp,
            6 => Reg::Rsi,
            7 => Reg::Rdi,
            _ => Reg::Rax,
        }
    }
}

/// A kCFI preamble: a move that nobody executes and that holds the type's hash. The *caller*
/// compares.
///
/// ```text
/// -5-padding   b8+r hash     mov r32, hash
/// -padding     90 ...        nop for each byte of padding
/// entry        f3 0f 1e fa   endbr64, if there is a landing pad
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kcfi {
    /// The hash of the function's type ([`kcfi::type_hash`](crate::emit::kcfi::type_hash)).
    pub hash: u32,
    /// What the compiler says of the arguments. `None` and 0 are the same bytes.
    pub arity: Option<Arity>,
    /// Bytes between the hash and the entry: the patchable prefix of the callers' build, which
    /// they count on. Linux has 11, 27 or 59 with `CALL_PADDING`, else 0.
    pub padding: u8,
    /// Whether an `endbr64` stands at the entry.
    pub endbr64: bool,
}

/// How a FineIBT preamble keeps a branch that is predicted wrongly from using arguments
/// (branch history injection; `cfi=...,bhi`, Linux 6.15 and later).
///
/// On a wrong hash the arguments become the difference of the hashes before the trap is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bhi {
    /// Not at all.
    None,
    /// For functions of one argument: in the preamble.
    FirstArgument,
    /// By a call of the stub at this address, which [`bhi_stub`] emits; Linux's are at
    /// `__bhi_args + 32 * arity`. The stub traps.
    Stub(u64),
}

/// A FineIBT preamble: the *callee* compares its own hash with the one that the caller hands
/// over. 20 bytes, the last 4 at the entry, where a direct call goes.
///
/// ```text
///       original            short               udb
/// -16   f3 0f 1e fa         f3 0f 1e fa         f3 0f 1e fa             endbr64
/// -12   41 81 ea hash       41 81 ea hash       2d hash                 sub r10d/eax, hash
/// -7                                            2e 0f 85 03 00 00 00    jne entry+3
/// -5    74 03               75 f9               .                       je entry / jne -10
/// -3    0f 0b               0f 1f 00            .                       ud2 / nop
/// -1    90                  .                   .                       nop
/// entry 66 0f 1f 00         66 0f 1f 00         0f 1f 40 d6             nop
///
///       FirstArgument, short and original       FirstArgument, udb
/// -7                                            48 0f 45 f8             cmovne rdi, rax
/// -5    49 0f 45 fa                             .                       cmovne rdi, r10
/// -3    .                                       2e 75 03                jne entry+3
/// -1    75 f5                                   .                       jne -10
/// entry (f5) 0f 1f 00                           0f 1f 40 d6             cmc, nop / nop
///
///       Stub, short and original                Stub, udb
/// -7                                            2e 2e e8 rel32          call stub
/// -5    e8 rel32                                .                       call stub
/// entry 66 0f 1f 00                             0f 1f 40 d6             nop
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FineIbt {
    /// The hash of the function's type, as the callers have it: a kernel changes it at boot
    /// ([`kcfi::rehash`](crate::emit::kcfi::rehash)).
    pub hash: u32,
    /// Whose callers there are.
    pub generation: Generation,
    /// What is done about branch history injection.
    pub bhi: Bhi,
}

/// What is emitted before and at the entry of code that can be the target of an indirect call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preamble {
    /// Nothing.
    None,
    /// `endbr64` at the entry: callers compare no types, but branches are tracked (IBT).
    Endbr64,
    /// The caller compares.
    Kcfi(Kcfi),
    /// The callee compares.
    FineIbt(FineIbt),
}

impl Preamble {
    /// Bytes of the preamble that are before the entry.
    #[must_use]
    pub const fn before_entry(&self) -> u16 {
        match self {
            Self::None | Self::Endbr64 => 0,
            Self::Kcfi(kcfi) => 5 + kcfi.padding as u16,
            Self::FineIbt(_) => FINEIBT_PREFIX as u16,
        }
    }

    /// All bytes of the preamble, those at the entry included.
    #[must_use]
    pub const fn size(&self) -> u16 {
        let at_entry = match self {
            Self::None => 0,
            Self::Endbr64 | Self::FineIbt(_) => 4,
            Self::Kcfi(kcfi) if kcfi.endbr64 => 4,
            Self::Kcfi(_) => 0,
        };
        self.before_entry() + at_entry
    }

    /// Emits the preamble and returns the entry, which is [`before_entry`](Self::before_entry)
    /// bytes behind where `code` was. What the entry's alignment is, is up to the caller.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has less than [`size`](Self::size) bytes left, or a stub
    /// is 2 GiB or more away.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<u64, EmitError> {
        let entry = code.here().wrapping_add(u64::from(self.before_entry()));
        match self {
            Self::None => {}
            Self::Endbr64 => endbr64(code)?,
            Self::Kcfi(kcfi) => kcfi.emit(code)?,
            Self::FineIbt(fineibt) => fineibt.emit(code, entry)?,
        }
        Ok(entry)
    }

    /// What a caller does before it calls a function with this preamble.
    #[must_use]
    pub const fn check(&self) -> Check {
        match *self {
            Self::None | Self::Endbr64 => Check::None,
            Self::Kcfi(Kcfi { hash, padding, .. }) => Check::Kcfi { hash, padding },
            Self::FineIbt(FineIbt { hash, generation, .. }) => {
                Check::FineIbt { hash, generation, paranoid: false }
            }
        }
    }
}

impl Kcfi {
    fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
        let register = match self.arity {
            Some(arity) => arity.register(),
            None => Reg::Rax,
        };
        mov_imm32(code, register, without_landing_pad(self.hash))?;
        for _ in 0..self.padding {
            nop(code, 1)?;
        }
        if self.endbr64 { endbr64(code) } else { Ok(()) }
    }
}

impl FineIbt {
    fn emit(&self, code: &mut CodeBuffer<'_>, entry: u64) -> Result<(), EncodeError> {
        let hash = self.generation.register();
        // The last byte of the subtraction's opcode, `41 81 EA`, in the generations that have it.
        let into_sub = entry.wrapping_sub(10);
        let into_nop = entry.wrapping_add(3);
        endbr64(code)?;
        sub_imm32(code, hash, without_landing_pad(self.hash))?;
        match (self.bhi, self.generation) {
            (Bhi::None, Generation::Original) => {
                jcc_short(code, Condition::Equal, entry)?;
                ud2(code)?;
                nop(code, 1)?;
            }
            (Bhi::None, Generation::Short) => {
                jcc_short(code, Condition::NotEqual, into_sub)?;
                nop(code, 3)?;
            }
            (Bhi::None, Generation::Udb) => {
                cs(code)?;
                jcc(code, Condition::NotEqual, into_nop)?;
            }
            (Bhi::FirstArgument, Generation::Original | Generation::Short) => {
                cmov(code, Condition::NotEqual, Reg::Rdi, hash)?;
                // The entry is the displacement of this jump, which a direct call executes as
                // `cmc`.
                jcc_short(code, Condition::NotEqual, into_sub)?;
                return nop(code, 3);
            }
            (Bhi::FirstArgument, Generation::Udb) => {
                cmov(code, Condition::NotEqual, Reg::Rdi, hash)?;
                cs(code)?;
                jcc_short(code, Condition::NotEqual, into_nop)?;
            }
            (Bhi::Stub(stub), Generation::Original | Generation::Short) => call(code, stub)?,
            (Bhi::Stub(stub), Generation::Udb) => {
                cs(code)?;
                cs(code)?;
                call(code, stub)?;
            }
        }
        code.bytes(match self.generation {
            Generation::Original | Generation::Short => &NOP4_OSP,
            Generation::Udb => &NOP4_UDB,
        })
    }
}

/// Bytes that a stub can take at the most.
pub const BHI_STUB_MAX: usize = 34;

/// Emits the stub that FineIBT preambles of `generation` call for functions of this `arity`.
///
/// ```text
/// 75 ..            jne trap
/// 48 0f 45 ..      cmovne argument, rax    for each argument; r10 before the generation Udb
/// c3               ret                     into the function
/// cc               int3
/// 0f 0b            trap: ud2
/// ```
///
/// The flags are those of the preamble's comparison. For [`Arity::STACK`] the stack pointer
/// goes the way of the arguments in registers: a wrongly predicted branch finds none there.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has too few bytes left; [`BHI_STUB_MAX`] are enough.
pub fn bhi_stub(
    code: &mut CodeBuffer<'_>,
    generation: Generation,
    arity: Arity,
) -> Result<(), EmitError> {
    const ARGUMENTS: [Reg; 7] =
        [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9, Reg::Rsp];
    // Behind the jump: four bytes for each argument, `ret` and `int3`.
    let trap = code.here().wrapping_add(4 + 4 * u64::from(arity.0));
    jcc_short(code, Condition::NotEqual, trap)?;
    for &argument in ARGUMENTS.iter().take(usize::from(arity.0)) {
        cmov(code, Condition::NotEqual, argument, generation.register())?;
    }
    ret(code)?;
    int3(code)?;
    ud2(code)?;
    Ok(())
}
