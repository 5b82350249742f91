//! Memory for emitted code, and for tables.

use core::ops::Range;

use fentry::host::maps::{self, Protection};
use fentry::host::memory::{Arena, MemoryError, Reservation};

use super::{FORTY_TWO, READ_EXECUTE, bytes_at, module_of, protection_of, run};

/// Both displacements, from text to memory and back, as the processor forms them.
fn assert_within_reach(text: &Range<u64>, memory: &Range<u64>) {
    for from in [text.start, text.end - 1] {
        for to in [memory.start, memory.end - 1] {
            assert!(
                i32::try_from(to.wrapping_sub(from).cast_signed()).is_ok(),
                "{from:#x} {to:#x}"
            );
            assert!(
                i32::try_from(from.wrapping_sub(to).cast_signed()).is_ok(),
                "{from:#x} {to:#x}"
            );
        }
    }
}

#[test]
fn memory_is_near_the_libc_and_near_this_program() {
    let libc = module_of(libc::getpid as *const () as u64);
    let program = module_of(module_of as *const () as u64);
    assert_ne!(libc, program);
    for text in [&libc, &program] {
        for len in [64 << 10, 2 << 20] {
            let memory = Arena::reserve(text, len).unwrap();
            assert_within_reach(text, &memory.range());
            assert!(memory.reaches(text));
            assert_eq!(memory.range().end - memory.range().start, len as u64);
        }
    }
    let span = libc.start.min(program.start)..libc.end.max(program.end);
    if span.end - span.start > 1 << 31 {
        let near_libc = Arena::reserve(&libc, 4096).unwrap();
        assert!(!near_libc.reaches(&span));
    }
}

#[test]
fn text_that_is_too_long_has_no_room_near_it() {
    let text = 0x1000_0000_0000..0x1001_0000_0000;
    let error = Arena::reserve(&text, 4096).unwrap_err();
    assert_eq!(error, MemoryError::NoRoom { near: text.start, end: text.end, len: 4096 });
    assert!(error.to_string().contains("within 2 GiB of 0x100000000000..0x100100000000"));
}

#[test]
fn a_full_neighbourhood_is_walked_outward() {
    let text = module_of(libc::getpid as *const () as u64);
    let arenas: Vec<_> = (0..64).map(|_| Arena::reserve(&text, 2 << 20).unwrap()).collect();
    let mut ranges: Vec<_> = arenas.iter().map(Arena::range).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    ranges.iter().for_each(|range| assert_within_reach(&text, range));
    for arena in arenas {
        // SAFETY: nothing was allocated.
        unsafe { arena.unmap() };
    }
}

#[test]
fn emitted_code_runs_and_is_never_writable_where_it_runs() {
    let text = module_of(module_of as *const () as u64);
    let mut memory = Arena::reserve(&text, 64 << 10).unwrap();
    let mut code = memory.allocate(FORTY_TWO.len(), 16).unwrap();
    assert_eq!(bytes_at::<6>(code.run()), [0xcc; 6], "nothing emitted yet");
    code.fill(0, &FORTY_TWO).unwrap();
    assert_eq!(run(code.run()), 42);
    assert_eq!(protection_of(code.run()), Some(READ_EXECUTE));
    assert_eq!(protection_of(code.write() as u64), Some(Protection::READ | Protection::WRITE));
    let shared = b"/dev/zero (deleted)";
    let mut mappings = 0;
    maps::for_each(|mapping| {
        if mapping.path == shared {
            mappings += 1;
            assert!(
                !mapping.protection.contains(Protection::WRITE | Protection::EXECUTE),
                "{mapping:?}"
            );
        }
    })
    .unwrap();
    assert!(mappings >= 2);
}

#[test]
fn freed_memory_is_int3_and_is_used_again() {
    let text = module_of(module_of as *const () as u64);
    let mut memory = Arena::reserve(&text, 8192).unwrap();
    assert_eq!(memory.available(), 8192);
    let mut parts: Vec<_> = (0..8).map(|_| memory.allocate(1000, 8).unwrap()).collect();
    for part in &mut parts {
        part.fill(0, &[0x90; 1000]).unwrap();
    }
    let error = memory.allocate(1000, 8).unwrap_err();
    assert_eq!(error, MemoryError::Full { len: 1000, align: 8, largest: 192 });
    let addresses: Vec<u64> = parts.iter().map(|part| part.run()).collect();
    // The odd ones first, so that holes of both kinds meet.
    let (odd, even): (Vec<_>, Vec<_>) =
        parts.into_iter().enumerate().partition(|(index, _)| index % 2 == 1);
    for (_, part) in odd.into_iter().chain(even) {
        let address = part.run();
        // SAFETY: nobody runs it.
        unsafe { memory.free(part) }.unwrap();
        assert_eq!(bytes_at::<1000>(address), [0xcc; 1000]);
    }
    assert_eq!(memory.available(), 8192);
    let whole = memory.allocate(8192, 4096).unwrap();
    assert_eq!(whole.run(), addresses[0], "the holes became one");
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let text = module_of(module_of as *const () as u64);
    let mut memory = Arena::reserve(&text, 4096).unwrap();
    let mut other = Arena::reserve(&text, 4096).unwrap();
    assert_eq!(memory.allocate(8, 3).unwrap_err(), MemoryError::Align { align: 3 });
    assert_eq!(memory.allocate(8, 8192).unwrap_err(), MemoryError::Align { align: 8192 });
    assert!(matches!(memory.allocate(0, 1), Err(MemoryError::Full { len: 0, .. })));
    assert!(matches!(memory.allocate(usize::MAX, 1), Err(MemoryError::Full { .. })));
    let mut part = memory.allocate(10, 1).unwrap();
    let run = part.run();
    let outside = MemoryError::Outside { run, offset: 8, len: 3 };
    assert_eq!(part.fill(8, &[0; 3]).unwrap_err(), outside);
    assert!(part.fill(usize::MAX, &[0; 3]).is_err());
    // SAFETY: nobody runs it.
    let foreign = unsafe { other.free(part) }.unwrap_err();
    assert_eq!(foreign, MemoryError::Foreign { run });
    assert_eq!((other.available(), memory.available()), (4096, 4086));
}

#[test]
fn a_forked_child_runs_the_code_and_cannot_change_it() {
    let text = module_of(module_of as *const () as u64);
    let mut memory = Arena::reserve(&text, 4096).unwrap();
    let mut code = memory.allocate(16, 16).unwrap();
    code.fill(0, &FORTY_TWO).unwrap();
    let write = code.write() as u64;
    let owner = std::process::id();
    // SAFETY: the child allocates nothing, takes no lock and ends with `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let forked = MemoryError::Forked { owner };
        let mut mapped = false;
        let listed = maps::for_each(|mapping| mapped |= mapping.range.contains(&write));
        let failed = u32::from(run(code.run()) != 42)
            | u32::from(listed.is_err() || mapped) << 1
            | u32::from(code.fill(0, &[0xc3]) != Err(forked)) << 2
            | u32::from(memory.allocate(1, 1).err() != Some(forked)) << 3
            // SAFETY: refused, and if not, the child ends here.
            | u32::from(unsafe { memory.free(code) } != Err(forked)) << 4;
        // SAFETY: ends the child.
        unsafe { libc::_exit(failed.cast_signed()) };
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "status {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "bits of what failed in the child");
    assert_eq!(run(code.run()), 42);
}

#[test]
fn a_table_grows_without_moving() {
    let text = module_of(module_of as *const () as u64);
    for near in [None, Some(&text)] {
        let mut table = Reservation::reserve(1 << 30, near).unwrap();
        let base = table.base();
        if let Some(text) = near {
            assert_within_reach(text, &(base as u64..base as u64 + (1 << 30)));
        }
        assert_eq!(protection_of(base as u64), Some(Protection::empty()));
        table.commit(1).unwrap();
        assert_eq!(table.committed(), Reservation::CHUNK);
        // SAFETY: committed.
        unsafe { base.write(7) };
        table.commit(Reservation::CHUNK * 3 + 1).unwrap();
        assert_eq!((table.base(), table.committed()), (base, Reservation::CHUNK * 4));
        // SAFETY: committed.
        unsafe {
            assert_eq!((base.read(), base.add(table.committed() - 1).read()), (7, 0));
        }
        let beyond = base as u64 + table.committed() as u64;
        assert_eq!(protection_of(beyond), Some(Protection::empty()));
        let full = MemoryError::TableFull { len: (1 << 30) + 1, reserved: 1 << 30 };
        assert_eq!(table.commit((1 << 30) + 1).unwrap_err(), full);
        // SAFETY: nobody uses it.
        unsafe { table.unmap() };
    }
}
