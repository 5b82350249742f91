//! The lines of a file of `/proc`, without allocating and without a lock: some readers hold
//! every other thread still, and one of those may be inside the allocator.

use core::ffi::CStr;
use core::ops::ControlFlow;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Bytes of a line that are kept. The longest line of `/proc/self/maps` has 73 bytes of
/// columns and a path of `PATH_MAX` (4096).
const KEPT: usize = 8192;

/// Calls `visit` with each line, without its line feed, until it breaks. Of a line longer
/// than 8192 bytes it sees the first 8192.
pub(crate) fn for_each(
    path: &CStr,
    mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0u8; KEPT];
    let mut filled = 0;
    let mut within_long_line = false;
    loop {
        let room = buffer.get_mut(filled..).unwrap_or_default();
        let read = match rustix::io::read(&file, room) {
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        filled += read;
        let mut rest = buffer.get(..filled).unwrap_or_default();
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, tail) = rest.split_at(end);
            if !within_long_line && visit(line).is_break() {
                return Ok(());
            }
            within_long_line = false;
            rest = tail.get(1..).unwrap_or_default();
        }
        let at_end = read == 0;
        if !rest.is_empty() && (at_end || rest.len() == KEPT) {
            if !within_long_line && visit(rest).is_break() {
                return Ok(());
            }
            within_long_line = true;
            rest = &[];
        }
        if at_end {
            return Ok(());
        }
        let kept = rest.len();
        buffer.copy_within(filled - kept..filled, 0);
        filled = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::vec::Vec;

    fn lines_of(content: &[u8]) -> Vec<Vec<u8>> {
        let name = std::format!("fentry-lines-{}-{}", std::process::id(), content.len());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).unwrap();
        let c_path = CString::new(path.to_str().unwrap()).unwrap();
        let mut lines = Vec::new();
        let result = for_each(&c_path, |line| {
            lines.push(line.to_vec());
            ControlFlow::Continue(())
        });
        std::fs::remove_file(&path).unwrap();
        result.unwrap();
        lines
    }

    #[test]
    fn lines_come_whole_whatever_the_reads_cut() {
        let expected: Vec<Vec<u8>> = (0..5000usize).map(|n| std::vec![b'a'; n % 90]).collect();
        let mut content = expected.join(&b'\n');
        content.push(b'\n');
        assert_eq!(lines_of(&content), expected);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_is_whole() {
        let mut content = std::vec![b'x'; 3 * KEPT + 7];
        content.extend_from_slice(b"\nnext\nlast");
        let lines = lines_of(&content);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], std::vec![b'x'; KEPT]);
        assert_eq!((&lines[1][..], &lines[2][..]), (&b"next"[..], &b"last"[..]));
    }
}
