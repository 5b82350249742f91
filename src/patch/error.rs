//! Why a batch did not land.

use core::fmt::{self, Display};

use super::{Poke, PokeState, SITE_LEN};
use crate::addr::PatchSite;

/// A site that stopped a batch, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// Other bytes stand at the site than the caller expected: somebody else patched it, or
    /// it is not a patch site.
    Changed {
        /// The site.
        site: PatchSite,
        /// What the caller said stands there.
        expected: [u8; SITE_LEN],
        /// What was found.
        found: [u8; SITE_LEN],
    },
    /// The site's first two bytes cannot be stored at once, as the short jump needs it.
    Straddles {
        /// The site.
        site: PatchSite,
    },
}

impl Conflict {
    /// The site that stopped the batch.
    #[must_use]
    pub const fn site(&self) -> PatchSite {
        match *self {
            Self::Changed { site, .. } | Self::Straddles { site } => site,
        }
    }
}

impl Display for Conflict {
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
        }
    }
}

impl Poke {
    /// What stopped this poke's batch at this site, if it was this site.
    ///
    /// [`CheckError::Conflicts`] carries the first conflict and their number; the others are
    /// read from the pokes themselves, because the core has no memory to list them in.
    #[must_use]
    pub fn conflict(&self) -> Option<Conflict> {
        match self.state {
            PokeState::Good | PokeState::OneStore | PokeState::Unchanged => None,
            PokeState::Changed => {
                Some(Conflict::Changed { site: self.site, expected: self.old, found: self.found })
            }
            PokeState::Straddles => Some(Conflict::Straddles { site: self.site }),
        }
    }
}

/// Why the sites of a batch were found unfit. Nothing was written. `T` is the error of the
/// embedder's [`Text`](super::Text).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckError<T> {
    /// Sites did not hold what was expected.
    Conflicts {
        /// How many sites; [`Poke::conflict`] tells which.
        count: usize,
        /// The first of them.
        first: Conflict,
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
/// [`Text`](super::Text) and [`Cores`](super::Cores).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchError<T, C> {
    /// Sites were found unfit. Nothing was written.
    Check(CheckError<T>),
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
    /// A failure could not be taken back, because taking it back failed too. From this site
    /// on, sites may still be guarded, and before it some may hold their new instruction.
    Stuck {
        /// The first site that may still be guarded.
        site: PatchSite,
    },
}

impl<T: Display> Display for CheckError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflicts { count: 1, first } => first.fmt(f),
            Self::Conflicts { count, first } => write!(f, "{count} sites; the first: {first}"),
            Self::Duplicate { site } => write!(f, "the site {site} is in the batch twice"),
            Self::Read { site, cause } => write!(f, "the site {site} cannot be read: {cause}"),
        }
    }
}

impl<T: fmt::Debug + Display> core::error::Error for CheckError<T> {}

impl<T, C> From<CheckError<T>> for PatchError<T, C> {
    fn from(error: CheckError<T>) -> Self {
        Self::Check(error)
    }
}

impl<T: Display, C: Display> Display for PatchError<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(error) => error.fmt(f),
            Self::Open(cause) => write!(f, "the text cannot be made writable: {cause}"),
            Self::Store { site, cause } => write!(f, "the site {site} cannot be written: {cause}"),
            Self::Synchronise(cause) => write!(f, "the cores cannot be synchronised: {cause}"),
            Self::Stuck { site } => write!(
                f,
                "a failed batch could not be taken back; sites from {site} on may stay guarded"
            ),
        }
    }
}

impl<T: fmt::Debug + Display, C: fmt::Debug + Display> core::error::Error for PatchError<T, C> {}
