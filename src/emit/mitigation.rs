//! What is done to emitted code so that branches cannot be led astray, on a processor that
//! predicts them or by an attacker who chooses their targets.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// Mitigations, any number of them. An emitter applies them to every branch, call and
    /// return that it makes.
    ///
    /// | | on | what is emitted |
    /// |---|---|---|
    /// | `RETPOLINE` | x86-64 | indirect calls and jumps by way of the embedder's thunk |
    /// | `RETURN_THUNK` | x86-64 | a jump to the embedder's thunk in the place of `ret` |
    /// | `LFENCE` | x86-64 | `lfence` before indirect calls and jumps |
    /// | `SLS` | both | a stop behind returns and indirect jumps, on x86-64 behind direct ones, too, but for those of thunks |
    /// | `ITS` | x86-64 | indirect branches and returns in the upper half of a cache line |
    /// | `CALL_DEPTH` | x86-64 | the count of calls before each call |
    /// | `CFI` | both | a check of the callee's type before each indirect call |
    /// | `SIGNED_RETURNS` | arm64 | return addresses signed while they are in memory (PAC) |
    ///
    /// ```
    /// use fentry::emit::Mitigations;
    ///
    /// let zen3 = Mitigations::RETPOLINE | Mitigations::RETURN_THUNK | Mitigations::SLS;
    /// assert!(!zen3.contains(Mitigations::ITS));
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Mitigations: u16 {
        /// Spectre v2: an indirect branch goes through a thunk that is not predicted from the
        /// branch target buffer (`__x86_indirect_thunk_r11` in Linux).
        const RETPOLINE = 1 << 0;
        /// Retbleed, SRSO, call depth and ITS: a function returns through the embedder's
        /// thunk (`x86_return_thunk` in Linux). It may change the flags and nothing else, as a
        /// function may that returns nothing: `call_depth_return_thunk` does. Thunks of functions
        /// with exit programs are then others
        /// ([`exit_thunk_hardened`](super::x86_64::exit_thunk_hardened)).
        const RETURN_THUNK = 1 << 1;
        /// Spectre v2 on processors where it suffices: an indirect branch waits for everything
        /// before it.
        const LFENCE = 1 << 2;
        /// Straight-line speculation: behind a return or a jump stands something that is not
        /// speculated past: `int3` on x86-64, `dsb sy` and `isb` on arm64 (`-mharden-sls` of gcc
        /// and clang).
        ///
        /// Direct jumps of thunks have none: the 32 bytes of an exit thunk are full, and so are the
        /// 16 of an entry thunk that jumps to a return thunk. Behind such a jump there is another
        /// direct jump, the next thunk or `int3`; compilers that are asked for stops put none
        /// behind direct jumps (gcc 12: `-mharden-sls=all` is "return" and "indirect-jmp").
        const SLS = 1 << 3;
        /// Indirect target selection (CVE-2024-28956): the last byte of an indirect branch's or
        /// return's opcode stands in the upper half of a 64-byte line, where it is predicted
        /// as it should be (Linux 7.2, arch/x86/kernel/alternative.c).
        const ITS = 1 << 4;
        /// Retbleed on Skylake: a call is counted before it is made, so that a return thunk
        /// knows when the return-stack predictor is empty.
        const CALL_DEPTH = 1 << 5;
        /// Control-flow integrity: an indirect call is preceded by what kCFI or FineIBT does.
        const CFI = 1 << 6;
        /// Pointer authentication: `paciasp` and `autiasp` around a frame.
        const SIGNED_RETURNS = 1 << 7;
    }
}

/// Why mitigations cannot be applied as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HardeningError {
    /// These need to be told where the embedder has something, and were not.
    Untold {
        /// The mitigations.
        mitigations: Mitigations,
    },
    /// These are not what this architecture has.
    OtherArchitecture {
        /// The mitigations.
        mitigations: Mitigations,
    },
    /// `RETPOLINE` and `LFENCE` are two ways of doing one thing.
    RetpolineAndLfence,
}

impl fmt::Display for HardeningError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untold { mitigations } => {
                f.write_str("no address or hash was given for ")?;
                bitflags::parser::to_writer(mitigations, &mut *f)?;
                f.write_str("; fill in its field, or leave the mitigation out")
            }
            Self::OtherArchitecture { mitigations } => {
                f.write_str("this architecture does not have ")?;
                bitflags::parser::to_writer(mitigations, &mut *f)?;
                f.write_str("; leave it out")
            }
            Self::RetpolineAndLfence => f.write_str(
                "RETPOLINE and LFENCE are two forms of the same indirect branch; choose one",
            ),
        }
    }
}

impl core::error::Error for HardeningError {}
