//! Finding address space within reach of text.

use core::ffi::c_void;
use core::ops::Range;
use std::vec::Vec;

use rustix::io::Errno;

use super::maps::{self, PAGE};

/// How far apart an instruction and its target may be: a signed 32-bit displacement, less
/// one MiB, so that nobody has to count the length of the instruction or the padding.
pub(crate) const REACH: u64 = (1 << 31) - (1 << 20);

/// The lowest address tried: `vm.mmap_min_addr` is 65536 by default.
const LOWEST: u64 = 0x1_0000;
/// The end of user space with four-level page tables (Documentation/arch/x86/x86_64/mm.rst),
/// less the guard page.
const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Left free above the heap and below the main stack, which both grow into their gaps.
const GROWTH_ROOM: u64 = 128 << 20;
/// How often the list is read anew because somebody took the gaps in between.
const ROUNDS: usize = 4;

/// Why nothing could be placed.
pub(crate) enum Refusal {
    /// `/proc/self/maps` cannot be read.
    Maps(Errno),
    /// The kernel refuses the mapping itself, wherever it is.
    Map(Errno),
    /// No gap is large enough.
    NoRoom,
}

/// The addresses from which, and to which, every byte of `text` is within [`REACH`].
pub(crate) fn window(text: &Range<u64>) -> Range<u64> {
    let start = text.end.saturating_sub(REACH).max(LOWEST);
    let end = text.start.saturating_add(REACH).min(HIGHEST);
    start..end
}

/// Maps `len` bytes within reach of `text` with `map`, which is given one address after
/// another, nearest first, and answers `EEXIST` where something else is mapped.
pub(crate) fn place(
    text: &Range<u64>,
    len: u64,
    mut map: impl FnMut(*mut c_void) -> Result<*mut c_void, Errno>,
) -> Result<*mut c_void, Refusal> {
    for _ in 0..ROUNDS {
        let candidates = candidates(text, len).map_err(Refusal::Maps)?;
        if candidates.is_empty() {
            return Err(Refusal::NoRoom);
        }
        for address in candidates {
            match map(core::ptr::without_provenance_mut(address as usize)) {
                Ok(mapped) => return Ok(mapped),
                // Taken since the list was read, or below `vm.mmap_min_addr`.
                Err(Errno::EXIST | Errno::PERM) => {}
                Err(error) => return Err(Refusal::Map(error)),
            }
        }
    }
    Err(Refusal::NoRoom)
}

/// One address for each gap that has room, nearest to `text` first.
fn candidates(text: &Range<u64>, len: u64) -> Result<Vec<u64>, Errno> {
    let window = window(text);
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut free_from = LOWEST;
    let mut offer = |gap: Range<u64>| {
        let start = gap.start.max(window.start).next_multiple_of(PAGE);
        let end = gap.end.min(window.end) / PAGE * PAGE;
        if start.checked_add(len).is_none_or(|needed| needed > end) {
            return;
        }
        // The end of the gap that is nearer to the text.
        let (address, distance) = if end <= text.start {
            (end - len, text.start - end)
        } else {
            (start, start.saturating_sub(text.end))
        };
        found.push((distance, address));
    };
    maps::for_each(|mapping| {
        let end = match mapping.path {
            b"[stack]" => mapping.range.start.saturating_sub(GROWTH_ROOM),
            _ => mapping.range.start,
        };
        offer(free_from..end);
        free_from = match mapping.path {
            b"[heap]" => mapping.range.end.saturating_add(GROWTH_ROOM),
            _ => mapping.range.end,
        }
        .max(free_from);
    })?;
    offer(free_from..HIGHEST);
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_keeps_the_far_end_of_the_text_in_reach() {
        let text = 0x5555_0000_0000..0x5555_4000_0000;
        let window = window(&text);
        assert_eq!(text.end - window.start, REACH);
        assert_eq!(window.end - text.start, REACH);
        assert!(REACH < i32::MAX as u64);
    }

    #[test]
    fn text_longer_than_the_reach_has_no_window() {
        let window = window(&(0x1000_0000_0000..0x1001_0000_0000));
        assert!(window.is_empty());
    }
}
