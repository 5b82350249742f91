//! What stands around a patch site of Linux.
//!
//! A function of a kernel with `CONFIG_CALL_PADDING` and without kCFI, as compilers and ftrace
//! leave it (arch/x86/Kconfig, `FUNCTION_PADDING_BYTES`; seen in Debian's 7.2.13):
//!
//! ```text
//! entry-16   90 x 16
//! entry      f3 0f 1e fa       endbr64, where the function's address is taken; the boot of a
//!                              kernel with IBT replaces those that it can do without
//! entry+4    0f 1f 44 00 00    the site: what ftrace makes of call __fentry__
//! ```

use core::fmt;

use fentry::addr::Entry;
use fentry::attach::{FunctionSpec, Region, SiteNop};
use fentry::layout::x86_64::{IBT, PLAIN};
use fentry::patch::{SITE_LEN, Text};

use crate::embedder::FtraceText;
use crate::kernel::Errno;

/// `endbr64`, and what the boot replaces it with (arch/x86/include/asm/ibt.h, `gen_endbr_poison`:
/// up to 7.1 a nopw, in 7.2 a nopl; the first of them is `osp nopl (%rax)`).
const LANDING_PADS: [[u8; 4]; 3] =
    [[0xf3, 0x0f, 0x1e, 0xfa], [0x66, 0x0f, 0x1f, 0x00], [0x0f, 0x1f, 0x40, 0xd6]];

/// Padding that nobody uses.
const PADDING: [u8; 16] = [0x90; 16];

/// Where Linux puts its own text, and modules behind it (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_TEXT: core::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;

/// Why a function is not attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not in the kernel's own text: it is a module's, and could be unloaded.
    NotInKernel,
    /// Its text cannot be read.
    Unreadable(Errno),
    /// What stands at its site is not ftrace's nop, nor a call.
    Site([u8; SITE_LEN]),
    /// Other bytes than nops stand where its slot would be.
    NoPadding,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInKernel => f.write_str("it is not in the kernel's own text"),
            Self::Unreadable(error) => write!(f, "its text cannot be read: {error}"),
            Self::Site(found) => {
                write!(f, "its patch site holds {found:02x?}, and not the nop that ftrace leaves")
            }
            Self::NoPadding => f.write_str(
                "the 16 bytes before its entry are not nops: it was compiled without \
                 CONFIG_CALL_PADDING, or something else uses them",
            ),
        }
    }
}

/// Describes the function whose patch site is at `site`.
///
/// # Errors
/// Why it cannot be attached to.
pub fn describe(text: &FtraceText, site: u64) -> Result<FunctionSpec, Refusal> {
    if !KERNEL_TEXT.contains(&site) {
        return Err(Refusal::NotInKernel);
    }
    let found = text.read(site).map_err(Refusal::Unreadable)?;
    if SiteNop::of(found) != Some(SiteNop::FiveByte) {
        return Err(Refusal::Site(found));
    }
    let before = |len| site.wrapping_sub(len);
    let plain: [u8; 16] = text.read(before(16)).map_err(Refusal::Unreadable)?;
    let padded: [u8; 16] = text.read(before(20)).map_err(Refusal::Unreadable)?;
    let landing_pad: [u8; 4] = text.read(before(4)).map_err(Refusal::Unreadable)?;
    let (entry, layout) = if plain == PADDING {
        (site, PLAIN)
    } else if padded == PADDING && LANDING_PADS.contains(&landing_pad) {
        (before(4), IBT)
    } else {
        return Err(Refusal::NoPadding);
    };
    Ok(FunctionSpec {
        entry: Entry::new(entry),
        layout,
        nop: SiteNop::FiveByte,
        region: Region(0),
        // Whoever measures a function says so of it.
        stack_arguments: Some(0),
    })
}
