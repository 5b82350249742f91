//! The libraries' machine code as bytes, to prove that detaching leaves no trace.

use std::fs;
use std::path::Path;

/// A copy of the executable segments of some files.
pub struct Text {
    segments: Vec<(usize, Vec<u8>)>,
}

impl Text {
    /// Copies what is mapped of files in `folder`. They stay loaded for good.
    pub fn copy(folder: &Path) -> std::io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let folder = folder.to_string_lossy();
        let mut segments = Vec::new();
        for line in maps.lines().filter(|line| line.contains(&*folder)) {
            let mut fields = line.split_whitespace();
            let (Some(range), Some(access)) = (fields.next(), fields.next()) else { continue };
            let Some((start, end)) = range.split_once('-') else { continue };
            if !access.contains('x') {
                continue;
            }
            let parse = |digits| usize::from_str_radix(digits, 16).map_err(std::io::Error::other);
            let (start, end) = (parse(start)?, parse(end)?);
            segments.push((start, bytes(start, end - start)));
        }
        Ok(Self { segments })
    }

    /// How many bytes were copied.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// How many bytes are different now.
    pub fn differences(&self) -> usize {
        let different = |(start, before): &(usize, Vec<u8>)| {
            let now = bytes(*start, before.len());
            before.iter().zip(&now).filter(|(before, now)| before != now).count()
        };
        self.segments.iter().map(different).sum()
    }
}

fn bytes(start: usize, length: usize) -> Vec<u8> {
    let from = core::ptr::with_exposed_provenance::<u8>(start);
    // SAFETY: an executable mapping of a loaded library, which is readable and stays, while
    // nobody patches it.
    unsafe { core::slice::from_raw_parts(from, length) }.to_vec()
}
