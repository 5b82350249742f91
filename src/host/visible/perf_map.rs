//! The perf map: a line of text for each piece of code.
//!
//! Format: `START SIZE NAME`, numbers in hexadecimal without a prefix (Linux,
//! `tools/perf/Documentation/jit-interface.txt`).

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::{Piece, VisibilityError};

/// The open file.
#[derive(Debug)]
pub(super) struct PerfMap {
    lines: BufWriter<File>,
}

impl PerfMap {
    /// Opens the file of this process. Another code generator of this process may be writing to
    /// it as well, so it is appended to.
    pub(super) fn open() -> Result<Self, VisibilityError> {
        let path = PathBuf::from(std::format!("/tmp/perf-{}.map", std::process::id()));
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            // Anybody can make a link in /tmp.
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| Ok((file.metadata()?.uid(), file)));
        match opened {
            Ok((owner, file)) if owner == rustix::process::geteuid().as_raw() => {
                Ok(Self { lines: BufWriter::new(file) })
            }
            Ok(_) => Err(VisibilityError::Owner { path }),
            Err(cause) => Err(VisibilityError::File { path, cause }),
        }
    }

    /// Adds a line for each piece.
    pub(super) fn add(&mut self, pieces: &[Piece]) -> io::Result<()> {
        for Piece { address, code, name, .. } in pieces {
            writeln!(self.lines, "{address:x} {:x} {name}", code.len())?;
        }
        self.lines.flush()
    }
}
