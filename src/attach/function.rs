//! What the engine is told of a function, and keeps.

use crate::addr::Entry;
use crate::encode::x86_64::{NOP1X5, NOP5, NOP5_CLANG, NOP5_PREFIXED};
use crate::layout::EntryLayout;
use crate::metadata::Zeroed;
use crate::patch::SITE_LEN;

/// A function that an engine knows: its index in the record table, and in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FunctionId(pub(crate) u32);

impl FunctionId {
    /// The index.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// Functions that can share images: the embedder's name for a stretch of text, all of which
/// reaches the same image memory. A kernel has one; a process has one for each module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region(pub u16);

/// What a compiler leaves at a patch site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum SiteNop {
    /// `0f 1f 44 00 00`: `-mfentry -mnop-mcount`, Linux.
    FiveByte = 1,
    /// `0f 1f 44 00 08`: clang's `-fpatchable-function-entry`.
    Clang,
    /// `66 66 66 66 90`: five one-byte nops that have been [prepared](super::Engine::prepare).
    Prefixed,
    /// `90` five times: gcc's `-fpatchable-function-entry`. A thread may stand between two of
    /// them, so they are prepared before anything is attached.
    OneByte,
    /// `66 66 66 66 90`, while a thread may still stand between two of the nops that were
    /// there before.
    Unsettled,
}

impl SiteNop {
    /// The bytes at the site.
    #[must_use]
    pub const fn bytes(self) -> [u8; SITE_LEN] {
        match self {
            Self::FiveByte => NOP5,
            Self::Clang => NOP5_CLANG,
            Self::Prefixed | Self::Unsettled => NOP5_PREFIXED,
            Self::OneByte => NOP1X5,
        }
    }

    /// The nop whose bytes these are. Prefixed nops are taken to be one instruction.
    #[must_use]
    pub const fn of(bytes: [u8; SITE_LEN]) -> Option<Self> {
        match bytes {
            NOP5 => Some(Self::FiveByte),
            NOP5_CLANG => Some(Self::Clang),
            NOP5_PREFIXED => Some(Self::Prefixed),
            NOP1X5 => Some(Self::OneByte),
            _ => None,
        }
    }

    /// Whether the site is known to be one instruction to every thread.
    #[must_use]
    pub const fn is_one_instruction(self) -> bool {
        !matches!(self, Self::OneByte | Self::Unsettled)
    }
}

/// A function, as the embedder describes it to [`Engine::register`](super::Engine::register).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Where it is.
    pub entry: Entry,
    /// What stands around its entry.
    pub layout: EntryLayout,
    /// What stands at its patch site.
    pub nop: SiteNop,
    /// Which image memory it reaches.
    pub region: Region,
    /// How many arguments it has on the stack, in words of 8 bytes, if that is known. Programs
    /// at its exit then need no side stack: [`FrameBodies`](crate::emit::x86_64::FrameBodies).
    pub stack_arguments: Option<u8>,
}

/// What the engine keeps of a function: 16 bytes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct FunctionInfo {
    pub entry: u64,
    /// Bytes from the entry to the function's thunk; 0 if it has none.
    pub thunk: i32,
    /// Its class; see [`super::engine::Class`].
    pub class: u16,
    /// A [`SiteNop`]; 0 is none, so that zeroed memory is a value.
    nop: u8,
}

static_assertions::const_assert_eq!(size_of::<FunctionInfo>(), 16);

// SAFETY: four integers.
unsafe impl Zeroed for FunctionInfo {}

impl FunctionInfo {
    pub const fn new(entry: Entry, class: u16, nop: SiteNop) -> Self {
        Self { entry: entry.get(), thunk: 0, class, nop: nop as u8 }
    }

    pub const fn entry(&self) -> Entry {
        Entry::new(self.entry)
    }

    /// What stands at the patch site while nothing is attached. `None` for an index that was
    /// given back.
    pub const fn nop(&self) -> Option<SiteNop> {
        const FIVE_BYTE: u8 = SiteNop::FiveByte as u8;
        const CLANG: u8 = SiteNop::Clang as u8;
        const PREFIXED: u8 = SiteNop::Prefixed as u8;
        const ONE_BYTE: u8 = SiteNop::OneByte as u8;
        const UNSETTLED: u8 = SiteNop::Unsettled as u8;
        match self.nop {
            FIVE_BYTE => Some(SiteNop::FiveByte),
            CLANG => Some(SiteNop::Clang),
            PREFIXED => Some(SiteNop::Prefixed),
            ONE_BYTE => Some(SiteNop::OneByte),
            UNSETTLED => Some(SiteNop::Unsettled),
            _ => None,
        }
    }

    pub const fn set_nop(&mut self, nop: Option<SiteNop>) {
        self.nop = match nop {
            Some(nop) => nop as u8,
            None => 0,
        };
    }

    /// Remembers the function's thunk, which is within 2 GiB of it. `false` if it is not.
    #[must_use]
    pub fn set_thunk(&mut self, thunk: u64) -> bool {
        let distance = i32::try_from(thunk.wrapping_sub(self.entry).cast_signed());
        self.thunk = distance.unwrap_or(0);
        distance.is_ok()
    }

    /// The function's thunk, if it has one.
    pub const fn thunk(&self) -> Option<u64> {
        match self.thunk {
            0 => None,
            distance => Some(self.entry.wrapping_add_signed(distance as i64)),
        }
    }
}
