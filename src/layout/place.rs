//! Where everything is in an entry: what follows from a [`Config`].

use super::{
    Arch, Config, EntryLayout, FineIbt, Kcfi, LayoutError, LayoutSpec, Part, Parts, SlotKind, What,
};

/// Bytes before the entry that a slot leaves to a call-depth thunk if it can: whether there is
/// one is decided at boot.
const THUNK_RESERVE: i32 = 10;

impl Config {
    /// The same as to what the bytes show, which is what [`detect`](super::detect) names. A hash
    /// is a number like any other: it shows on x86-64 where all from it on, or from what
    /// fills up before it, is a multiple of 16 bytes, and on arm64 never; neither does arm64
    /// padding, as functions are aligned by the same nops, but for an ops literal.
    #[must_use]
    pub const fn as_seen(self) -> Self {
        let before = self.before_entry();
        // Larger ones have no layout.
        let before = if before > u16::MAX as u32 { u16::MAX } else { before as u16 };
        let plain = Self { kcfi: Kcfi::Off, multiple: 1, ..self };
        match (self.arch, self.kcfi) {
            (Arch::X86_64, Kcfi::Hash) if before.is_multiple_of(16) => {
                Self { multiple: before, ..self }
            }
            (Arch::X86_64, Kcfi::Hash) => plain,
            (Arch::X86_64, Kcfi::NoHash | Kcfi::Off) => Self { padding: before, ..plain },
            (Arch::Aarch64, _) => Self {
                padding: if self.ops_literal { What::OpsLiteral.size() } else { 0 },
                ..plain
            },
        }
    }

    /// Bytes of the kCFI hash, with the instruction that it is in.
    const fn hash_size(&self) -> u32 {
        match (self.arch, self.kcfi) {
            (Arch::X86_64, Kcfi::Hash) => What::KcfiMov.size() as u32,
            (Arch::Aarch64, Kcfi::Hash) => What::KcfiWord.size() as u32,
            (_, Kcfi::Off | Kcfi::NoHash) => 0,
        }
    }

    /// Bytes before the entry that are the function's: padding, hash, and what fills it up.
    #[must_use]
    pub const fn before_entry(&self) -> u32 {
        let used = self.padding as u32 + self.hash_size();
        match (self.arch, self.kcfi) {
            (Arch::X86_64, Kcfi::Hash | Kcfi::NoHash) => {
                match used.checked_rem(self.multiple as u32) {
                    None | Some(0) => used,
                    Some(over) => used + self.multiple as u32 - over,
                }
            }
            _ => used,
        }
    }

    /// Bytes from the entry to the hash that an indirect call is checked against, four bytes
    /// long; negative. `None` without CFI.
    #[must_use]
    pub const fn hash(&self) -> Option<i32> {
        match (self.fineibt, self.kcfi) {
            (Some(fineibt), _) => Some(fineibt.hash()),
            (None, Kcfi::Hash) => Some(-(self.padding as i32) - 4),
            (None, Kcfi::Off | Kcfi::NoHash) => None,
        }
    }

    /// What stands where around the entry. Everything else before the entry is nops.
    ///
    /// # Errors
    /// [`LayoutError::Overlap`] and [`LayoutError::OutsidePadding`] name what does not go
    /// together or does not fit.
    pub const fn parts(&self) -> Result<Parts, LayoutError> {
        let mut parts = Parts::EMPTY;
        let hash = Part {
            at: -(self.padding as i32) - self.hash_size() as i32,
            what: match self.arch {
                Arch::X86_64 => What::KcfiMov,
                Arch::Aarch64 => What::KcfiWord,
            },
        };
        let covered = self.fineibt.is_some() && hash.at >= -(FineIbt::BEFORE as i32);
        let pad = self.landing_pad.size() as i32;
        // One row for each thing that an entry can have.
        let all = [
            match self.fineibt {
                Some(fineibt) => {
                    Some(Part { at: -(FineIbt::BEFORE as i32), what: What::FineIbt(fineibt) })
                }
                None if pad > 0 => Some(Part { at: 0, what: What::LandingPad(self.landing_pad) }),
                None => None,
            },
            if self.hash_size() > 0 && !covered { Some(hash) } else { None },
            match self.call_depth {
                Some(thunk) => {
                    Some(Part { at: -(thunk.size() as i32), what: What::CallDepth(thunk) })
                }
                None => None,
            },
            if self.ops_literal { Some(Part { at: -8, what: What::OpsLiteral }) } else { None },
            if self.site > 0 {
                Some(Part { at: self.site_at(), what: What::Site(self.site) })
            } else {
                None
            },
            if self.sign_return {
                Some(Part { at: self.site_at() + self.site as i32, what: What::SignReturn })
            } else {
                None
            },
        ];
        let mut i = 0;
        while i < all.len() {
            if let Some(part) = all[i] {
                if part.at < -(self.before_entry() as i32) {
                    return Err(LayoutError::OutsidePadding { part, padding: self.before_entry() });
                }
                if let Err(error) = parts.insert(part) {
                    return Err(error);
                }
            }
            i += 1;
        }
        Ok(parts)
    }

    /// Bytes from the entry to the patch site.
    const fn site_at(&self) -> i32 {
        self.landing_pad().size() as i32
    }

    /// The kind of slot that such functions have.
    #[must_use]
    pub const fn slot_kind(&self) -> SlotKind {
        match self.arch {
            Arch::X86_64 => SlotKind::MovEax,
            Arch::Aarch64 => SlotKind::Word,
        }
    }

    /// How many bytes before the entry the slot begins.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub const fn slot(&self) -> Result<u16, LayoutError> {
        self.room(self.slot_kind().size())
    }

    /// How many bytes before the entry `size` bytes can be put that nothing else uses.
    ///
    /// On x86-64 that is at the head of a block of 16 bytes, so that it crosses no cache line
    /// where entries are aligned to 16, and the tail stays free for a call-depth thunk; where
    /// the hash has the head, it is the tail. On arm64, where `size` is also the alignment, it is
    /// as near to the entry as can be.
    ///
    /// # Errors
    /// [`LayoutError::NoRoom`] says what has taken it; the others are those of
    /// [`parts`](Self::parts).
    pub const fn room(&self, size: u16) -> Result<u16, LayoutError> {
        let parts = match self.parts() {
            Ok(parts) => parts,
            Err(error) => return Err(error),
        };
        let whole = -(self.before_entry() as i32);
        // Farther away there is no place that 16 bits can say.
        let begin = if whole < -(u16::MAX as i32) { -(u16::MAX as i32) } else { whole };
        let len = size as i32;
        if let Arch::X86_64 = self.arch {
            let mut block = -16;
            while block + 15 >= begin {
                let end = if block == -16 { -THUNK_RESERVE } else { block + 16 };
                let mut at = if block > begin { block } else { begin };
                while at + len <= end {
                    if parts.is_free(at, at + len) {
                        return Ok(at.unsigned_abs() as u16);
                    }
                    at += 1;
                }
                block -= 16;
            }
        }
        let step = match self.arch {
            Arch::X86_64 => 1,
            Arch::Aarch64 => len,
        };
        let mut at = -len;
        while step > 0 && at >= begin {
            if parts.is_free(at, at + len) {
                return Ok(at.unsigned_abs() as u16);
            }
            at -= step;
        }
        Err(LayoutError::NoRoom { config: *self, size, largest: parts.largest_gap(whole) })
    }

    /// The layout of such functions, with a slot where there is room for one.
    ///
    /// # Errors
    /// [`LayoutError::SiteTooShort`] where the patch site does not hold a branch, and those of
    /// [`parts`](Self::parts) and [`EntryLayout::new`].
    pub const fn layout(&self) -> Result<EntryLayout, LayoutError> {
        let slot = match self.slot() {
            Ok(before) => Some((self.slot_kind(), before)),
            Err(LayoutError::NoRoom { .. }) => None,
            Err(error) => return Err(error),
        };
        let site_len = match (self.arch, self.site) {
            (Arch::X86_64, 5..) => super::x86_64::SITE_LEN,
            // The first of two nops saves the link register, which the second one changes.
            (Arch::Aarch64, 8..) => 8,
            (Arch::Aarch64, 4..) => 4,
            (Arch::X86_64, _) => {
                return Err(LayoutError::SiteTooShort { found: self.site, needed: 5 });
            }
            (Arch::Aarch64, _) => {
                return Err(LayoutError::SiteTooShort { found: self.site, needed: 4 });
            }
        };
        let before = self.before_entry();
        if before > u16::MAX as u32 {
            return Err(LayoutError::TooMuchPadding { padding: before });
        }
        let site = self.landing_pad().size();
        EntryLayout::new(LayoutSpec {
            padding: before as u16,
            slot,
            landing_pad: self.landing_pad(),
            site,
            site_len,
            origin: site + site_len,
        })
    }
}
