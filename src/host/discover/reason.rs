//! Why a site, a module or a whole search came to nothing.

use core::fmt;
use std::string::String;

use super::site::Hex;
use crate::layout::LayoutError;

/// Why a recorded patch site cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Fewer than five bytes of nops stand where the patch site would be.
    ShortSite {
        /// What stands there; zeros behind the function's own bytes.
        found: [u8; 5],
        /// Bytes of nops at its beginning.
        nops: u8,
    },
    /// There are nops enough, but none ends with the fifth byte or they are none that a
    /// patch site is known to have.
    OtherNops {
        /// What stands at the site.
        found: [u8; 5],
    },
    /// A jump, a call or a breakpoint stands at the site, or no nop in the padding: someone
    /// else's bytes. A function that was compiled without a site can begin so, too.
    ForeignBytes {
        /// What stands there.
        found: [u8; 5],
    },
    /// The first two bytes of the patch site cannot be stored at once on this CPU, as rewriting
    /// it while threads run needs it: they are in two aligned blocks of 16 bytes.
    Straddles,
    /// Neither the symbol table nor the unwind table knows which function the record
    /// belongs to, and the bytes do not say so either.
    UnknownEntry,
    /// The record does not point into code of its module: the linker dropped the function,
    /// or left a record of zero.
    NotInText,
    /// The padding before the entry is not what a layout can have.
    Layout(LayoutError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COMPILE: &str = "compile with -fpatchable-function-entry=21,16 or =5";
        match self {
            Self::ShortSite { found, nops } => write!(
                f,
                "the patch site has {nops} bytes of nops ({}), and 5 are needed: {COMPILE}",
                Hex(found)
            ),
            Self::OtherNops { found } => write!(
                f,
                "the nops at the patch site ({}) do not make five bytes of their own: {COMPILE}",
                Hex(found)
            ),
            Self::ForeignBytes { found } => write!(
                f,
                "the patch site is taken ({} where nops are expected): detach the other tracer \
                 or debugger; if there is none, {COMPILE}",
                Hex(found)
            ),
            Self::Straddles => f.write_str(
                "the patch site cannot be rewritten while threads run, because of where it \
                 begins: align functions with -falign-functions=16",
            ),
            Self::UnknownEntry => f.write_str(
                "the function that the record belongs to is unknown: \
                 keep the symbol table or the unwind tables",
            ),
            Self::NotInText => f.write_str(
                "the record does not point into the module's code: \
                 the linker dropped the function, nothing is lost",
            ),
            Self::Layout(error) => write!(f, "the entry cannot be described: {error}"),
        }
    }
}

/// Why no site of a loaded module was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The module's file cannot be read.
    Unreadable {
        /// The operating system's error number, where it gave one.
        os_error: Option<i32>,
    },
    /// The file is no ELF file of this machine, or is damaged.
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// The file is not what is loaded; it was replaced since.
    Differs(Difference),
    /// Memory that the file says is mapped could not be read.
    UnreadableMemory {
        /// The first address, absolute.
        address: u64,
        /// How many bytes were wanted.
        len: u64,
    },
    /// No record points into the module's code: the module is still being loaded.
    NotRelocated {
        /// How many records it has.
        records: usize,
    },
}

/// In what a module's file and its loaded image differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The program headers.
    ProgramHeaders,
    /// The build id.
    BuildId,
    /// There is no build id, and a read-only section has other contents.
    Contents {
        /// Where the section is loaded, absolute.
        address: u64,
    },
    /// The file is too short to hold what is loaded.
    Length,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { os_error: Some(error) } => {
                let error = std::io::Error::from_raw_os_error(*error);
                write!(f, "its file cannot be read ({error}): put it back where it was loaded from")
            }
            Self::Unreadable { os_error: None } => f.write_str("its file cannot be read"),
            Self::Damaged { what } => {
                write!(f, "its file is not a sound x86-64 ELF file ({what}): put the original back")
            }
            Self::Differs(how) => {
                let how = match how {
                    Difference::ProgramHeaders => "program headers",
                    Difference::BuildId => "build id",
                    Difference::Contents { .. } => "contents",
                    Difference::Length => "length",
                };
                write!(
                    f,
                    "its file is not what is loaded ({how} differ): \
                     put the original back or restart the process"
                )
            }
            Self::UnreadableMemory { address, len } => {
                write!(f, "{len} bytes of its memory at {address:#x} cannot be read")
            }
            Self::NotRelocated { records } => write!(
                f,
                "none of its {records} records points into its code: \
                 it is still being loaded, search again when it is"
            ),
        }
    }
}

/// Why there is no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoverError {
    /// The dynamic loader reports no module, not even the program.
    NothingLoaded,
}

impl fmt::Display for DiscoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingLoaded => f.write_str(
                "dl_iterate_phdr reports no module: link the program with a loader that does",
            ),
        }
    }
}

impl core::error::Error for Reason {}
impl core::error::Error for SkipReason {}
impl core::error::Error for DiscoverError {}
