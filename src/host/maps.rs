//! The address space of this process, as `/proc/self/maps` lists it.
//!
//! The reader neither allocates nor takes a lock, because one of its users reads while
//! every other thread is held, possibly inside the allocator.

use core::ops::{ControlFlow, Range};

use bitflags::bitflags;
use rustix::io::Errno;

use super::lines;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

bitflags! {
    /// What a mapping allows: `mprotect(2)`'s `PROT_READ`, `PROT_WRITE`, `PROT_EXEC`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Protection: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetch.
        const EXECUTE = 4;
    }
}

/// One line of `/proc/self/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// The addresses mapped. Both ends are multiples of the page size.
    pub range: Range<u64>,
    /// What is allowed there.
    pub protection: Protection,
    /// Whether stores reach the file or other processes (`MAP_SHARED`).
    pub shared: bool,
    /// The file, or a name in brackets such as `[stack]`; empty for anonymous memory.
    pub path: &'a [u8],
}

/// Calls `visit` for every mapping, lowest address first.
///
/// The list is taken a page of text at a time: where other threads map and unmap meanwhile,
/// it may mix before and after. Allocates nothing and takes no lock.
///
/// # Errors
/// `/proc/self/maps` cannot be read (`/proc` not mounted, a sandbox), or a line of it is not
/// of the form that proc(5) documents (`EILSEQ`).
pub fn for_each(mut visit: impl FnMut(Mapping<'_>)) -> Result<(), Errno> {
    let mut strange = false;
    lines::for_each(c"/proc/self/maps", |line| match parse(line) {
        Some(mapping) => {
            visit(mapping);
            ControlFlow::Continue(())
        }
        None => {
            strange = true;
            ControlFlow::Break(())
        }
    })?;
    if strange { Err(Errno::ILSEQ) } else { Ok(()) }
}

/// `55d0-55e0 r-xp 00001000 fe:00 1234    /path`, proc(5).
fn parse(line: &[u8]) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut column = || {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        let from = rest.get(start..)?;
        let end = from.iter().position(|&byte| byte == b' ').unwrap_or(from.len());
        let (word, tail) = from.split_at(end);
        rest = tail;
        Some(word)
    };
    let range = column()?;
    let flags = column()?;
    let (_offset, _device, _inode) = (column()?, column()?, column()?);
    let path = rest.trim_ascii_start();

    let dash = range.iter().position(|&byte| byte == b'-')?;
    let (start, end) = (hex(range.get(..dash)?)?, hex(range.get(dash + 1..)?)?);
    let &[read, write, execute, sharing] = flags else {
        return None;
    };
    let mut protection = Protection::empty();
    protection.set(Protection::READ, read == b'r');
    protection.set(Protection::WRITE, write == b'w');
    protection.set(Protection::EXECUTE, execute == b'x');
    Some(Mapping { range: start..end, protection, shared: sharing == b's', path })
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_path_that_has_spaces() {
        let line = b"7f00-7f10 r-xs 00001000 fe:00 1234                 /a b/c (deleted)";
        let mapping = parse(line).unwrap();
        assert_eq!(mapping.range, 0x7f00..0x7f10);
        assert_eq!(mapping.protection, Protection::READ | Protection::EXECUTE);
        assert!(mapping.shared);
        assert_eq!(mapping.path, b"/a b/c (deleted)");
    }

    #[test]
    fn anonymous_memory_has_an_empty_path() {
        let mapping = parse(b"1000-2000 ---p 00000000 00:00 0 ").unwrap();
        assert_eq!((mapping.protection, mapping.path), (Protection::empty(), &b""[..]));
    }

    #[test]
    fn what_is_not_a_line_is_refused() {
        assert_eq!(parse(b"1000 r-xp 00000000 00:00 0"), None);
        assert_eq!(parse(b"1000-2000 r-x 00000000 00:00 0"), None);
        assert_eq!(parse(b"1000-2000 r-xp 0"), None);
    }

    #[test]
    fn the_list_has_this_code_and_this_stack() {
        let here = the_list_has_this_code_and_this_stack as *const () as u64;
        let local = 0u8;
        let stack = &raw const local as u64;
        let (mut code, mut data) = (None, None);
        for_each(|mapping| {
            if mapping.range.contains(&here) {
                code = Some(mapping.protection);
            }
            if mapping.range.contains(&stack) {
                data = Some(mapping.protection);
            }
        })
        .unwrap();
        assert_eq!(code, Some(Protection::READ | Protection::EXECUTE));
        assert_eq!(data, Some(Protection::READ | Protection::WRITE));
    }
}
