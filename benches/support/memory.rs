//! How much memory the process has written, as the kernel counts it.

use std::path::Path;

/// Memory of this process that no file holds, in bytes: pages that it alone must keep.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// In the mappings of the measured object: its text pages become private copies when
    /// somebody writes sites into them.
    pub object: u64,
    /// Everywhere else: the allocator, tables, emitted code.
    pub elsewhere: u64,
}

/// Reads `/proc/self/smaps`, after the allocator has given back what it does not use, so
/// that freed memory is not taken for used and new memory does not hide in it. Counted are
/// anonymous pages, and the pages of files that live in memory only (`memfd`), each once
/// however often it is mapped.
pub fn memory(object: &Path) -> Memory {
    // SAFETY: `malloc_trim` may be called at any time; it only gives free pages back.
    unsafe { libc::malloc_trim(0) };
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let object = object.to_string_lossy();
    let mut memory = Memory { object: 0, elsewhere: 0 };
    let (mut in_object, mut in_memory_file) = (false, false);
    for line in smaps.lines() {
        // A mapping's first line begins with its address, a field's with a capital.
        if line.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()) {
            in_object = line.ends_with(&*object);
            in_memory_file = line.contains(" /memfd:") || line.contains(" /dev/zero");
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        if key == if in_memory_file { "Pss" } else { "Anonymous" } {
            let kilobytes: u64 =
                value.trim().trim_end_matches(" kB").parse().expect("a number of kB");
            *(if in_object { &mut memory.object } else { &mut memory.elsewhere }) +=
                kilobytes * 1024;
        }
    }
    memory
}
