//! Why emitted code is not shown.

use core::fmt;
use std::io;
use std::path::PathBuf;

use crate::host::lock::Unavailable;

/// Why emitted code is not shown.
#[derive(Debug)]
#[non_exhaustive]
pub enum VisibilityError {
    /// The file for `perf` cannot be made or written.
    File {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file for `perf` is another user's, who could make `perf` show anything.
    Owner {
        /// Its path.
        path: PathBuf,
    },
    /// Not here and now.
    Unavailable(Unavailable),
}

impl From<Unavailable> for VisibilityError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl fmt::Display for VisibilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, cause } => write!(
                f,
                "{} cannot be written ({cause}), so perf cannot show emitted code: see that its \
                 folder exists and is writable, and that it is no link",
                path.display()
            ),
            Self::Owner { path } => write!(
                f,
                "{} belongs to another user, so perf would not read it: have it removed",
                path.display()
            ),
            Self::Unavailable(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for VisibilityError {}
