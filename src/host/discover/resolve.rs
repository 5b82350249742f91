//! From a recorded address to the function it belongs to.
//!
//! What is recorded (GCC manual, "Instrumentation Options"; LLVM language reference,
//! `"patchable-function"`; seen with gcc 12 and clang 16): with padding, where the padding
//! begins; without, where the nops begin, which is behind an `endbr64` where there is one.
//! `__mcount_loc` has the address of the nop.

use core::ops::Range;

use super::image::Memory;
use super::reason::Reason;
use super::site::{ENDBR64, is_padding, judge, landing_pad, nop_at, nop_len};
use super::starts::Starts;
use crate::addr::Entry;
use crate::attach::SiteNop;
use crate::layout::EntryLayout;
use crate::layout::x86_64::{SITE_LEN, layout};

/// Most padding that is believed, in bytes. gcc takes up to 65535; nobody asks for more than
/// a few cache lines, and the nearer the next function the surer that it is the right one.
const MOST_PADDING: u64 = 255;

/// Bytes from the record on that are looked at.
const REACH: u64 = MOST_PADDING + ENDBR64.len() as u64 + 2 * SITE_LEN as u64;

/// Bytes before the record that are looked at.
const BACK: u64 = ENDBR64.len() as u64;

/// The bytes around a record.
pub(super) struct Window {
    base: u64,
    len: usize,
    bytes: [u8; (BACK + REACH) as usize],
}

impl Window {
    /// Reads around `record`, inside the code range that it is in.
    pub(super) fn read(
        record: u64,
        text: &[Range<u64>],
        memory: &dyn Memory,
    ) -> Result<Self, Reason> {
        let range = text.iter().find(|range| range.contains(&record)).ok_or(Reason::NotInText)?;
        let base = record.saturating_sub(BACK).max(range.start);
        let end = record.saturating_add(REACH).min(range.end);
        let mut window = Self { base, len: 0, bytes: [0; (BACK + REACH) as usize] };
        let len = (end - base) as usize;
        let bytes = window.bytes.get_mut(..len).ok_or(Reason::NotInText)?;
        if !memory.read(base, bytes) {
            return Err(Reason::NotInText);
        }
        window.len = len;
        Ok(window)
    }

    /// The bytes from `address` on; none if it is not in the window.
    fn from(&self, address: u64) -> &[u8] {
        let bytes = self.bytes.get(..self.len).unwrap_or(&[]);
        let skip = address.checked_sub(self.base).and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| bytes.get(skip..)).unwrap_or(&[])
    }

    /// The bytes of a range; none if it is not all in the window.
    fn between(&self, from: u64, to: u64) -> Option<&[u8]> {
        self.from(from).get(..usize::try_from(to.checked_sub(from)?).ok()?)
    }
}

/// A function whose patch site was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) entry: Entry,
    pub(super) padding: u16,
    pub(super) len: u64,
}

impl Site {
    /// Where its padding begins.
    pub(super) const fn begins(&self) -> u64 {
        self.entry.get().saturating_sub(self.padding as u64)
    }
}

/// Finds the function that `record` belongs to.
pub(super) fn resolve(record: u64, window: &Window, starts: &Starts) -> Result<Site, Reason> {
    let site = |entry: u64, len: u64| Site {
        entry: Entry::new(entry),
        padding: entry.saturating_sub(record) as u16,
        len,
    };
    let behind_endbr = record.wrapping_sub(BACK);
    let endbr = window.from(behind_endbr).starts_with(&ENDBR64);
    let here = starts.at(record);
    let before = starts.at(behind_endbr).filter(|_| endbr);

    // A function that has bytes of its own at the record owns it. One that ends there does
    // not: a function that never returns can be nothing but its `endbr64`, and the padding
    // of the next may follow at once.
    if let Some(start) = here.filter(|start| start.len > 0) {
        return Ok(site(record, start.len));
    }
    if let Some(start) = before.filter(|start| start.len > BACK) {
        return Ok(site(start.address, start.len));
    }
    let near = starts.after(record).iter();
    let near = near.take_while(|start| start.address - record <= MOST_PADDING);
    let mut padded =
        near.filter(|start| window.between(record, start.address).is_some_and(is_padding));
    // A symbol of size zero can be a function that is nothing but its own padding; the next
    // one's follows it.
    if let Some(nearest) = padded.clone().find(|start| start.len > 0).or_else(|| padded.next()) {
        return Ok(site(nearest.address, nearest.len));
    }
    // Only a symbol without a size is left to say it.
    if let Some(start) = here.or(before) {
        return Ok(site(start.address, start.len));
    }
    if let Some(entry) = by_bytes(record, endbr, window) {
        return Ok(site(entry, 0));
    }
    match taken_padding(record, window, starts) {
        Some(found) => Err(Reason::ForeignBytes { found }),
        None => Err(Reason::UnknownEntry),
    }
}

/// What stands at the record if that is between two functions, and so padding, but no nop.
fn taken_padding(record: u64, window: &Window, starts: &Starts) -> Option<[u8; 5]> {
    let before = starts.before(record)?;
    let next = starts.after(record).first()?;
    let between = before.len > 0
        && before.address.checked_add(before.len)? <= record
        && next.address - record <= MOST_PADDING;
    let bytes = window.from(record);
    bytes.first_chunk().copied().filter(|_| between && nop_len(bytes).is_none())
}

/// The entry as the bytes alone tell it, for a function that no table knows.
///
/// An `endbr64` is at an entry and nowhere else near a patch site; and padding is one-byte
/// nops, so the first nop of five bytes is a patch site. One-byte nops alone could be padding
/// or a site or both.
fn by_bytes(record: u64, endbr: bool, window: &Window) -> Option<u64> {
    let mut at = record;
    let ahead = loop {
        let bytes = window.from(at);
        if bytes.starts_with(&ENDBR64) {
            break nop_at(bytes.get(ENDBR64.len()..)?).map(|_| at);
        }
        if nop_at(bytes).is_some_and(SiteNop::is_one_instruction) {
            break Some(at);
        }
        let one_byte = bytes.first() == Some(&0x90) && nop_len(bytes) == Some(1);
        if !one_byte || at - record > MOST_PADDING {
            break None;
        }
        at += 1;
    };
    match ahead {
        // The nop of five bytes right behind an `endbr64`.
        Some(at) if endbr && at == record => record.checked_sub(BACK),
        // An `endbr64` on either side: two functions could own the record.
        Some(_) if endbr => None,
        Some(at) => Some(at),
        None if endbr && nop_at(window.from(record)).is_some() => record.checked_sub(BACK),
        None => None,
    }
}

/// Reads the layout of the function at `site` from the bytes at its entry.
pub(super) fn describe(site: &Site, window: &Window) -> Result<(EntryLayout, SiteNop), Reason> {
    let at_entry = window.from(site.entry.get());
    let landing_pad = landing_pad(at_entry);
    let skip = usize::from(landing_pad.size());
    let at_site = at_entry.get(skip..).ok_or(Reason::NotInText)?;
    if at_site.len() < usize::from(SITE_LEN) {
        return Err(Reason::NotInText);
    }
    // A function of unknown length is taken to own what follows.
    let own = match site.len {
        0 => at_site.len(),
        len => usize::try_from(len).unwrap_or(usize::MAX).saturating_sub(skip),
    };
    let nop = judge(at_site, own)?;
    let layout = layout(site.padding, landing_pad).map_err(Reason::Layout)?;
    Ok((layout, nop))
}
