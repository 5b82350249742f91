//! Why a batch did not land.

use core::fmt::{self, Display};

use super::{Poke, PokeState, SITE_LEN};
use crate::addr::PatchSite;

/// A site that stopped a batch, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict<const N: usize = SITE_LEN> {
    /// Other bytes stand at the site than the caller expected: somebody else patched it, or
    /// it is not a patch site.
    Changed {
        /// The site.
        site: PatchSite,
        /// What the caller said stands there.
        expected: [u8; N],
        /// What was found.
        found: [u8; N],
    },
    /// The site's first two bytes cannot be stored at once, as the short jump needs it.
    Straddles {
        /// The site.
        site: PatchSite,
    },
    /// The address of a word is no multiple of its size, so no arm64 instruction begins there.
    Misaligned {
        /// The site.
        site: PatchSite,
    },
    /// An arm64 instruction that the architecture does not let be changed, or put in another's
    /// place, while other cores execute it; see [`WordBatch`](super::WordBatch).
    Unlisted {
        /// The site.
        site: PatchSite,
        /// The instruction: the old one, or, if that may be changed, the new one.
        instruction: [u8; N],
    },
}

impl<const N: usize> Conflict<N> {
    /// The site that stopped the batch.
    #[must_use]
    pub const fn site(&self) -> PatchSite {
        match *self {
            Self::Changed { site, .. }
            | Self::Straddles { site }
            | Self::Misaligned { site }
            | Self::Unlisted { site, .. } => site,
        }
    }
}

impl<const N: usize> Display for Conflict<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { site, expected, found } => write!(
                f,
                "at {site} stands {found:02x?} where {expected:02x?} was expected: another tool \
                 patches this function; detach it there first"
            ),
            Self::Straddles { site } => write!(
                f,
                "the first two bytes at {site} cannot be stored at once: align functions \
                 (-falign-functions=16), or use the breakpoint protocol"
            ),
            Self::Misaligned { site } => write!(
                f,
                "no instruction begins at {site}, which is no multiple of {N}: name the address of \
                 the function's patch site"
            ),
            Self::Unlisted { site, instruction } => write!(
                f,
                "the instruction {instruction:02x?} at {site} may not change while cores execute \
                 it: a patch site holds a nop, b or bl, and becomes one"
            ),
        }
    }
}

impl<const N: usize> Poke<N> {
    /// What stopped this poke's batch at this site, if it was this site.
    ///
    /// [`CheckError::Conflicts`] carries the first conflict and their number; the others are
    /// read from the pokes themselves, because the core has no memory to list them in.
    #[must_use]
    pub fn conflict(&self) -> Option<Conflict<N>> {
        match self.state {
            PokeState::Good | PokeState::OneStore | PokeState::Unchanged => None,
            PokeState::Changed => {
                Some(Conflict::Changed { site: self.site, expected: self.old, found: self.found })
            }
            PokeState::Straddles => Some(Conflict::Straddles { site: self.site }),
            PokeState::Misaligned => Some(Conflict::Misaligned { site: self.site }),
            PokeState::Unlisted => {
                Some(Conflict::Unlisted { site: self.site, instruction: self.found })
            }
        }
    }
}

/// Why the sites of a batch were found unfit. Nothing was written. `T` is the error of the
/// embedder's [`Text`](super::Text) or [`WordText`](super::WordText), and `N` the bytes of a
/// site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckError<T, const N: usize = SITE_LEN> {
    /// Sites did not hold what was expected.
    Conflicts {
        /// How many sites; [`Poke::conflict`] tells which.
        count: usize,
        /// The first of them.
        first: Conflict<N>,
    },
    /// A site was named twice.
    Duplicate {
        /// The site.
        site: PatchSite,
    },
    /// A site could not be read.
    Read {
        /// The site.
        site: PatchSite,
        /// What the embedder said.
        cause: T,
    },
}

/// Why a batch did not land. `T` and `C` are the errors of the embedder's
/// [`Text`](super::Text) or [`WordText`](super::WordText) and of its [`Cores`](super::Cores),
/// and `N` is the bytes of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchError<T, C, const N: usize = SITE_LEN> {
    /// Sites were found unfit. Nothing was written.
    Check(CheckError<T, N>),
    /// The text could not be made writable. Nothing was written.
    Open(T),
    /// A store failed. Every site holds its old bytes again.
    Store {
        /// The site.
        site: PatchSite,
        /// What the embedder said.
        cause: T,
    },
    /// The cores could not be synchronised. Every site holds its old bytes again.
    Synchronise(C),
    /// A failure could not be taken back, because taking it back failed too. Sites may still
    /// hold their new instruction, or a guard, or a core may not have seen that they do not.
    Stuck {
        /// The site at which it could not go on.
        site: PatchSite,
    },
}

impl<T: Display, const N: usize> Display for CheckError<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflicts { count: 1, first } => first.fmt(f),
            Self::Conflicts { count, first } => write!(f, "{count} sites; the first: {first}"),
            Self::Duplicate { site } => write!(f, "the site {site} is in the batch twice"),
            Self::Read { site, cause } => write!(f, "the site {site} cannot be read: {cause}"),
        }
    }
}

impl<T: fmt::Debug + Display, const N: usize> core::error::Error for CheckError<T, N> {}

impl<T, C, const N: usize> From<CheckError<T, N>> for PatchError<T, C, N> {
    fn from(error: CheckError<T, N>) -> Self {
        Self::Check(error)
    }
}

impl<T: Display, C: Display, const N: usize> Display for PatchError<T, C, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(error) => error.fmt(f),
            Self::Open(cause) => write!(f, "the text cannot be made writable: {cause}"),
            Self::Store { site, cause } => write!(f, "the site {site} cannot be written: {cause}"),
            Self::Synchronise(cause) => write!(f, "the cores cannot be synchronised: {cause}"),
            Self::Stuck { site } => write!(
                f,
                "a failed batch could not be taken back at {site}; sites may stay guarded or new: \
                 keep what they lead to for good"
            ),
        }
    }
}

impl<T: fmt::Debug + Display, C: fmt::Debug + Display, const N: usize> core::error::Error
    for PatchError<T, C, N>
{
}
