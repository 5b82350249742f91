//! The program's own machine code as bytes, to prove that detaching leaves no trace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// A copy of every executable segment of this program.
pub struct Text {
    segments: Vec<Segment>,
}

struct Segment {
    address: u64,
    bytes: Vec<u8>,
}

impl Text {
    /// Copies the segments as they are now.
    pub fn copy() -> io::Result<Self> {
        let executable = fs::read_link("/proc/self/exe")?;
        let executable = executable.to_string_lossy();
        let memory = File::open("/proc/self/mem")?;
        let maps = fs::read_to_string("/proc/self/maps")?;
        let mut segments = Vec::new();
        for line in maps.lines().filter(|line| line.ends_with(&*executable)) {
            // 55d0c8a00000-55d0c8c0e000 r-xp 00073000 fe:01 131 /path/of/the/program
            let mut fields = line.split_whitespace();
            let (Some(range), Some(access)) = (fields.next(), fields.next()) else { continue };
            let Some((start, end)) = range.split_once('-') else { continue };
            if access.contains('x') {
                let (address, end) = (hexadecimal(start)?, hexadecimal(end)?);
                segments.push(Segment { address, bytes: read(&memory, address, end - address)? });
            }
        }
        Ok(Self { segments })
    }

    /// How many bytes were copied.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.bytes.len()).sum()
    }

    /// The addresses whose bytes are different now.
    pub fn differences(&self) -> io::Result<Vec<u64>> {
        let memory = File::open("/proc/self/mem")?;
        let mut differences = Vec::new();
        for segment in &self.segments {
            let now = read(&memory, segment.address, segment.bytes.len() as u64)?;
            let bytes = (segment.address..).zip(segment.bytes.iter().zip(&now));
            let different = bytes.filter(|(_, (old, new))| old != new);
            differences.extend(different.map(|(address, _)| address));
        }
        Ok(differences)
    }
}

fn read(memory: &File, address: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    memory.read_exact_at(&mut bytes, address)?;
    Ok(bytes)
}

fn hexadecimal(digits: &str) -> io::Result<u64> {
    u64::from_str_radix(digits, 16).map_err(io::Error::other)
}
