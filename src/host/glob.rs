//! Patterns over names: `*`, `?`, `[a-z]`, `[!a-z]`, and `\` before any of them.
//!
//! A pattern covers the whole name. `*` stands for any run of characters, `::` and `/`
//! included, because a name's parts are not a path here. Matching remembers only the last
//! `*`, so its time is at most pattern times name, whatever the pattern.

use core::fmt;
use core::str::FromStr;
use std::string::String;
use std::vec::Vec;

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// This character.
    Char(char),
    /// Any one character.
    One,
    /// Any run of characters, the empty one included.
    Run,
    /// One character inside (or, negated, outside) inclusive ranges.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Char(own) => *own == c,
            Self::One => true,
            Self::Run => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|&(first, last)| first <= c && c <= last) != *negated
            }
        }
    }
}

/// A compiled pattern; see the module's page for its language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
    source: String,
}

/// Why a pattern is not one. Positions count characters from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GlobError {
    /// A `[` has no `]`.
    UnclosedClass {
        /// Where the `[` is.
        at: usize,
    },
    /// A range in a class ends before it begins, as `[z-a]` does.
    EmptyRange {
        /// The first character.
        first: char,
        /// The last character.
        last: char,
        /// Where the last character is.
        at: usize,
    },
    /// The pattern ends in a `\` that has nothing to quote.
    TrailingBackslash,
}

impl fmt::Display for GlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnclosedClass { at } => write!(
                f,
                "the '[' at character {at} has no ']'; write '\\[' for a bracket in the name"
            ),
            Self::EmptyRange { first, last, at } => write!(
                f,
                "the range {first}-{last} that ends at character {at} holds nothing; swap its ends"
            ),
            Self::TrailingBackslash => {
                f.write_str("the pattern ends in '\\'; write '\\\\' for a backslash in the name")
            }
        }
    }
}

impl core::error::Error for GlobError {}

impl Glob {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// [`GlobError`] says which character makes no sense.
    pub fn new(pattern: &str) -> Result<Self, GlobError> {
        let mut tokens = Vec::new();
        let mut rest = pattern.chars().enumerate().peekable();
        while let Some((at, c)) = rest.next() {
            let token = match c {
                '*' if tokens.last() == Some(&Token::Run) => continue,
                '*' => Token::Run,
                '?' => Token::One,
                '[' => class(at, &mut rest)?,
                '\\' => {
                    Token::Char(rest.next().map(|(_, c)| c).ok_or(GlobError::TrailingBackslash)?)
                }
                c => Token::Char(c),
            };
            tokens.push(token);
        }
        Ok(Self { tokens, source: pattern.into() })
    }

    /// Whether the pattern covers the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut name = name.chars();
        let mut next = 0;
        // The token after the last run met, and the name from where that run may grow.
        let mut retry = None;
        loop {
            if let Some(Token::Run) = self.tokens.get(next) {
                next += 1;
                retry = Some((next, name.clone()));
                continue;
            }
            match (name.next(), self.tokens.get(next)) {
                (None, None) => return true,
                (Some(c), Some(token)) if token.accepts(c) => next += 1,
                // What follows the run still wants characters and there are none left: a
                // longer run leaves even fewer.
                (None, Some(_)) => return false,
                (Some(_), _) => {
                    let Some((token, mut grown)) = retry.take() else { return false };
                    if grown.next().is_none() {
                        return false;
                    }
                    name = grown.clone();
                    next = token;
                    retry = Some((token, grown));
                }
            }
        }
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(pattern: &str) -> Result<Self, GlobError> {
        Self::new(pattern)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// Reads a class after its `[`, which stands at `open`. A `]` right behind the `[` or the
/// `!` is a member, as in a shell.
fn class(
    open: usize,
    rest: &mut core::iter::Peekable<impl Iterator<Item = (usize, char)>>,
) -> Result<Token, GlobError> {
    let unclosed = GlobError::UnclosedClass { at: open };
    let negated = rest.next_if(|&(_, c)| c == '!').is_some();
    let mut ranges = Vec::new();
    loop {
        let (_, first) = rest.next().ok_or(unclosed)?;
        let first = match first {
            ']' if !ranges.is_empty() => return Ok(Token::Class { negated, ranges }),
            '\\' => rest.next().ok_or(unclosed)?.1,
            c => c,
        };
        if rest.next_if(|&(_, c)| c == '-').is_none() {
            ranges.push((first, first));
            continue;
        }
        // A '-' before the closing bracket is a member.
        if rest.peek().is_some_and(|&(_, c)| c == ']') {
            ranges.push((first, first));
            ranges.push(('-', '-'));
            continue;
        }
        let (mut at, mut last) = rest.next().ok_or(unclosed)?;
        if last == '\\' {
            (at, last) = rest.next().ok_or(unclosed)?;
        }
        if last < first {
            return Err(GlobError::EmptyRange { first, last, at });
        }
        ranges.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn matches(pattern: &str, name: &str) -> bool {
        Glob::new(pattern).unwrap().matches(name)
    }

    /// What a pattern means, straight from the definition: exponential, and so obviously
    /// right that the fast matcher can be held against it.
    fn by_definition(tokens: &[Token], name: &[char]) -> bool {
        match tokens {
            [] => name.is_empty(),
            [Token::Run, rest @ ..] => {
                (0..=name.len()).any(|skip| by_definition(rest, &name[skip..]))
            }
            [token, rest @ ..] => {
                !name.is_empty() && token.accepts(name[0]) && by_definition(rest, &name[1..])
            }
        }
    }

    #[test]
    fn every_short_pattern_means_what_the_definition_says() {
        let pieces = ["a", "b", "?", "*", "[a-b]", "[!a]"];
        let names: Vec<String> = (0..=5u32)
            .flat_map(|len| {
                (0..3u32.pow(len)).map(move |mut n| {
                    (0..len)
                        .map(|_| {
                            let c = ['a', 'b', 'ç'][(n % 3) as usize];
                            n /= 3;
                            c
                        })
                        .collect()
                })
            })
            .collect();
        for n in 0..pieces.len().pow(4) {
            for len in 0..=4 {
                let pattern: String = (0..len).map(|i| pieces[n / 6usize.pow(i) % 6]).collect();
                let glob = Glob::new(&pattern).unwrap();
                for name in &names {
                    let chars: Vec<char> = name.chars().collect();
                    assert_eq!(
                        glob.matches(name),
                        by_definition(&glob.tokens, &chars),
                        "{pattern:?} on {name:?}"
                    );
                }
                if n >= 6usize.pow(len) {
                    break;
                }
            }
        }
    }

    #[test]
    fn patterns_that_blow_up_a_backtracking_matcher_end() {
        let name = "a".repeat(2_000);
        let pattern = format!("{}b", "*a".repeat(40));
        assert!(!matches(&pattern, &name));
        assert!(matches(&pattern, &format!("{name}b")));
    }

    #[test]
    fn quoting_and_brackets() {
        assert!(matches(r"operator\[\](int)", "operator[](int)"));
        assert!(!matches(r"operator\*", "operatorx"));
        assert!(matches("[]x]", "]"));
        assert!(matches("[!]]", "x"));
        assert!(!matches("[!]]", "]"));
        assert!(matches("[a-]", "-"));
        assert!(matches(r"[\]-a]", "^"));
        assert!(matches("", ""));
        assert!(!matches("", "x"));
        assert!(matches("sqlite3*", "sqlite3"));
        assert!(matches("*::new", "core::new"));
        assert_eq!(Glob::new("ab[c"), Err(GlobError::UnclosedClass { at: 2 }));
        assert_eq!(Glob::new("[]"), Err(GlobError::UnclosedClass { at: 0 }));
        assert_eq!(Glob::new(r"x\"), Err(GlobError::TrailingBackslash));
        assert_eq!(Glob::new("[z-a]"), Err(GlobError::EmptyRange { first: 'z', last: 'a', at: 3 }));
    }
}
