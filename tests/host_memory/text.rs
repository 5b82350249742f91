//! Text made writable while a batch is written.

use core::ops::Range;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::fs::File;

use fentry::addr::PatchSite;
use fentry::host::maps::{self, Protection};
use fentry::host::memory::Reservation;
use fentry::host::text::{HostText, Segment, TextError};
use fentry::patch::{Poke, Text};

use super::{FORTY_TWO, READ_EXECUTE, bytes_at, module_of, protection_of, run};

/// Pages of `content` mapped from a file, as a loader maps text.
fn map_file(name: &str, content: &[u8], shared: bool) -> Segment {
    map_file_at(None, name, content, shared)
}

fn map_file_at(at: Option<u64>, name: &str, content: &[u8], shared: bool) -> Segment {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    let file = File::open(&path).unwrap();
    let mut flags = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
    flags.set(MapFlags::FIXED, at.is_some());
    let address = at.map_or(null_mut(), |at| core::ptr::without_provenance_mut(at as usize));
    // SAFETY: a new mapping, or one over address space that the caller has reserved.
    let base = unsafe {
        let protection = ProtFlags::READ | ProtFlags::EXEC;
        mmap(address, content.len(), protection, flags, Fd(&file), 0)
    }
    .unwrap() as u64;
    std::fs::remove_file(&path).unwrap();
    Segment {
        range: base..base + content.len() as u64,
        protection: READ_EXECUTE,
        name: name.into(),
        written_at: 0,
    }
}

/// `rustix` without its `std` feature does not know `std`'s file.
struct Fd<'a>(&'a File);

impl rustix::fd::AsFd for Fd<'_> {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: open for as long as the file is borrowed.
        unsafe { rustix::fd::BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

fn text_of(segments: &[Segment]) -> HostText {
    // SAFETY: the tests never unmap what they map.
    unsafe { HostText::new(segments.to_vec()) }.unwrap()
}

fn poke(site: u64) -> Poke {
    Poke::new(PatchSite::new(site), [0x90; 5], [0x90; 5])
}

/// Five pages of code: `FORTY_TWO` at the start of each.
fn code_pages() -> Vec<u8> {
    let mut pages = vec![0x90; 5 * 4096];
    pages.chunks_mut(4096).for_each(|page| page[..6].copy_from_slice(&FORTY_TWO));
    pages
}

#[test]
fn text_is_writable_only_between_open_and_close_and_only_around_the_sites() {
    let segment = map_file("window", &code_pages(), false);
    let page = |index: u64| segment.range.start + index * 4096;
    let protections =
        || (0..5).map(|index| protection_of(page(index)).unwrap()).collect::<Vec<_>>();
    let mut text = text_of(core::slice::from_ref(&segment));
    assert_eq!(protections(), [READ_EXECUTE; 5]);
    // 64 bytes before the lowest site are in page 1, eight behind the highest in page 3.
    text.open(&[poke(page(3) + 100), poke(page(2) + 10)]).unwrap();
    let open = READ_EXECUTE | Protection::WRITE;
    assert_eq!(protections(), [READ_EXECUTE, open, open, open, READ_EXECUTE]);
    assert_eq!(text.open(&[]), Err(TextError::AlreadyOpen));
    // SAFETY: within the window; nobody runs it.
    unsafe {
        text.store_byte(page(2), 0xb8).unwrap();
        text.store_unexecuted(page(2) + 1, [43, 0, 0, 0]).unwrap();
    }
    text.close();
    assert_eq!(protections(), [READ_EXECUTE; 5]);
    assert_eq!((run(page(2)), run(page(1))), (43, 42));
    // And again: a window is of its batch.
    text.open(&[poke(page(0))]).unwrap();
    assert_eq!(protections(), [open, READ_EXECUTE, READ_EXECUTE, READ_EXECUTE, READ_EXECUTE]);
    text.close();
    assert_eq!(protections(), [READ_EXECUTE; 5]);
}

#[test]
fn execution_goes_on_through_ten_thousand_windows() {
    let segment = map_file("executed", &code_pages(), false);
    let site = segment.range.start + 4096;
    let mut text = text_of(&[segment]);
    let (calls, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(run(site), 42);
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        while calls.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        for _ in 0..10_000 {
            text.open(&[poke(site)]).unwrap();
            // SAFETY: the byte of the instruction that stands there already.
            unsafe { text.store_byte(site + 1, 42) }.unwrap();
            text.close();
        }
        let before = calls.load(Ordering::Relaxed);
        while calls.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_segment_that_cannot_be_opened_leaves_none_open() {
    let pages = code_pages();
    let room = Reservation::reserve(3 * pages.len(), None).unwrap().base() as u64;
    let at = |index: usize| Some(room + (index * pages.len()) as u64);
    let segments = [
        map_file_at(at(0), "first", &pages, false),
        // Shared, of a file opened for reading: the kernel answers EACCES to `PROT_WRITE`.
        map_file_at(at(1), "forbidden", &pages, true),
        map_file_at(at(2), "last", &pages, false),
    ];
    let mut text = text_of(&segments);
    let pokes = segments.each_ref().map(|segment| poke(segment.range.start + 4096 + 64));
    let forbidden = segments.iter().find(|segment| &*segment.name == "forbidden").unwrap();
    let error = text.open(&pokes).unwrap_err();
    assert_eq!(
        error,
        TextError::Protected {
            address: forbidden.range.start + 4096,
            name: "forbidden".into(),
            errno: rustix::io::Errno::ACCESS,
        }
    );
    assert!(error.to_string().starts_with("text of forbidden at 0x"), "{error}");
    for segment in &segments {
        maps::for_each(|mapping| {
            if mapping.range.start < segment.range.end && segment.range.start < mapping.range.end {
                assert_eq!(mapping.protection, READ_EXECUTE, "{mapping:?}");
            }
        })
        .unwrap();
    }
    // It is not open, and can be opened where that is allowed.
    let allowed: Vec<_> =
        pokes.into_iter().filter(|poke| !forbidden.range.contains(&poke.site.get())).collect();
    text.open(&allowed).unwrap();
    text.close();
}

#[test]
fn addresses_outside_the_segments_are_refused() {
    let segments = [map_file("a", &code_pages(), false), map_file("b", &code_pages(), false)];
    let mut text = text_of(&segments);
    for segment in &segments {
        let Range { start, end } = segment.range;
        assert_eq!(text.read::<6>(start).unwrap(), FORTY_TWO);
        assert_eq!(text.read::<5>(end - 5).unwrap(), [0x90; 5]);
        let unknown = |address| Some(TextError::Unknown { address });
        let mapped = |address| segments.iter().any(|other| other.range.contains(&address));
        if !mapped(end) {
            assert_eq!(text.read::<5>(end - 4).err(), unknown(end - 4));
            assert_eq!(text.open(&[poke(start), poke(end - 4)]).err(), unknown(end - 4));
            assert_eq!(protection_of(start), Some(READ_EXECUTE));
        }
        if !mapped(start - 1) {
            assert_eq!(text.read::<1>(start - 1).err(), unknown(start - 1));
        }
        assert_eq!(text.read::<5>(u64::MAX - 1).err(), unknown(u64::MAX - 1));
        assert_eq!(text.read::<5>(0).err(), unknown(0));
    }
    let twice = vec![segments[0].clone(), segments[0].clone()];
    // SAFETY: the segments are mapped; the overlap is what is tested.
    let error = unsafe { HostText::new(twice) }.unwrap_err();
    assert_eq!(error, TextError::Overlap { address: segments[0].range.start });
}

#[test]
fn the_process_has_the_segments_its_functions_are_in() {
    let segments = HostText::segments_of_process().unwrap();
    let text = text_of(&segments);
    for function in [libc::getpid as *const () as u64, module_of as *const () as u64] {
        assert!(segments.iter().any(|segment| segment.range.contains(&function)));
        assert_eq!(text.read::<5>(function).unwrap(), bytes_at::<5>(function));
    }
}

/// The eight bytes that the trap handler below looks at after every instruction.
static STEPPED: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
static BEFORE: AtomicU64 = AtomicU64::new(0);
static AFTER: AtomicU64 = AtomicU64::new(0);
/// What was seen that is neither.
static TORN: AtomicU64 = AtomicU64::new(0);

extern "C" fn look(_signal: i32) {
    let word = u64::from_le_bytes(bytes_at(STEPPED.load(Ordering::Relaxed)));
    STEPS.fetch_add(1, Ordering::Relaxed);
    if word != BEFORE.load(Ordering::Relaxed) && word != AFTER.load(Ordering::Relaxed) {
        TORN.store(word, Ordering::Relaxed);
    }
}

/// Calls `store` with the trap flag set: `SIGTRAP` after every instruction.
fn stepped(store: impl FnOnce()) {
    // SAFETY: sets, and then clears, one flag; nothing below the stack pointer is in use, as
    // the block may use the stack.
    unsafe {
        core::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
    }
    store();
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq");
    }
}

#[test]
fn a_pair_is_stored_by_one_instruction_at_every_offset() {
    let segment = map_file("pair", &code_pages(), false);
    let word = segment.range.start + 64;
    let mut text = text_of(&[segment]);
    text.open(&[poke(word)]).unwrap();
    // SAFETY: a zeroed `sigaction` is valid; the handler only uses atomics and reads memory
    // that stays mapped. No other test traps.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let handler: extern "C" fn(i32) = look;
        action.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, null_mut()), 0);
    }
    STEPPED.store(word, Ordering::Relaxed);
    for offset in 0..7u64 {
        let before = u64::from_le_bytes(bytes_at(word));
        let after = before & !(0xffff << (offset * 8)) | 0x2211 << (offset * 8);
        BEFORE.store(before, Ordering::Relaxed);
        AFTER.store(after, Ordering::Relaxed);
        STEPS.store(0, Ordering::Relaxed);
        // SAFETY: in the window, in one aligned word, and nobody runs it.
        stepped(|| unsafe { text.store_pair(word + offset, [0x11, 0x22]) }.unwrap());
        assert!(STEPS.load(Ordering::Relaxed) > 2, "instructions were counted");
        assert_eq!(TORN.load(Ordering::Relaxed), 0, "half a pair at offset {offset}");
        assert_eq!(u64::from_le_bytes(bytes_at(word)), after);
        // SAFETY: as above.
        unsafe { text.store_unexecuted(word, [0x90; 8]) }.unwrap();
    }
    text.close();
}
