//! Where things stand around a function's entry: pure arithmetic.
//!
//! An [`EntryLayout`] is a value that says, in bytes relative to the entry, where the slot,
//! the landing pad, the patch site and the origin are. Every offset is *absolute from the
//! entry*: "bytes of padding" and "bytes before the entry" differ as soon as a compiler puts
//! a CFI preamble there, and offsets counted from anything else have already been wrong once
//! (Linux 7.2.7: "x86/cfi: Fix FineIBT hash offset in `cfi_get_func_hash()`").
//!
//! A new compiler option or CFI scheme is a new value, never a new code path:
//!
//! ```text
//!            -16        -11            0      4          9
//!  plain      | b8 index | 90 x 11     | site (5)  | origin
//!  IBT        | b8 index | 90 x 11     | endbr64 | site (5) | origin
//!             ^ slot                   ^ entry
//! ```
//!
//! Values for x86-64 are in [`x86_64`].

pub mod x86_64;

use core::fmt;

use crate::addr::{Entry, Origin, PatchSite, ReturnAddress, Slot};

/// The instruction or word that holds an index in the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlotKind {
    /// x86-64: `mov eax, imm32`, 5 bytes, the index in the last four. An instruction, so
    /// that the padding stays executable.
    MovEax,
}

impl SlotKind {
    /// Bytes that the slot takes.
    #[must_use]
    pub const fn size(self) -> u16 {
        match self {
            Self::MovEax => 5,
        }
    }

    /// Bytes from the start of the slot to the index in it.
    #[must_use]
    pub const fn index_offset(self) -> u16 {
        match self {
            Self::MovEax => 1,
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
}

impl LandingPad {
    /// Bytes that the landing pad takes.
    #[must_use]
    pub const fn size(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Endbr64 => 4,
        }
    }
}

/// What an [`EntryLayout`] is made from; all offsets are in bytes from the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayoutSpec {
    /// Bytes before the entry that the compiler left for us.
    pub padding: u16,
    /// The slot's kind and how many bytes before the entry it begins; `None` where the
    /// padding has no room for one.
    pub slot: Option<(SlotKind, u16)>,
    /// What stands at the entry itself.
    pub landing_pad: LandingPad,
    /// Bytes from the entry to the patch site.
    pub site: u16,
    /// Bytes of the instruction at the patch site.
    pub site_len: u16,
    /// Bytes from the entry to where the origin resumes.
    pub origin: u16,
}

/// Where things stand around one kind of function entry.
///
/// Made by [`EntryLayout::new`], which rejects places that overlap, so that every value of
/// this type is consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryLayout {
    spec: LayoutSpec,
}

/// Why a [`LayoutSpec`] does not describe an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// The slot begins before the padding does.
    SlotOutsidePadding {
        /// Bytes before the entry at which the slot was to begin.
        slot: u16,
        /// Bytes of padding there are.
        padding: u16,
    },
    /// The slot's last bytes would stand at or after the entry.
    SlotReachesEntry {
        /// Bytes before the entry at which the slot was to begin.
        slot: u16,
        /// Bytes that the slot takes.
        len: u16,
    },
    /// The patch site would overwrite the landing pad.
    SiteOnLandingPad {
        /// Bytes from the entry to the patch site.
        site: u16,
        /// Bytes that the landing pad takes.
        landing_pad: u16,
    },
    /// The patch site has no bytes, or the origin would resume inside it.
    OriginInsideSite {
        /// Bytes from the entry to where the origin was to resume.
        origin: u16,
        /// Bytes from the entry to the end of the patch site.
        site_end: u32,
    },
    /// The slot is so far before the return address of a called body that the distance does
    /// not fit into 16 bits.
    SlotTooFar {
        /// Bytes before the entry at which the slot was to begin.
        slot: u16,
        /// Bytes from the entry to the end of the patch site.
        site_end: u32,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SlotOutsidePadding { slot, padding } => write!(
                f,
                "the slot begins {slot} bytes before the entry, but the padding has only {padding}"
            ),
            Self::SlotReachesEntry { slot, len } => write!(
                f,
                "a slot of {len} bytes that begins {slot} bytes before the entry runs into it"
            ),
            Self::SiteOnLandingPad { site, landing_pad } => write!(
                f,
                "the patch site at entry+{site} overlaps the landing pad of {landing_pad} bytes"
            ),
            Self::OriginInsideSite { origin, site_end } => write!(
                f,
                "the origin at entry+{origin} is inside the patch site, which ends at entry+{site_end}"
            ),
            Self::SlotTooFar { slot, site_end } => write!(
                f,
                "from a slot {slot} bytes before the entry to the end of the patch site at \
                 entry+{site_end} is more than 65535 bytes"
            ),
        }
    }
}

impl core::error::Error for LayoutError {}

impl EntryLayout {
    /// Checks `spec` and makes it a layout.
    ///
    /// # Errors
    /// [`LayoutError`] names the two places that overlap or the one that is out of bounds.
    pub const fn new(spec: LayoutSpec) -> Result<Self, LayoutError> {
        if let Some((kind, slot)) = spec.slot {
            if slot > spec.padding {
                return Err(LayoutError::SlotOutsidePadding { slot, padding: spec.padding });
            }
            if slot < kind.size() {
                return Err(LayoutError::SlotReachesEntry { slot, len: kind.size() });
            }
        }
        if spec.site < spec.landing_pad.size() {
            return Err(LayoutError::SiteOnLandingPad {
                site: spec.site,
                landing_pad: spec.landing_pad.size(),
            });
        }
        let site_end = spec.site as u32 + spec.site_len as u32;
        if spec.site_len == 0 || (spec.origin as u32) < site_end {
            return Err(LayoutError::OriginInsideSite { origin: spec.origin, site_end });
        }
        if let Some((_, slot)) = spec.slot
            && site_end + slot as u32 > u16::MAX as u32
        {
            return Err(LayoutError::SlotTooFar { slot, site_end });
        }
        Ok(Self { spec })
    }

    /// Bytes before the entry that the compiler left.
    #[must_use]
    pub const fn padding(&self) -> u16 {
        self.spec.padding
    }

    /// What stands at the entry itself.
    #[must_use]
    pub const fn landing_pad(&self) -> LandingPad {
        self.spec.landing_pad
    }

    /// The slot's kind, where there is room for a slot.
    #[must_use]
    pub const fn slot_kind(&self) -> Option<SlotKind> {
        match self.spec.slot {
            Some((kind, _)) => Some(kind),
            None => None,
        }
    }

    /// Bytes of the instruction at the patch site.
    #[must_use]
    pub const fn site_len(&self) -> u16 {
        self.spec.site_len
    }

    /// The slot of the function at `entry`, where there is room for one.
    #[must_use]
    pub const fn slot(&self, entry: Entry) -> Option<Slot> {
        match self.spec.slot {
            Some((_, before)) => Some(Slot::new(entry.get().wrapping_sub(before as u64))),
            None => None,
        }
    }

    /// The patch site of the function at `entry`.
    #[must_use]
    pub const fn site(&self, entry: Entry) -> PatchSite {
        PatchSite::new(entry.get().wrapping_add(self.spec.site as u64))
    }

    /// What a body that was *called* from the patch site finds as its return address.
    #[must_use]
    pub const fn return_address(&self, entry: Entry) -> ReturnAddress {
        ReturnAddress::new(entry.get().wrapping_add(self.return_to_entry() as u64))
    }

    /// Where the function at `entry` goes on after its patch site.
    #[must_use]
    pub const fn origin(&self, entry: Entry) -> Origin {
        Origin::new(entry.get().wrapping_add(self.spec.origin as u64))
    }

    /// The entry of the function whose patch site is `site`.
    #[must_use]
    pub const fn entry_of_site(&self, site: PatchSite) -> Entry {
        Entry::new(site.get().wrapping_sub(self.spec.site as u64))
    }

    /// The entry of the function whose patch site called a body that returns to `back`.
    #[must_use]
    pub const fn entry_of_return(&self, back: ReturnAddress) -> Entry {
        Entry::new(back.get().wrapping_sub(self.return_to_entry() as u64))
    }

    /// The entry of the function whose slot is `slot`; `None` for a layout without one.
    #[must_use]
    pub const fn entry_of_slot(&self, slot: Slot) -> Option<Entry> {
        match self.spec.slot {
            Some((_, before)) => Some(Entry::new(slot.get().wrapping_add(before as u64))),
            None => None,
        }
    }

    /// Bytes from the entry forward to the return address that a called body sees.
    #[must_use]
    pub const fn return_to_entry(&self) -> u16 {
        self.spec.site + self.spec.site_len
    }

    /// Bytes from the return address that a called body sees back to the *index* in the
    /// slot: the one displacement a shared body needs. `None` for a layout without a slot.
    #[must_use]
    pub const fn return_to_index(&self) -> Option<u16> {
        match self.spec.slot {
            Some((kind, before)) => Some(self.return_to_entry() + before - kind.index_offset()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: LayoutSpec = LayoutSpec {
        padding: 16,
        slot: Some((SlotKind::MovEax, 16)),
        landing_pad: LandingPad::Endbr64,
        site: 4,
        site_len: 5,
        origin: 9,
    };

    #[test]
    fn every_place_leads_back_to_its_entry() {
        let layout = EntryLayout::new(GOOD).unwrap();
        for entry in [0x1000, 0x40_1010, 0xffff_ffff_8100_0010] {
            let entry = Entry::new(entry);
            assert_eq!(layout.entry_of_site(layout.site(entry)), entry);
            assert_eq!(layout.entry_of_return(layout.return_address(entry)), entry);
            let slot = layout.slot(entry).unwrap();
            assert_eq!(layout.entry_of_slot(slot), Some(entry));
            // The body reads the index relative to its return address; the slot codec
            // writes it relative to the slot. Both must mean the same four bytes.
            let back = u64::from(layout.return_to_index().unwrap());
            assert_eq!(layout.return_address(entry).get() - back, slot.get() + 1);
        }
    }

    #[test]
    fn overlaps_are_refused_by_name() {
        let new = EntryLayout::new;
        assert_eq!(
            new(LayoutSpec { padding: 4, slot: Some((SlotKind::MovEax, 5)), ..GOOD }),
            Err(LayoutError::SlotOutsidePadding { slot: 5, padding: 4 })
        );
        assert_eq!(
            new(LayoutSpec { slot: Some((SlotKind::MovEax, 4)), ..GOOD }),
            Err(LayoutError::SlotReachesEntry { slot: 4, len: 5 })
        );
        assert_eq!(
            new(LayoutSpec { site: 3, ..GOOD }),
            Err(LayoutError::SiteOnLandingPad { site: 3, landing_pad: 4 })
        );
        assert_eq!(
            new(LayoutSpec { origin: 8, ..GOOD }),
            Err(LayoutError::OriginInsideSite { origin: 8, site_end: 9 })
        );
        assert_eq!(
            new(LayoutSpec { site_len: 0, ..GOOD }),
            Err(LayoutError::OriginInsideSite { origin: 9, site_end: 4 })
        );
        assert_eq!(
            new(LayoutSpec { site: u16::MAX, ..GOOD }),
            Err(LayoutError::OriginInsideSite { origin: 9, site_end: u32::from(u16::MAX) + 5 })
        );
        let far = |slot| LayoutSpec {
            padding: slot,
            slot: Some((SlotKind::MovEax, slot)),
            site: 60_000,
            origin: 60_005,
            ..GOOD
        };
        // 60005 + 5530 is the last that 16 bits hold.
        assert_eq!(new(far(5530)).map(|layout| layout.return_to_index()), Ok(Some(65_534)));
        assert_eq!(new(far(5531)), Err(LayoutError::SlotTooFar { slot: 5531, site_end: 60_005 }));
    }
}
