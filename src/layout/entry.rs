//! Where things stand around one kind of entry, as a body and the engine need it.

use super::{LandingPad, LayoutError, SlotKind};
use crate::addr::{Entry, Origin, PatchSite, ReturnAddress, Slot};

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

    /// What it was made from.
    pub(super) const fn spec(&self) -> LayoutSpec {
        self.spec
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
