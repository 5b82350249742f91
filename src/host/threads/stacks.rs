//! Stacks: which memory they are in, and what is found there.

use core::ops::Range;
use std::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::StackWord;
use crate::host::maps::{self, Protection};

/// A mapping that a stack can be in.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    /// A stack pointer from here on is this stack's. The main stack is extended by the access
    /// below it: a frame may have been made that nobody has written to yet.
    from: u64,
    range: Range<u64>,
}

impl Stack {
    /// The part of it from `pointer` on, if that is in it.
    pub(super) fn above(&self, pointer: u64) -> Option<Range<u64>> {
        let is_in = self.from <= pointer && pointer < self.range.end;
        is_in.then(|| pointer.max(self.range.start)..self.range.end)
    }
}

/// Calls `visit` with every mapping that a stack can be in, lowest address first.
pub(super) fn for_each(mut visit: impl FnMut(Stack)) -> Result<(), Errno> {
    let mut free_from = 0;
    maps::for_each(|mapping| {
        let range = mapping.range;
        let from = if mapping.path == b"[stack]" { free_from } else { range.start };
        free_from = range.end;
        if mapping.protection.contains(Protection::READ | Protection::WRITE) {
            visit(Stack { from, range });
        }
    })
}

/// The mappings that stacks can be in, at one moment.
#[derive(Debug)]
pub(super) struct Stacks(Vec<Stack>);

impl Stacks {
    pub(super) fn read() -> Result<Self, Errno> {
        let mut stacks = Vec::new();
        for_each(|stack| stacks.push(stack))?;
        Ok(Self(stacks))
    }

    /// The stack from `pointer` on.
    pub(super) fn above(&self, pointer: u64) -> Option<Range<u64>> {
        let after = self.0.partition_point(|stack| stack.from <= pointer);
        self.0.get(after.checked_sub(1)?)?.above(pointer)
    }
}

/// The range that has `address`; they are sorted.
pub(super) fn containing(ranges: &[Range<u64>], address: u64) -> Option<&Range<u64>> {
    let after = ranges.partition_point(|range| range.start <= address);
    ranges.get(after.checked_sub(1)?).filter(|range| address < range.end)
}

/// The watched range that `value`, a word on a stack, points strictly inside of.
fn pointed_into(watched: &[Range<u64>], value: u64) -> Option<&Range<u64>> {
    let (lowest, highest) = (watched.first()?.start, watched.last()?.end);
    if value <= lowest || value >= highest {
        return None;
    }
    containing(watched, value).filter(|range| value != range.start)
}

/// The first word of `stack` that points strictly inside a watched range.
///
/// # Safety
/// The stack is readable, and stays so: no thread goes on meanwhile that could change mappings.
pub(super) unsafe fn scan(stack: &Range<u64>, watched: &[Range<u64>]) -> Option<StackWord> {
    let mut at = stack.start.next_multiple_of(8);
    while at < stack.end {
        let value: u64;
        // SAFETY: loads an aligned word of the stack. In assembly, because it is no value of
        // Rust's: it may be uninitialised, or where a sanitizer has nobody read.
        unsafe {
            core::arch::asm!(
                "mov {value}, [{at}]",
                value = out(reg) value,
                at = in(reg) at,
                options(readonly, nostack, preserves_flags),
            );
        }
        if let Some(range) = pointed_into(watched, value) {
            return Some(StackWord { at, value, range: range.clone() });
        }
        at += 8;
    }
    None
}

/// Whether nothing on the stack of a thread leads into a watched range. The thread does not
/// run, and which stack it is on is known by its pointer only.
pub(super) struct Outside<'a> {
    watched: &'a [Range<u64>],
    pointer: u64,
    end: u64,
    /// The words before.
    before: [u64; 4],
    pub(super) outside: bool,
}

/// The least size of an alternate signal stack (`MINSIGSTKSZ`).
const SMALLEST_SIGNAL_STACK: u64 = 2048;
/// Larger than any: a word of this size is an address.
const LARGEST_SIGNAL_STACK: u64 = 1 << 32;

impl<'a> Outside<'a> {
    /// Of the thread that goes on at `instruction`, with `stack` above its pointer.
    pub(super) fn new(watched: &'a [Range<u64>], instruction: u64, stack: &Range<u64>) -> Self {
        let outside = containing(watched, instruction).is_none();
        Self { watched, pointer: stack.start, end: stack.end, before: [u64::MAX; 4], outside }
    }

    /// Looks at one word after the other, upwards from the pointer.
    ///
    /// A handler's frame begins its `ucontext` with flags, a null link, and the setting of the
    /// alternate signal stack: address, flags, size (kernel, arch/x86/kernel/signal_64.c). If
    /// the thread is on that stack, it has left another one, which is not looked at.
    pub(super) fn word(&mut self, word: u64) {
        let [context_flags, link, base, flags] = self.before;
        self.before = [link, base, flags, word];
        let is_context = context_flags <= CONTEXT_FLAGS && link == 0;
        let is_setting = flags as u32 & !(libc::SS_ONSTACK as u32 | SS_AUTODISARM) == 0
            && (SMALLEST_SIGNAL_STACK..LARGEST_SIGNAL_STACK).contains(&word);
        // It ends where the mapping does, or before.
        let is_on_it = base <= self.pointer
            && base.checked_add(word).is_some_and(|end| self.pointer <= end && end <= self.end);
        if is_context && is_setting && is_on_it || pointed_into(self.watched, word).is_some() {
            self.outside = false;
        }
    }
}

/// All flags of an `ucontext` (arch/x86/include/uapi/asm/ucontext.h).
const CONTEXT_FLAGS: u64 = 7;
/// `SS_AUTODISARM` (include/uapi/linux/signal.h).
const SS_AUTODISARM: u32 = 1 << 31;

/// This process's memory, read so that what is unmapped meanwhile is an error.
#[derive(Debug)]
pub(super) struct OwnMemory(OwnedFd);

impl OwnMemory {
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(c"/proc/self/mem", flags, Mode::empty()).map(Self)
    }

    /// Calls `visit` with the words of `stack`.
    pub(super) fn words(&self, stack: Range<u64>, mut visit: impl FnMut(u64)) -> Result<(), Errno> {
        // Of a size for the smallest stacks that a signal handler may be on.
        let mut buffer = [0; 1024];
        let mut at = stack.start.next_multiple_of(8);
        while at < stack.end {
            let wanted = buffer.len().min((stack.end - at) as usize);
            let room = buffer.get_mut(..wanted).unwrap_or_default();
            let read = rustix::io::pread(&self.0, &mut *room, at)? / 8 * 8;
            if read == 0 {
                return Err(Errno::FAULT);
            }
            for word in room.get(..read).unwrap_or_default().as_chunks().0 {
                visit(u64::from_ne_bytes(*word));
            }
            at += read as u64;
        }
        Ok(())
    }
}
