//! What functions are called: mangled, demangled, or by their place in a module.
//!
//! The names of a module are one string and eight bytes for each name in it. They are kept
//! as the symbol table has them and demangled when one is shown or compared, never before.

mod demangle;

use core::fmt::{self, Write as _};
use std::string::String;
use std::vec::Vec;

use super::glob::Glob;
use demangle::{Demangled, Style};

/// The names of one function, in the [`Names`] of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameId(u32);

/// The names of a module's functions.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// All names, one behind the other.
    text: String,
    /// Where each name lies in `text`: first byte, length.
    spans: Vec<(u32, u32)>,
    /// For each function, where its names end in `spans`; they begin where those of the
    /// function before it end.
    ends: Vec<u32>,
}

impl Names {
    /// Adds a function whose names are `names`, the one to show first. A name that is not
    /// UTF-8 gets replacement characters.
    ///
    /// Names beyond 4 GiB of text or 2^32 names are dropped: their functions are nameless.
    pub fn push<'a>(&mut self, names: impl IntoIterator<Item = &'a [u8]>) -> NameId {
        let id = NameId(self.ends.len() as u32);
        for name in names {
            let name = String::from_utf8_lossy(name);
            let place = (u32::try_from(self.text.len()), u32::try_from(name.len()));
            if let (Ok(start), Ok(len)) = place
                && u32::try_from(self.spans.len()).is_ok_and(|count| count < u32::MAX)
            {
                self.text.push_str(&name);
                self.spans.push((start, len));
            }
        }
        self.ends.push(self.spans.len() as u32);
        id
    }

    /// The names of the function `id` as the symbol table has them, the one to show first:
    /// global names before weak and local ones. Empty for a function without a symbol.
    pub fn of(&self, id: NameId) -> impl Iterator<Item = &str> + use<'_> {
        let group = id.0 as usize;
        let end = self.ends.get(group).copied().unwrap_or(0) as usize;
        let start = match group.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0) as usize,
            None => 0,
        };
        let spans = self.spans.get(start..end).unwrap_or(&[]);
        spans.iter().filter_map(|&(start, len)| {
            let start = start as usize;
            self.text.get(start..start.checked_add(len as usize)?)
        })
    }

    /// Bytes of memory that the names take.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.text.capacity()
            + self.spans.capacity() * size_of::<(u32, u32)>()
            + self.ends.capacity() * size_of::<u32>()
    }
}

/// What one function is called. Shown, it is the first name, demangled; or `module+0x1234`,
/// the offset from the load bias, for a function without a symbol.
#[derive(Clone, Copy, Debug)]
pub struct FunctionName<'a> {
    names: &'a Names,
    id: NameId,
    module: &'a str,
    offset: u64,
}

impl<'a> FunctionName<'a> {
    /// Of the function `id` in `names`, which stands `offset` bytes behind the load bias of
    /// the module named `module`.
    #[must_use]
    pub const fn new(names: &'a Names, id: NameId, module: &'a str, offset: u64) -> Self {
        Self { names, id, module, offset }
    }

    /// The name to show, as the symbol table has it; `None` for a function without a symbol.
    #[must_use]
    pub fn mangled(&self) -> Option<&'a str> {
        self.aliases().next()
    }

    /// Every name of the function, as the symbol table has them, the one to show first.
    pub fn aliases(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.names.of(self.id)
    }

    /// Whether `wanted` is one of this function's names: as the symbol table has it, as it is
    /// shown, for Rust also with its hash, for C++ also without its return type and without
    /// its parameters, and for a function without a symbol `module+0x1234`.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        Wanted::new(wanted).found_in(self, &mut String::new())
    }

    /// Whether `glob` covers one of this function's names; the same names as in
    /// [`is`](Self::is).
    #[must_use]
    pub fn matches(&self, glob: &Glob) -> bool {
        self.matches_with(glob, &mut String::new())
    }

    /// [`matches`](Self::matches) with a buffer that is used again for the next function.
    pub(crate) fn matches_with(&self, glob: &Glob, buffer: &mut String) -> bool {
        self.any(buffer, |_| true, |name| glob.matches(name))
    }

    /// Whether `test` holds for one form of one name. Only names that are `plausible` as the
    /// symbol table has them are demangled.
    fn any(
        &self,
        buffer: &mut String,
        plausible: impl Fn(&str) -> bool,
        test: impl Fn(&str) -> bool,
    ) -> bool {
        let mut nameless = true;
        for mangled in self.aliases() {
            nameless = false;
            if test(mangled) {
                return true;
            }
            if !plausible(mangled) {
                continue;
            }
            let Some(demangled) = Demangled::new(mangled) else { continue };
            for style in Style::ALL {
                buffer.clear();
                if demangled.write(style, buffer).is_ok() && test(buffer) {
                    return true;
                }
            }
        }
        if nameless {
            buffer.clear();
            return write!(buffer, "{self}").is_ok() && test(buffer);
        }
        false
    }
}

impl fmt::Display for FunctionName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(mangled) = self.mangled() else {
            return write!(f, "{}+{:#x}", self.module, self.offset);
        };
        let mut shown = String::new();
        match Demangled::new(mangled) {
            Some(demangled) if demangled.write(Style::Full, &mut shown).is_ok() => f.pad(&shown),
            _ => f.pad(mangled),
        }
    }
}

/// A name that is looked for among many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    name: &'a str,
    /// What the mangled form of a function of that name must contain.
    essence: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        Self { name, essence: demangle::essence(name) }
    }

    /// Whether it is a name of `function`; `buffer` is used again for the next function.
    pub(crate) fn found_in(&self, function: &FunctionName<'_>, buffer: &mut String) -> bool {
        function.any(
            buffer,
            |mangled| self.essence.is_none_or(|essence| mangled.contains(essence)),
            |name| name == self.name,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn names(names: &[&str]) -> (Names, NameId) {
        let mut all = Names::default();
        all.push([b"before".as_slice(), b"alias"]);
        let id = all.push(names.iter().map(|name| name.as_bytes()));
        all.push([b"after".as_slice()]);
        (all, id)
    }

    #[test]
    fn every_form_of_a_name_finds_the_function() {
        let (all, id) =
            names(&["_ZN5space3fooEibc", "plain", "_ZN4core3fmt5write17h0123456789abcdefE"]);
        let name = FunctionName::new(&all, id, "m.so", 0x10);
        assert_eq!(name.to_string(), "space::foo(int, bool, char)");
        assert_eq!(name.mangled(), Some("_ZN5space3fooEibc"));
        for wanted in [
            "_ZN5space3fooEibc",
            "space::foo(int, bool, char)",
            "space::foo",
            "plain",
            "core::fmt::write",
            "core::fmt::write::h0123456789abcdef",
        ] {
            assert!(name.is(wanted), "{wanted}");
        }
        for wanted in ["foo", "space::fo", "before", "alias", "after", "m.so+0x10", ""] {
            assert!(!name.is(wanted), "{wanted}");
        }
        for (glob, covers) in [("space::*", true), ("*fmt*", true), ("*17h*", true), ("s", false)] {
            assert_eq!(name.matches(&Glob::new(glob).unwrap()), covers, "{glob}");
        }
    }

    #[test]
    fn a_function_without_a_symbol_is_named_by_its_place() {
        let (all, id) = names(&[]);
        let name = FunctionName::new(&all, id, "libx.so.1", 0x1130);
        assert_eq!(name.to_string(), "libx.so.1+0x1130");
        assert_eq!(name.mangled(), None);
        assert!(name.is("libx.so.1+0x1130"));
        assert!(name.matches(&Glob::new("libx.so*+0x11??").unwrap()));
    }

    #[test]
    fn names_that_are_not_text_do_not_hide_their_neighbours() {
        let mut all = Names::default();
        let odd = all.push([b"\xff\xfe".as_slice()]);
        let plain = all.push([b"plain".as_slice()]);
        assert_eq!(all.of(odd).next(), Some("\u{fffd}\u{fffd}"));
        assert_eq!(all.of(plain).next(), Some("plain"));
        assert_eq!(all.of(NameId(7)).next(), None);
    }
}
