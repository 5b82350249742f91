//! A file of which only the parts that are asked for are read.
//!
//! Mapping it would be as cheap, but a file that is cut short while it is mapped kills the
//! process that looks at it; reading it whole would read the debug information too.

use core::cell::RefCell;
use core::ops::Range;
use std::boxed::Box;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::vec;
use std::vec::Vec;

use object::read::ReadRef;

/// The parts that were read, kept until the file is dropped.
pub(super) struct FileBytes {
    file: File,
    len: u64,
    parts: RefCell<Vec<Box<[u8]>>>,
}

impl FileBytes {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len, parts: RefCell::default() })
    }
}

impl<'a> ReadRef<'a> for &'a FileBytes {
    fn len(self) -> Result<u64, ()> {
        Ok(self.len)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size == 0 {
            return Ok(&[]);
        }
        // A damaged size must not make an allocation that fails.
        if offset.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(());
        }
        let mut part = vec![0; usize::try_from(size).map_err(|_| ())?].into_boxed_slice();
        self.file.read_exact_at(&mut part, offset).map_err(|_| ())?;
        let mut parts = self.parts.borrow_mut();
        parts.push(part);
        let part: *const [u8] = &**parts.last().ok_or(())?;
        // SAFETY: The bytes are in an allocation of their own that is neither changed nor
        // freed before `self`, which is borrowed for 'a.
        Ok(unsafe { &*part })
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let bytes = self.read_bytes_at(range.start, range.end.saturating_sub(range.start))?;
        let end = bytes.iter().position(|&byte| byte == delimiter).ok_or(())?;
        bytes.get(..end).ok_or(())
    }
}
