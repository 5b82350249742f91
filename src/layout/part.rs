//! What can stand around an entry, and the bytes by which it is known.

use super::byte::{Byte, pattern};
use super::{CallDepth, FineIbt, LayoutError};

/// The instruction or word that holds an index in the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlotKind {
    /// x86-64: `mov eax, imm32`, 5 bytes, the index in the last four. An instruction, so
    /// that the padding stays executable.
    MovEax,
    /// arm64: the index itself, one aligned word. It is no instruction that may be executed,
    /// and nothing executes the words before an entry. An index of 0xd503201f would read as
    /// the nop that stands in an empty slot.
    Word,
}

impl SlotKind {
    /// Bytes that the slot takes.
    #[must_use]
    pub const fn size(self) -> u16 {
        match self {
            Self::MovEax => 5,
            Self::Word => 4,
        }
    }

    /// Bytes from the start of the slot to the index in it.
    #[must_use]
    pub const fn index_offset(self) -> u16 {
        match self {
            Self::MovEax => 1,
            Self::Word => 0,
        }
    }
}

/// The instruction that an indirect branch must land on, where one stands at the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LandingPad {
    /// No landing pad: the patch site may stand at the entry itself.
    None,
    /// `endbr64`, `f3 0f 1e fa` (Intel SDM volume 2, ENDBR64).
    Endbr64,
    /// A nop of four bytes where an `endbr64` was. Linux writes it at boot over those that no
    /// indirect branch needs, and where FineIBT has a landing pad of its own before the entry:
    /// `66 0f 1f 00`, in 7.2 `0f 1f 40 d6` (`gen_endbr_poison`, arch/x86/include/asm/ibt.h).
    Sealed,
    /// arm64: `bti c`, the word 0xd503245f (Arm ARM, BTI).
    BtiC,
}

impl LandingPad {
    /// Bytes that the landing pad takes.
    #[must_use]
    pub const fn size(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Endbr64 | Self::Sealed | Self::BtiC => 4,
        }
    }

    /// The bytes that it can be, `size` for each way.
    const fn forms(self) -> &'static [Byte] {
        match self {
            Self::None => &[],
            Self::Endbr64 => &const { pattern::<4>("f3 0f 1e fa") },
            Self::Sealed => &const { pattern::<8>("66 0f 1f 00 0f 1f 40 d6") },
            Self::BtiC => &const { pattern::<4>("5f 24 03 d5") },
        }
    }
}

/// What a part of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum What {
    /// kCFI on x86-64: `mov r32, hash`, 5 bytes, the hash in the last four.
    KcfiMov,
    /// kCFI on arm64: the hash, one word.
    KcfiWord,
    /// A FineIBT preamble, 16 bytes before the entry and 4 at it.
    FineIbt(&'static FineIbt),
    /// Linux's call-depth accounting, which runs into the entry.
    CallDepth(CallDepth),
    /// arm64: what `DYNAMIC_FTRACE_WITH_CALL_OPS` keeps before a function, a pointer of 8
    /// bytes, aligned to 8.
    OpsLiteral,
    /// What indirect branches land on.
    LandingPad(LandingPad),
    /// The nops of the patch site, this many bytes.
    Site(u16),
    /// arm64: `paciasp`, the word 0xd503233f, with which the origin begins.
    SignReturn,
}

impl What {
    /// Bytes that it takes.
    #[must_use]
    pub const fn size(self) -> u16 {
        match self {
            Self::KcfiMov => 5,
            Self::KcfiWord | Self::SignReturn => 4,
            Self::FineIbt(_) => FineIbt::SIZE,
            Self::CallDepth(thunk) => thunk.size(),
            Self::OpsLiteral => 8,
            Self::LandingPad(pad) => pad.size(),
            Self::Site(len) => len,
        }
    }

    /// The bytes that it can be: [`size`](Self::size) for each way, one after the other. Empty
    /// for a patch site, whose nops depend on the compiler.
    #[must_use]
    pub const fn forms(self) -> &'static [Byte] {
        match self {
            Self::KcfiMov => &const { pattern::<5>("b+ hh hh hh hh") },
            Self::KcfiWord => &[Byte::Hash; 4],
            Self::FineIbt(fineibt) => fineibt.forms().as_flattened(),
            Self::CallDepth(thunk) => thunk.forms(),
            // A pointer to kernel memory: its two highest bytes are ones.
            Self::OpsLiteral => &const { pattern::<8>(".. .. .. .. .. .. ff ff") },
            Self::LandingPad(pad) => pad.forms(),
            Self::Site(_) => &[],
            Self::SignReturn => &const { pattern::<4>("3f 23 03 d5") },
        }
    }

    /// What it is called, as in "the kCFI hash".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KcfiMov | Self::KcfiWord => "kCFI hash",
            Self::FineIbt(_) => "FineIBT preamble",
            Self::CallDepth(_) => "call-depth thunk",
            Self::OpsLiteral => "ops literal",
            Self::LandingPad(_) => "landing pad",
            Self::Site(_) => "patch site",
            Self::SignReturn => "paciasp",
        }
    }
}

/// Something that stands around an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Bytes from the entry to its first byte; negative before the entry.
    pub at: i32,
    /// What it is.
    pub what: What,
}

impl Part {
    /// Bytes from the entry to the byte after its last.
    #[must_use]
    pub const fn end(&self) -> i32 {
        self.at.saturating_add(self.what.size() as i32)
    }
}

/// Most parts that an entry has: hash, thunk or literal, preamble or landing pad, site, and the
/// origin's `paciasp`.
const MOST: usize = 6;

/// What stands around an entry, in the order of addresses. Between the parts are nops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    list: [Part; MOST],
    len: usize,
}

impl Parts {
    pub(super) const EMPTY: Self =
        Self { list: [Part { at: 0, what: What::Site(0) }; MOST], len: 0 };

    /// The parts.
    #[must_use]
    pub const fn as_slice(&self) -> &[Part] {
        self.list.split_at(self.len).0
    }

    /// Adds `part` where it belongs.
    ///
    /// # Errors
    /// [`LayoutError::Overlap`] if something stands there already.
    pub(super) const fn insert(&mut self, part: Part) -> Result<(), LayoutError> {
        let mut i = 0;
        while i < self.len {
            let other = self.list[i];
            if part.at < other.end() && other.at < part.end() {
                let (first, second) =
                    if other.at <= part.at { (other, part) } else { (part, other) };
                return Err(LayoutError::Overlap { first, second });
            }
            i += 1;
        }
        // A configuration has one place for each part, and there are `MOST` of them.
        let mut i = self.len;
        while i > 0 && self.list[i - 1].at > part.at {
            self.list[i] = self.list[i - 1];
            i -= 1;
        }
        self.list[i] = part;
        self.len += 1;
        Ok(())
    }

    /// Whether nothing but nops stands from `start` to before `end`.
    pub(super) const fn is_free(&self, start: i32, end: i32) -> bool {
        let mut i = 0;
        while i < self.len {
            if start < self.list[i].end() && self.list[i].at < end {
                return false;
            }
            i += 1;
        }
        true
    }

    /// Most bytes from `begin` to before the entry that are nops without a break.
    pub(super) const fn largest_gap(&self, begin: i32) -> u16 {
        let mut largest = 0;
        let mut start = begin;
        let mut i = 0;
        // One gap before each part, and one behind the last that is before the entry.
        while start < 0 {
            let (end, next) = match self.as_slice().split_at(i).1.first() {
                Some(part) if part.at < 0 => (part.at, part.end()),
                _ => (0, 0),
            };
            if end - start > largest {
                largest = end - start;
            }
            start = next;
            i += 1;
        }
        if largest > u16::MAX as i32 { u16::MAX } else { largest.unsigned_abs() as u16 }
    }
}
