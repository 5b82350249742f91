//! The caller's half of a checked indirect call.

use crate::emit::EmitError;
use crate::emit::kcfi::without_landing_pad;
use crate::encode::x86_64::{
    Condition, Mem, Reg, add_load32, cmp_load32, cs, jcc_short, lea, mov_imm32, nop, sub_imm, ud2,
};
use crate::encode::{CodeBuffer, EncodeError};
use crate::layout::FineIbt;

/// The register that checked calls are made through, as Linux does.
pub const TARGET: Reg = Reg::R11;

/// Bytes of a FineIBT preamble before the entry. Callers count on them: they call the entry
/// less 16 (`fineibt_prefix_size`, arch/x86/kernel/alternative.c, Linux 7.2).
pub const FINEIBT_PREFIX: u8 = FineIbt::BEFORE as u8;

/// Which Linux wrote the FineIBT preamble. A caller of one generation cannot call a callee of
/// another: they differ in where the hash is handed over, and callers know where the preamble
/// keeps its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// Linux 6.2 to 6.14: hash in `r10d`, and a `ud2`.
    Original,
    /// Linux 6.15, "x86/ibt: Optimize the FineIBT instruction sequence": hash in `r10d`, and a
    /// jump back into the subtraction, whose byte EA raises #UD.
    Short,
    /// Linux 7.2: hash in `eax`, and a jump into the nop at the entry, whose byte D6 raises #UD.
    Udb,
}

impl Generation {
    /// The register that the caller hands the hash over in. A FineIBT call changes it.
    #[must_use]
    pub const fn register(self) -> Reg {
        match self {
            Self::Original | Self::Short => Reg::R10,
            Self::Udb => Reg::Rax,
        }
    }
}

/// What a caller does between having a function's entry in `r11` and calling `r11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// Nothing.
    None,
    /// It compares the hash before the entry with its own, and raises #UD where they differ
    /// (`LowerKCFI_CHECK`, LLVM 16). Changes `r10` and the flags. 14 bytes, or 17 where
    /// `padding` is over 124:
    ///
    /// ```text
    /// 41 ba -hash      mov r10d, -hash
    /// 45 03 53 ..      add r10d, [r11 - padding - 4]
    /// 74 02            je +2
    /// 0f 0b            ud2
    /// ```
    Kcfi {
        /// The hash of the type that is called with.
        hash: u32,
        /// Bytes between the callee's hash and its entry.
        padding: u8,
    },
    /// It hands its hash over, in [`Generation::register`], and the callee compares. `r11`
    /// becomes the callee's preamble. Changes the flags.
    ///
    /// ```text
    /// original           short                  udb
    /// 41 ba hash         41 ba hash             b8 hash              mov r10d/eax, hash
    /// 49 83 eb 10        4d 8d 5b f0            4d 8d 5b f0          sub / lea r11, [r11 - 16]
    /// 0f 1f 40 00        0f 1f 40 00            0f 1f 44 00 00       nop
    ///
    /// paranoid:
    /// 41 ba hash         the same               b8 hash              mov r10d/eax, hash
    /// 45 3b 53 f7        the same               41 3b 43 f5          cmp r10d/eax, [r11 - 9/11]
    /// 4d 8d 5b f0        the same               2e 4d 8d 5b f0       lea r11, [r11 - 16]
    /// 75 fd              the same               75 fd                jne into the lea
    /// ```
    ///
    /// That jump's target is the byte F0 and the jump itself: `lock jne`, which raises #UD.
    FineIbt {
        /// The hash of the type that is called with.
        hash: u32,
        /// Which generation the callee's preamble has.
        generation: Generation,
        /// The caller looks at the callee's hash before it calls, so that no more than a
        /// landing pad is not enough to be called (`cfi=...,paranoid`, Linux 6.15 and later).
        paranoid: bool,
    },
}

impl Check {
    /// Bytes that a check can take at the most.
    pub const MAX_SIZE: usize = 17;

    /// Emits the check. Expects the callee's entry in `r11`, and leaves there what is to be
    /// called.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left; [`MAX_SIZE`](Self::MAX_SIZE) are
    /// enough.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<(), EmitError> {
        match *self {
            Self::None => {}
            Self::Kcfi { hash, padding } => kcfi(code, without_landing_pad(hash), padding)?,
            Self::FineIbt { hash, generation, paranoid: false } => {
                fineibt(code, without_landing_pad(hash), generation)?;
            }
            Self::FineIbt { hash, generation, paranoid: true } => {
                paranoid(code, without_landing_pad(hash), generation)?;
            }
        }
        Ok(())
    }
}

/// The preamble of a callee, from its entry in the target register.
const PREAMBLE: Mem = Mem::at(TARGET, -(FINEIBT_PREFIX as i32));

fn kcfi(code: &mut CodeBuffer<'_>, hash: u32, padding: u8) -> Result<(), EncodeError> {
    // The negation: the hash itself in the text would make this a place to jump to.
    mov_imm32(code, Reg::R10, hash.wrapping_neg())?;
    add_load32(code, Reg::R10, Mem::at(TARGET, -4 - i32::from(padding)))?;
    let call = code.here().wrapping_add(4);
    jcc_short(code, Condition::Equal, call)?;
    ud2(code)
}

fn fineibt(
    code: &mut CodeBuffer<'_>,
    hash: u32,
    generation: Generation,
) -> Result<(), EncodeError> {
    mov_imm32(code, generation.register(), hash)?;
    match generation {
        Generation::Original => sub_imm(code, TARGET, i32::from(FINEIBT_PREFIX))?,
        Generation::Short | Generation::Udb => lea(code, TARGET, PREAMBLE)?,
    }
    // As long as the kCFI check that a kernel writes this over.
    match generation {
        Generation::Original | Generation::Short => nop(code, 4),
        Generation::Udb => nop(code, 5),
    }
}

fn paranoid(
    code: &mut CodeBuffer<'_>,
    hash: u32,
    generation: Generation,
) -> Result<(), EncodeError> {
    let register = generation.register();
    mov_imm32(code, register, hash)?;
    match generation {
        Generation::Original | Generation::Short => {
            cmp_load32(code, register, Mem::at(TARGET, -9))?;
        }
        Generation::Udb => {
            cmp_load32(code, register, Mem::at(TARGET, -11))?;
            cs(code)?;
        }
    }
    lea(code, TARGET, PREAMBLE)?;
    let displacement_of_lea = code.here().wrapping_sub(1);
    jcc_short(code, Condition::NotEqual, displacement_of_lea)
}
