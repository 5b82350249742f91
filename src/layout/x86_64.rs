//! The layouts of x86-64 functions.
//!
//! gcc and clang, `-fpatchable-function-entry=N,M`: `M` bytes of padding before the entry,
//! `N - M` bytes of patch site after it, and after the `endbr64` where there is one
//! (GCC manual, "Instrumentation Options"; seen with gcc 12 and clang 16 and 19). What we use
//! of it is five bytes of patch site, the size of `call rel32`, and five of padding.

use super::{Config, EntryLayout, LandingPad, LayoutError};

/// Bytes of `call rel32`, `jmp rel32` and so of every patch site.
pub const SITE_LEN: u16 = 5;

/// The layout of a function with `padding` bytes before its entry, with or without a
/// landing pad. A slot is placed where the padding has room for one (five bytes).
///
/// # Errors
/// None for a padding that a compiler can make; the type is [`Config::layout`]'s.
pub const fn layout(padding: u16, landing_pad: LandingPad) -> Result<EntryLayout, LayoutError> {
    Config::X86_64.with_padding(padding).with_landing_pad(landing_pad).with_site(SITE_LEN).layout()
}

const fn known(padding: u16, landing_pad: LandingPad) -> EntryLayout {
    match layout(padding, landing_pad) {
        Ok(layout) => layout,
        // Evaluated at compile time only: the constants below are its only callers.
        Err(_) => panic!("a layout of this module overlaps itself"),
    }
}

/// `-fpatchable-function-entry=21,16`: 16 bytes of padding, no landing pad.
pub const PLAIN: EntryLayout = known(16, LandingPad::None);

/// `-fpatchable-function-entry=21,16 -fcf-protection=branch`: as [`PLAIN`], with `endbr64`
/// at the entry and the patch site behind it.
pub const IBT: EntryLayout = known(16, LandingPad::Endbr64);

/// `-fpatchable-function-entry=5` or `-mfentry -mnop-mcount`: a patch site, no padding.
pub const PLAIN_UNPADDED: EntryLayout = known(0, LandingPad::None);

/// As [`PLAIN_UNPADDED`] behind an `endbr64`.
pub const IBT_UNPADDED: EntryLayout = known(0, LandingPad::Endbr64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Entry;

    const ENTRY: Entry = Entry::new(0x1010);

    #[test]
    fn plain_and_ibt_are_what_the_compilers_were_seen_to_make() {
        assert_eq!(PLAIN.slot(ENTRY).map(|s| s.get()), Some(0x1000));
        assert_eq!(PLAIN.site(ENTRY).get(), 0x1010);
        assert_eq!(PLAIN.origin(ENTRY).get(), 0x1015);
        assert_eq!(PLAIN.return_to_index(), Some(20));
        assert_eq!(IBT.slot(ENTRY).map(|s| s.get()), Some(0x1000));
        assert_eq!(IBT.site(ENTRY).get(), 0x1014);
        assert_eq!(IBT.origin(ENTRY).get(), 0x1019);
        assert_eq!(IBT.return_to_index(), Some(24));
        assert_eq!(PLAIN_UNPADDED.slot(ENTRY), None);
        assert_eq!(IBT_UNPADDED.return_to_index(), None);
    }

    #[test]
    fn a_slot_is_offered_from_five_bytes_of_padding_on() {
        for padding in 0..=64 {
            let layout = layout(padding, LandingPad::None).unwrap();
            let slot = layout.slot(ENTRY).map(|slot| ENTRY.get() - slot.get());
            let expected = match padding {
                0..=4 => None,
                // The head of a block of 16 leaves the tail to a call-depth thunk of 10 bytes.
                5..=14 => Some(5),
                15 => Some(15),
                _ => Some(16),
            };
            assert_eq!(slot, expected, "padding {padding}");
        }
    }
}
