//! From the options of a compiler to what it makes of an entry.

use core::fmt;

use super::{Arch, Config, LandingPad};

/// Who compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compiler {
    /// GNU C and C++.
    Gcc,
    /// clang and rustc, with this major version of LLVM.
    Llvm(u16),
}

/// The options that decide what stands around an entry.
///
/// ```
/// use fentry::layout::x86_64::IBT;
/// use fentry::layout::{Arch, Compiler, Function, Options};
///
/// let flags = ["-O2", "-fpatchable-function-entry=21,16", "-fcf-protection=branch"];
/// let options = Options::parse(Arch::X86_64, Compiler::Gcc, flags)?;
/// assert_eq!(options.config(Function::ANY)?.layout(), Ok(IBT));
/// # Ok::<(), fentry::layout::OptionsError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// What is compiled for.
    pub arch: Arch,
    /// Who compiles.
    pub compiler: Compiler,
    /// `-fpatchable-function-entry=N,M`: how many nops in all, `N`.
    pub nops: u16,
    /// How many of them stand before the entry, `M`.
    pub nops_before: u16,
    /// `-mfentry -mnop-mcount` (gcc on x86-64): a nop of five bytes at the entry.
    pub fentry: bool,
    /// `-fcf-protection=branch` or `full` on x86-64, `-mbranch-protection=bti` or `standard` on
    /// arm64.
    pub landing_pads: bool,
    /// `-mbranch-protection=pac-ret` or `standard` on arm64.
    pub sign_return: bool,
    /// `-fsanitize=kcfi`.
    pub kcfi: bool,
    /// `-Os` or `-Oz`: LLVM fills up less before a kCFI hash.
    pub small: bool,
    /// `-falign-functions=` in bytes; 0 for the compiler's own choice. What is aligned is the
    /// first byte before the entry that is the function's ([`Config::before_entry`]); LLVM 23 and
    /// later fill up to it before a kCFI hash.
    pub alignment: u16,
}

/// What decides beside the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// It is local and nobody takes its address.
    pub called_directly: bool,
    /// It calls nothing, and so does not save its return address.
    pub leaf: bool,
}

impl Function {
    /// A function that can be called from anywhere, and calls others.
    pub const ANY: Self = Self { called_directly: false, leaf: false };
}

/// Why options do not say what stands around an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionsError {
    /// The value of this option is not one that its compiler takes.
    Value {
        /// The option, up to its `=`.
        option: &'static str,
    },
    /// More nops before the entry than in all.
    MoreBefore {
        /// How many in all.
        nops: u16,
        /// How many before the entry.
        nops_before: u16,
    },
    /// `-mfentry` without `-mnop-mcount`: a call stands where the patch site would be.
    FentryCalls,
    /// `-mfentry` and nops at the entry: two patch sites.
    TwoSites,
    /// kCFI with gcc (16 has none), or `-mfentry` with what is not gcc on x86-64.
    NotKnown {
        /// The option.
        option: &'static str,
    },
    /// LLVM makes as few nops of the patch site as it can, so that five bytes of it need not be
    /// whole instructions.
    SiteNotFive {
        /// Bytes of the patch site.
        site: u16,
    },
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Value { option } => {
                write!(f, "the value of {option} is not one that the compiler takes: correct it")
            }
            Self::MoreBefore { nops, nops_before } => write!(
                f,
                "-fpatchable-function-entry={nops},{nops_before} asks for more nops before the \
                 entry than in all: make it {},{nops_before}",
                u32::from(nops_before) + 5
            ),
            Self::FentryCalls => f.write_str(
                "-mfentry alone leaves a call at the entry and no patch site: add -mnop-mcount",
            ),
            Self::TwoSites => f.write_str(
                "-mfentry and -fpatchable-function-entry both make a patch site: with -mfentry, \
                 put all nops before the entry (N,N)",
            ),
            Self::NotKnown { option } => {
                write!(f, "what this compiler makes of {option} is not known: leave it away")
            }
            Self::SiteNotFive { site } => write!(
                f,
                "LLVM need not make five bytes of their own of a patch site of {site}: compile \
                 with -fpatchable-function-entry=N,M where N is M+5"
            ),
        }
    }
}

impl core::error::Error for OptionsError {}

/// Of which number of bytes LLVM makes a multiple of what is before `function`, with kCFI on
/// x86-64 (seen with 16 to 23).
pub(super) const fn kcfi_multiple(
    llvm: u16,
    small: bool,
    alignment: u16,
    function: Function,
) -> u16 {
    // A hash is aligned since 17.
    let hash = if llvm >= 17 && !function.called_directly { 4 } else { 1 };
    if llvm >= 23 && alignment > 0 {
        return if alignment > hash { alignment } else { hash };
    }
    if small { hash } else { 16 }
}

const PATCHABLE: &str = "-fpatchable-function-entry";

impl Options {
    /// No option at all.
    #[must_use]
    pub const fn new(arch: Arch, compiler: Compiler) -> Self {
        Self {
            arch,
            compiler,
            nops: 0,
            nops_before: 0,
            fentry: false,
            landing_pads: false,
            sign_return: false,
            kcfi: false,
            small: false,
            alignment: 0,
        }
    }

    /// The options in `flags`, each as it is given to `compiler`; later ones override earlier
    /// ones, and the others are passed over. rustc's are understood with their `-Z` or `-C`.
    ///
    /// What a compiler was built to do without being asked is not known here: Debian's protects
    /// nothing, Ubuntu's gcc has `-fcf-protection` on.
    ///
    /// # Errors
    /// [`OptionsError::Value`] and [`OptionsError::FentryCalls`].
    pub fn parse<'a>(
        arch: Arch,
        compiler: Compiler,
        flags: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, OptionsError> {
        let mut options = Self::new(arch, compiler);
        let mut nop_mcount = false;
        for flag in flags {
            if let Some(level) = flag.strip_prefix("-O") {
                options.small = matches!(level, "s" | "z");
            }
            let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
            match name {
                "-fpatchable-function-entry" | "-Zpatchable-function-entry" => {
                    let error = OptionsError::Value { option: PATCHABLE };
                    let (nops, before) = value.split_once(',').unwrap_or((value, "0"));
                    options.nops = nops.parse().map_err(|_| error)?;
                    options.nops_before = before.parse().map_err(|_| error)?;
                }
                "-fcf-protection" | "-Zcf-protection" => {
                    options.landing_pads = match value {
                        "branch" | "full" | "" => true,
                        "none" | "return" => false,
                        _ => return Err(OptionsError::Value { option: "-fcf-protection" }),
                    };
                }
                "-mbranch-protection" | "-Zbranch-protection" => {
                    options.branch_protection(value)?
                }
                "-fsanitize" | "-Zsanitizer" => {
                    options.kcfi |= value.split(',').any(|one| one == "kcfi");
                }
                "-fno-sanitize" => {
                    options.kcfi &= !value.split(',').any(|one| one == "kcfi" || one == "all");
                }
                "-falign-functions" | "-Zmin-function-alignment" => {
                    let error = OptionsError::Value { option: "-falign-functions" };
                    // gcc takes more, for how far it goes; the first is the alignment.
                    let first = value.split_once(':').map_or(value, |(first, _)| first);
                    options.alignment =
                        if first.is_empty() { 0 } else { first.parse().map_err(|_| error)? };
                }
                "-mfentry" => options.fentry = true,
                "-mno-fentry" => options.fentry = false,
                "-mnop-mcount" => nop_mcount = true,
                _ => {}
            }
        }
        if options.fentry && !nop_mcount {
            return Err(OptionsError::FentryCalls);
        }
        Ok(options)
    }

    /// `value` of `-mbranch-protection=`, several of which are joined by `+` or, for rustc, `,`.
    fn branch_protection(&mut self, value: &str) -> Result<(), OptionsError> {
        (self.landing_pads, self.sign_return) = (false, false);
        for one in value.split(['+', ',']) {
            match one {
                "none" => {}
                "standard" => (self.landing_pads, self.sign_return) = (true, true),
                "bti" => self.landing_pads = true,
                "pac-ret" => self.sign_return = true,
                // They qualify `pac-ret` and change nothing at the entry.
                "leaf" | "b-key" | "pc" | "gcs" => {}
                _ => return Err(OptionsError::Value { option: "-mbranch-protection" }),
            }
        }
        Ok(())
    }

    /// What `function` is, compiled so.
    ///
    /// # Errors
    /// [`OptionsError`] says which options do not go together.
    pub const fn config(&self, function: Function) -> Result<Config, OptionsError> {
        let (unit, pad) = match self.arch {
            Arch::X86_64 => (1, LandingPad::Endbr64),
            Arch::Aarch64 => (super::aarch64::INSTRUCTION, LandingPad::BtiC),
        };
        let Some(nops) = self.nops.checked_sub(self.nops_before) else {
            return Err(OptionsError::MoreBefore {
                nops: self.nops,
                nops_before: self.nops_before,
            });
        };
        let (Some(padding), Some(mut site)) =
            (self.nops_before.checked_mul(unit), nops.checked_mul(unit))
        else {
            return Err(OptionsError::Value { option: PATCHABLE });
        };
        let (gcc, llvm) = match self.compiler {
            Compiler::Gcc => (true, 0),
            Compiler::Llvm(major) => (false, major),
        };
        let x86_64 = matches!(self.arch, Arch::X86_64);
        if self.fentry {
            if !gcc || !x86_64 {
                return Err(OptionsError::NotKnown { option: "-mfentry" });
            }
            if site > 0 {
                return Err(OptionsError::TwoSites);
            }
            site = super::x86_64::SITE_LEN;
        } else if x86_64 && !gcc && site > super::x86_64::SITE_LEN {
            return Err(OptionsError::SiteNotFive { site });
        }
        let mut config = match self.arch {
            Arch::X86_64 => Config::X86_64,
            Arch::Aarch64 => Config::AARCH64,
        };
        config = config.with_padding(padding).with_site(site);
        if self.kcfi {
            if gcc {
                return Err(OptionsError::NotKnown { option: "-fsanitize=kcfi" });
            }
            let multiple = kcfi_multiple(llvm, self.small, self.alignment, function);
            config = config.with_kcfi(multiple);
        }
        if function.called_directly {
            config = config.called_directly();
        }
        let signs = self.sign_return && !function.leaf;
        // `paciasp` is a landing pad, too, and is the only one where it is the first instruction
        // (gcc) or the function has no nops (LLVM). On arm64 LLVM leaves none away until 20: a
        // linker might reach any function by an indirect branch.
        let signed_first = signs && if gcc { site == 0 } else { self.nops == 0 };
        let reached = !function.called_directly || !x86_64 && !gcc && llvm <= 20;
        if self.landing_pads && reached && !signed_first {
            config = config.with_landing_pad(pad);
        }
        if signs {
            config = config.with_sign_return();
        }
        Ok(config)
    }
}
