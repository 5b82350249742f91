//! What an entry was compiled and patched to be.

use super::byte::{Byte, pattern};
use super::{FineIbt, LandingPad};

/// The architecture of the code that is described, whichever this one is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// arm64, AArch64.
    Aarch64,
}

/// What kCFI makes of a function (clang and rustc, `-fsanitize=kcfi`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kcfi {
    /// kCFI is off.
    Off,
    /// The function's address may be taken: its hash stands before the padding.
    Hash,
    /// The function is local and its address is not taken: no hash.
    NoHash,
}

/// The instruction by which Linux counts calls (`sar qword ptr gs:[__x86_call_depth], 5`). It
/// stands in the tail of the padding, and callers call it instead of the entry
/// (arch/x86/kernel/callthunks.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallDepth {
    /// With an address relative to itself, 9 bytes: Linux from when per-CPU data is addressed so.
    Relative,
    /// With an absolute address, 10 bytes: Linux before.
    Absolute,
}

impl CallDepth {
    /// Bytes that it takes.
    #[must_use]
    pub const fn size(self) -> u16 {
        match self {
            Self::Relative => 9,
            Self::Absolute => 10,
        }
    }

    pub(super) const fn forms(self) -> &'static [Byte] {
        match self {
            Self::Relative => &const { pattern::<9>("65 48 c1 3d .. .. .. .. 05") },
            Self::Absolute => &const { pattern::<10>("65 48 c1 3c 25 .. .. .. .. 05") },
        }
    }
}

/// What an entry was compiled and patched to be. Made from [`Config::X86_64`] or
/// [`Config::AARCH64`], and one `with_` for each option.
///
/// ```
/// use fentry::layout::{Config, LandingPad, LayoutError};
///
/// // Linux 7.2 with kCFI: CONFIG_FUNCTION_PADDING_BYTES=11, CONFIG_FUNCTION_ALIGNMENT=16.
/// const LINUX: Config =
///     Config::X86_64.with_padding(11).with_kcfi(16).with_landing_pad(LandingPad::Endbr64).with_site(5);
/// assert_eq!(LINUX.hash(), Some(-15));
/// assert_eq!(LINUX.slot(), Ok(5)); // mov eax, index at entry-5
///
/// // With call depth tracking, two bytes are left.
/// let tracked = LINUX.with_call_depth(fentry::layout::CallDepth::Relative);
/// assert!(matches!(tracked.slot(), Err(LayoutError::NoRoom { largest: 2, .. })));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub(super) arch: Arch,
    pub(super) padding: u16,
    pub(super) multiple: u16,
    pub(super) kcfi: Kcfi,
    pub(super) fineibt: Option<&'static FineIbt>,
    pub(super) call_depth: Option<CallDepth>,
    pub(super) ops_literal: bool,
    pub(super) landing_pad: LandingPad,
    pub(super) site: u16,
    pub(super) sign_return: bool,
}

impl Config {
    /// An x86-64 function compiled with no option: nothing before it, no patch site.
    pub const X86_64: Self = Self::nothing(Arch::X86_64);

    /// An arm64 function compiled with no option: nothing before it, no patch site.
    pub const AARCH64: Self = Self::nothing(Arch::Aarch64);

    const fn nothing(arch: Arch) -> Self {
        Self {
            arch,
            padding: 0,
            multiple: 1,
            kcfi: Kcfi::Off,
            fineibt: None,
            call_depth: None,
            ops_literal: false,
            landing_pad: LandingPad::None,
            site: 0,
            sign_return: false,
        }
    }

    /// With this many bytes of nops right before the entry: `M` of
    /// `-fpatchable-function-entry=N,M`, times four on arm64.
    #[must_use]
    pub const fn with_padding(self, padding: u16) -> Self {
        Self { padding, ..self }
    }

    /// With a kCFI hash before the padding. On x86-64 LLVM fills up with nops before the hash,
    /// until all is a `multiple` of so many bytes: 16, or what LLVM 23 is told to align functions
    /// to. With `-Os` and `-Oz` it is 4, or 1 by LLVM 16.
    #[must_use]
    pub const fn with_kcfi(self, multiple: u16) -> Self {
        Self { kcfi: Kcfi::Hash, multiple, ..self }
    }

    /// With a FineIBT preamble. Where it covers the kCFI hash there is none any more; the
    /// landing pad at the entry is a nop then.
    #[must_use]
    pub const fn with_fineibt(self, fineibt: &'static FineIbt) -> Self {
        Self { fineibt: Some(fineibt), ..self }
    }

    /// With a call-depth thunk.
    #[must_use]
    pub const fn with_call_depth(self, thunk: CallDepth) -> Self {
        Self { call_depth: Some(thunk), ..self }
    }

    /// With an ops literal right before the entry (arm64).
    #[must_use]
    pub const fn with_ops_literal(self) -> Self {
        Self { ops_literal: true, ..self }
    }

    /// With this at the entry.
    #[must_use]
    pub const fn with_landing_pad(self, landing_pad: LandingPad) -> Self {
        Self { landing_pad, ..self }
    }

    /// With this many bytes of nops at the entry, behind the landing pad: `N - M` of
    /// `-fpatchable-function-entry=N,M`, times four on arm64; 5 for `-mfentry -mnop-mcount`.
    #[must_use]
    pub const fn with_site(self, site: u16) -> Self {
        Self { site, ..self }
    }

    /// With `paciasp` behind the patch site (arm64, `-mbranch-protection=pac-ret` or
    /// `standard`), in functions that save the return address.
    #[must_use]
    pub const fn with_sign_return(self) -> Self {
        Self { sign_return: true, ..self }
    }

    /// The same for a local function whose address nobody takes: compilers leave its landing
    /// pad and its hash away, and fill up without it.
    #[must_use]
    pub const fn called_directly(self) -> Self {
        let kcfi = match self.kcfi {
            Kcfi::Off => Kcfi::Off,
            Kcfi::Hash | Kcfi::NoHash => Kcfi::NoHash,
        };
        Self { kcfi, landing_pad: LandingPad::None, ..self }
    }

    /// The architecture.
    #[must_use]
    pub const fn arch(&self) -> Arch {
        self.arch
    }

    /// Bytes of nops that were asked for before the entry.
    #[must_use]
    pub const fn padding(&self) -> u16 {
        self.padding
    }

    /// What kCFI makes of the function.
    #[must_use]
    pub const fn kcfi(&self) -> Kcfi {
        self.kcfi
    }

    /// The FineIBT preamble.
    #[must_use]
    pub const fn fineibt(&self) -> Option<&'static FineIbt> {
        self.fineibt
    }

    /// The call-depth thunk.
    #[must_use]
    pub const fn call_depth(&self) -> Option<CallDepth> {
        self.call_depth
    }

    /// What stands at the entry.
    #[must_use]
    pub const fn landing_pad(&self) -> LandingPad {
        match self.fineibt {
            Some(_) => LandingPad::Sealed,
            None => self.landing_pad,
        }
    }

    /// Bytes of nops at the entry, behind the landing pad.
    #[must_use]
    pub const fn site(&self) -> u16 {
        self.site
    }
}
