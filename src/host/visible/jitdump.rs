//! The jitdump: the code itself, its name, and when it came to be.
//!
//! Format: Linux, `tools/perf/Documentation/jitdump-specification.txt`, version 1. All numbers
//! are little-endian, as the file's first word says.

use core::ptr::null_mut;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::vec::Vec;

use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::{ClockId, clock_gettime};

use super::{Piece, VisibilityError};
use crate::host::maps::PAGE;

/// "JiTD".
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
const HEADER_SIZE: u32 = 40;
/// The record of a piece of code that was loaded, and its bytes before name and code.
const CODE_LOAD: u32 = 0;
const CODE_LOAD_SIZE: usize = 56;

/// The open file.
#[derive(Debug)]
pub(super) struct Jitdump {
    records: BufWriter<File>,
    /// Pieces so far.
    count: u64,
}

impl Jitdump {
    /// Makes the file `jit-PID.dump` in `folder`. What a process of the same number has left
    /// there is overwritten.
    pub(super) fn create(folder: &Path) -> Result<Self, VisibilityError> {
        let path = folder.join(std::format!("jit-{}.dump", std::process::id()));
        let create = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            let mut dump = Self { records: BufWriter::new(file), count: 0 };
            dump.header()?;
            dump.mark()?;
            Ok(dump)
        };
        create().map_err(|cause| VisibilityError::File { path: path.clone(), cause })
    }

    fn header(&mut self) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER_SIZE as usize);
        let machine = u32::from(object::elf::EM_X86_64.0);
        for word in [MAGIC, VERSION, HEADER_SIZE, machine, 0, std::process::id()] {
            header.extend(word.to_le_bytes());
        }
        header.extend(now().to_le_bytes());
        header.extend(0_u64.to_le_bytes());
        self.records.write_all(&header)?;
        self.records.flush()
    }

    /// Maps the file's beginning as code, for good: `perf` records mappings of code, and knows
    /// the file by its name in one.
    fn mark(&self) -> io::Result<()> {
        let (len, protection) = (PAGE as usize, ProtFlags::READ | ProtFlags::EXEC);
        // SAFETY: the file is open for as long as this is.
        let file = unsafe { BorrowedFd::borrow_raw(self.records.get_ref().as_raw_fd()) };
        // SAFETY: a new mapping, at an address of the kernel's choice, which nobody reads.
        let mapped =
            unsafe { rustix::mm::mmap(null_mut(), len, protection, MapFlags::PRIVATE, file, 0) };
        mapped.map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))?;
        Ok(())
    }

    /// Adds a record for each piece.
    pub(super) fn add(&mut self, pieces: &[Piece]) -> io::Result<()> {
        for Piece { address, code, name, .. } in pieces {
            let size = CODE_LOAD_SIZE + name.len() + 1 + code.len();
            let size = u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData)?;
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            let mut record = Vec::with_capacity(CODE_LOAD_SIZE);
            record.extend(CODE_LOAD.to_le_bytes());
            record.extend(size.to_le_bytes());
            record.extend(now().to_le_bytes());
            record.extend(std::process::id().to_le_bytes());
            record.extend(thread.to_le_bytes());
            // Where it runs, and where it is: the same.
            record.extend(address.to_le_bytes());
            record.extend(address.to_le_bytes());
            record.extend((code.len() as u64).to_le_bytes());
            record.extend(self.count.to_le_bytes());
            self.count += 1;
            for part in [&record, name.as_bytes(), &[0], code] {
                self.records.write_all(part)?;
            }
        }
        self.records.flush()
    }
}

/// Nanoseconds by the clock that `perf record -k mono` uses.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
