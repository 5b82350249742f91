//! From a symbol table's names to the source's.

use core::fmt::{self, Write};
use std::string::String;

use cpp_demangle::{BorrowedSymbol, DemangleOptions};

/// Longest demangled name, in bytes. Substitutions let a few hundred bytes of mangled C++
/// name grow without bound; what is longer than this stays mangled.
const LONGEST: usize = 64 * 1024;

/// A name that could be demangled.
pub(super) enum Demangled<'a> {
    Rust(rustc_demangle::Demangle<'a>),
    Cpp(BorrowedSymbol<'a>),
}

/// How much of a demangled name is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// What is shown: a C++ signature; a Rust path without its hash.
    Full,
    /// A C++ function template without its return type; a Rust path with its hash.
    Exact,
    /// A C++ name without return type and parameters. Nothing for Rust.
    Bare,
}

impl Style {
    pub(super) const ALL: [Self; 3] = [Self::Full, Self::Exact, Self::Bare];
}

impl<'a> Demangled<'a> {
    /// Parses `mangled`; `None` if it is no mangled name of a language known here.
    pub(super) fn new(mangled: &'a str) -> Option<Self> {
        if (mangled.starts_with("_R") || has_rust_hash(mangled))
            && let Ok(rust) = rustc_demangle::try_demangle(mangled)
        {
            return Some(Self::Rust(rust));
        }
        if mangled.starts_with("_Z") {
            return BorrowedSymbol::new(mangled.as_bytes()).ok().map(Self::Cpp);
        }
        None
    }

    /// Appends the name in `style` to `out`.
    ///
    /// # Errors
    /// The name has no such style, or is longer than [`LONGEST`].
    pub(super) fn write(&self, style: Style, out: &mut String) -> fmt::Result {
        let mut out = Bounded { left: LONGEST, out };
        match (self, style) {
            (Self::Rust(name), Style::Full) => write!(out, "{name:#}"),
            (Self::Rust(name), Style::Exact) => write!(out, "{name}"),
            (Self::Rust(_), Style::Bare) => Err(fmt::Error),
            (Self::Cpp(name), _) => {
                let options = DemangleOptions::new();
                let options = match style {
                    Style::Full => options,
                    Style::Exact => options.no_return_type(),
                    Style::Bare => options.no_return_type().no_params(),
                };
                name.structured_demangle(&mut out, &options)
            }
        }
    }
}

/// A string that stops growing.
struct Bounded<'a> {
    left: usize,
    out: &'a mut String,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.left = self.left.checked_sub(s.len()).ok_or(fmt::Error)?;
        self.out.push_str(s);
        Ok(())
    }
}

/// Whether `mangled` has the form of Rust's first mangling, which borrows C++'s but ends the
/// path in `17h`, sixteen hexadecimal digits and `E`.
fn has_rust_hash(mangled: &str) -> bool {
    mangled.starts_with("_ZN")
        && mangled.as_bytes().windows(20).any(|window| {
            window.starts_with(b"17h")
                && window.ends_with(b"E")
                && window.get(3..19).is_some_and(|hash| hash.iter().all(u8::is_ascii_hexdigit))
        })
}

/// What the mangled form of a function that is shown as `name` must contain, where that can
/// be told: both manglings spell a function's own identifier out. It spares a search among
/// many functions almost all demangling.
pub(super) fn essence(name: &str) -> Option<&str> {
    /// Classes whose constructors C++ mangles without spelling them out.
    const ABBREVIATED: [&str; 9] = [
        "allocator",
        "basic_string",
        "string",
        "basic_istream",
        "basic_ostream",
        "basic_iostream",
        "istream",
        "ostream",
        "iostream",
    ];
    let path = name.split('(').next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if !path.chars().all(plain) {
        return None;
    }
    let own = path.rsplit(':').next()?;
    // What `operator()` leaves in front of its parameters is not spelt out.
    let spelt_out = !own.is_empty() && own != "operator" && !ABBREVIATED.contains(&own);
    spelt_out.then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(mangled: &str, style: Style) -> Option<String> {
        let mut out = String::new();
        Demangled::new(mangled)?.write(style, &mut out).ok()?;
        Some(out)
    }

    #[test]
    fn both_rust_manglings_and_cpp_are_told_apart() {
        let legacy = "_ZN4core3fmt5write17h0123456789abcdefE";
        assert_eq!(written(legacy, Style::Full).as_deref(), Some("core::fmt::write"));
        assert_eq!(
            written("_RNvCskwGfYPst2Cb_3foo16example_function", Style::Full).as_deref(),
            Some("foo::example_function")
        );
        assert_eq!(written("_ZN3foo3barEv", Style::Full).as_deref(), Some("foo::bar()"));
        assert_eq!(written("_ZN3foo3barEv", Style::Bare).as_deref(), Some("foo::bar"));
        assert_eq!(written("_Z1fIiEvT_", Style::Full).as_deref(), Some("void f<int>(int)"));
        assert_eq!(written("_Z1fIiEvT_", Style::Exact).as_deref(), Some("f<int>(int)"));
        assert_eq!(written("_Z1fIiEvT_", Style::Bare).as_deref(), Some("f<int>"));
        for plain in ["main", "", "_", "_Z", "_ZN", "_R", "sqlite3_open"] {
            assert_eq!(written(plain, Style::Full), None, "{plain}");
        }
    }

    #[test]
    fn names_that_grow_without_bound_stay_mangled() {
        // Each parameter is a pointer to a function of two of the parameter before, which
        // substitution 2n + 1 names; S0_ is substitution 1.
        let mut mangled = String::from("_Z1fPFviiE");
        for n in 0..17 {
            if n == 3 {
                assert!(written(&mangled, Style::Full).is_some_and(|name| name.len() < LONGEST));
            }
            let digit = char::from_digit(2 * n, 36).unwrap().to_ascii_uppercase();
            let _ = write!(mangled, "PFvS{digit}_S{digit}_E");
        }
        assert!(Demangled::new(&mangled).is_some(), "the name is well formed");
        assert_eq!(written(&mangled, Style::Full), None);
    }

    #[test]
    fn the_essence_is_in_every_mangled_form() {
        for (name, mangled) in [
            ("space::foo", "_ZN5space3fooEibc"),
            ("space::foo(int, bool, char)", "_ZN5space3fooEibc"),
            ("core::fmt::write", "_ZN4core3fmt5write17h0123456789abcdefE"),
            ("foo::example_function", "_RNvCskwGfYPst2Cb_3foo16example_function"),
            ("main", "main"),
        ] {
            let essence = essence(name).unwrap();
            assert!(mangled.contains(essence), "{essence} of {name}");
        }
        for name in ["S::operator()(int)", "a<b>::c", "std::string::string", "{closure#0}", "x::"] {
            assert_eq!(essence(name), None, "{name}");
        }
    }
}
