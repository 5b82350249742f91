//! From a Linux kernel's `.config` to what its entries are.

use core::fmt;

use super::aarch64::INSTRUCTION;
use super::options::kcfi_multiple;
use super::x86_64::SITE_LEN;
use super::{
    CallDepth, Config, EntryLayout, FineIbt, Function, LandingPad, LayoutError, LayoutSpec,
};

/// What a kernel's `.config` says of its functions' entries.
///
/// What stands there is decided in two steps: what was compiled, and what the kernel made of it
/// at boot. [`compiled`](Self::compiled) is the first; FineIBT and call depth tracking, which a
/// kernel may turn on, are the second, and [`layout`](Self::layout) keeps clear of both.
///
/// ```
/// use fentry::layout::{Kernel, x86_64::IBT};
///
/// let text = "CONFIG_X86_64=y\nCONFIG_CALL_PADDING=y\nCONFIG_FUNCTION_PADDING_BYTES=16\n\
///             CONFIG_X86_KERNEL_IBT=y\nCONFIG_DYNAMIC_FTRACE=y\nCONFIG_HAVE_FENTRY=y\n";
/// assert_eq!(Kernel::parse(text)?.layout(), Ok(IBT));
/// # Ok::<(), fentry::layout::KernelError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    compiled: Config,
    called_directly: Config,
    fineibt: bool,
    call_depth: bool,
}

/// Why a `.config` does not say what entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelError {
    /// Neither `CONFIG_X86_64=y` nor `CONFIG_ARM64=y`.
    Architecture,
    /// A number is missing that another option requires, or is none.
    Number {
        /// The option that has it.
        option: &'static str,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Architecture => f.write_str(
                "neither CONFIG_X86_64=y nor CONFIG_ARM64=y: give the whole .config of a kernel \
                 for one of them",
            ),
            Self::Number { option } => write!(
                f,
                "{option} is missing or no number: give the .config that the kernel was built \
                 with, after `make olddefconfig`"
            ),
        }
    }
}

impl core::error::Error for KernelError {}

/// The lines of a `.config`.
struct Text<'a>(&'a str);

impl Text<'_> {
    fn value(&self, option: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.trim().strip_prefix(option)?.strip_prefix('='))
    }

    fn is_on(&self, option: &str) -> bool {
        self.value(option) == Some("y")
    }

    fn number(&self, option: &'static str) -> Result<u16, KernelError> {
        let number = self.value(option).and_then(|value| value.parse().ok());
        number.ok_or(KernelError::Number { option })
    }
}

impl Kernel {
    /// Reads the text of a `.config`, or of `include/config/auto.conf`.
    ///
    /// # Errors
    /// [`KernelError`] says what the text lacks.
    pub fn parse(text: &str) -> Result<Self, KernelError> {
        let text = Text(text);
        let ftrace = text.is_on("CONFIG_DYNAMIC_FTRACE");
        // The first is its older name.
        let cfi = text.is_on("CONFIG_CFI_CLANG") || text.is_on("CONFIG_CFI");
        let small = text.is_on("CONFIG_CC_OPTIMIZE_FOR_SIZE");
        let mut compiled = if text.is_on("CONFIG_X86_64") {
            // arch/x86/Makefile and Kconfig: all nops of the option are before the entry, and
            // the patch site is made by -mfentry.
            let padding = match text.is_on("CONFIG_CALL_PADDING") {
                true => text.number("CONFIG_FUNCTION_PADDING_BYTES")?,
                false => 0,
            };
            let pad = match text.is_on("CONFIG_X86_KERNEL_IBT") {
                true => LandingPad::Endbr64,
                false => LandingPad::None,
            };
            let fentry = ftrace && text.is_on("CONFIG_HAVE_FENTRY");
            Config::X86_64.with_padding(padding).with_landing_pad(pad).with_site(if fentry {
                SITE_LEN
            } else {
                0
            })
        } else if text.is_on("CONFIG_ARM64") {
            // arch/arm64/Makefile: -fpatchable-function-entry=4,2 or =2.
            let config = match text.is_on("CONFIG_ARM64_BTI_KERNEL") {
                true => Config::AARCH64.with_landing_pad(LandingPad::BtiC),
                false => Config::AARCH64,
            };
            let config = match text.is_on("CONFIG_ARM64_PTR_AUTH_KERNEL") {
                true => config.with_sign_return(),
                false => config,
            };
            if ftrace && text.is_on("CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS") {
                config.with_padding(2 * INSTRUCTION).with_ops_literal().with_site(2 * INSTRUCTION)
            } else if ftrace && text.is_on("CONFIG_DYNAMIC_FTRACE_WITH_ARGS") {
                config.with_site(2 * INSTRUCTION)
            } else {
                config
            }
        } else {
            return Err(KernelError::Architecture);
        };
        let mut called_directly = compiled.called_directly();
        if cfi {
            let clang = text.value("CONFIG_CLANG_VERSION").and_then(|value| value.parse().ok());
            let llvm = (clang.unwrap_or(0_u32) / 10_000).try_into().unwrap_or(u16::MAX);
            let alignment = text.number("CONFIG_FUNCTION_ALIGNMENT").unwrap_or(0);
            let with_kcfi = |config: Config, function| {
                config.with_kcfi(kcfi_multiple(llvm, small, alignment, function))
            };
            let direct = Function { called_directly: true, ..Function::ANY };
            called_directly = with_kcfi(compiled, direct).called_directly();
            compiled = with_kcfi(compiled, Function::ANY);
        }
        Ok(Self {
            compiled,
            called_directly,
            fineibt: text.is_on("CONFIG_FINEIBT"),
            call_depth: text.is_on("CONFIG_CALL_THUNKS"),
        })
    }

    /// What a traced function is compiled to that is not local or has its address taken.
    #[must_use]
    pub const fn compiled(&self) -> Config {
        self.compiled
    }

    /// What a traced function is compiled to that is local and whose address nobody takes.
    #[must_use]
    pub const fn called_directly(&self) -> Config {
        self.called_directly
    }

    /// Whether FineIBT preambles may be written at boot.
    #[must_use]
    pub const fn may_have_fineibt(&self) -> bool {
        self.fineibt
    }

    /// Whether call-depth thunks may be written at boot.
    #[must_use]
    pub const fn may_have_call_depth(&self) -> bool {
        self.call_depth
    }

    /// How many bytes before the entry the slot begins, in bytes that stay free whatever is
    /// decided at boot.
    ///
    /// # Errors
    /// As [`Config::slot`].
    pub const fn slot(&self) -> Result<u16, LayoutError> {
        // All generations of FineIBT take the same bytes, which are more than a thunk's.
        if self.fineibt {
            self.compiled.with_fineibt(&FineIbt::UDB).slot()
        } else if self.call_depth {
            self.compiled.with_call_depth(CallDepth::Absolute).slot()
        } else {
            self.compiled.slot()
        }
    }

    /// The layout of such functions, with the slot where [`slot`](Self::slot) says, if there is
    /// room for one.
    ///
    /// # Errors
    /// As [`Config::layout`]; [`LayoutError::SiteTooShort`] is a kernel without ftrace.
    pub const fn layout(&self) -> Result<EntryLayout, LayoutError> {
        let layout = match self.compiled.layout() {
            Ok(layout) => layout,
            Err(error) => return Err(error),
        };
        let slot = match self.slot() {
            Ok(before) => Some((self.compiled.slot_kind(), before)),
            Err(LayoutError::NoRoom { .. }) => None,
            Err(error) => return Err(error),
        };
        EntryLayout::new(LayoutSpec { slot, ..layout.spec() })
    }
}
