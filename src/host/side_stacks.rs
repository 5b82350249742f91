//! The side stacks of this process's threads.
//!
//! A thread gets its side stack when it first enters a function that has programs at its exit.
//! That may be anywhere: in the allocator, in a signal handler, while the thread is ending. So
//! what makes it takes memory from the kernel only, locks nothing, leaves `errno` alone, and
//! leaves nothing to be done when the thread ends: the side stack of a thread that has ended
//! is found by the next that needs one.
//!
//! A forked child has its parent's side stacks, as copies. That of its one thread goes on being
//! used; the others are never used again, as their owners are not its threads.

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::getpid;
use rustix::thread::gettid;

use super::program::widest;
use super::threads;
use crate::emit::x86_64::{MakeSideStack, SideStack, SideStackList, SideStackPlace};

/// Hooked functions that a thread can be in at once; in further ones it runs the origin only.
/// Memory is used as far as a thread has ever got.
pub const SIDE_STACK_DEPTH: u32 = 1024;

/// How many threads are asked at once whether they have ended.
const ASKED: usize = 16;

// What emitted code knows of a thread, in the block of thread-local storage that the loader lays
// out for every thread: at one distance from the thread pointer. `thread_local!` does not promise
// that for a library that is loaded late; the initial-exec model does, and the loader refuses
// where it cannot (ELF Handling For Thread-Local Storage, section 4.3).
global_asm!(
    ".pushsection .tbss.fentry, \"awT\", @nobits",
    ".p2align 3",
    "fentry_thread: .zero {size}",
    ".popsection",
    ".pushsection .text.fentry_thread_offset, \"ax\", @progbits",
    ".globl fentry_thread_offset",
    ".hidden fentry_thread_offset",
    ".type fentry_thread_offset, @function",
    "fentry_thread_offset:",
    "mov rax, qword ptr [rip + fentry_thread@GOTTPOFF]",
    "ret",
    ".size fentry_thread_offset, . - fentry_thread_offset",
    ".popsection",
    size = const size_of::<Thread>(),
);

unsafe extern "C" {
    /// Bytes from the thread pointer to the thread's [`Thread`].
    safe fn fentry_thread_offset() -> i64;
}

/// What is kept in a thread's own storage. All zeroes at first. A signal handler of the thread
/// may change it anywhere.
#[repr(C)]
struct Thread {
    side_stack: AtomicPtr<SideStack>,
    /// Not zero while the side stack is being made.
    making: AtomicI32,
}

impl Thread {
    fn own() -> &'static Self {
        let base: u64;
        // SAFETY: the word at the thread pointer is its own address (psABI 11.2).
        unsafe { asm!("mov {}, fs:0", out(reg) base, options(nostack, readonly, preserves_flags)) };
        let at = base.wrapping_add_signed(fentry_thread_offset());
        // SAFETY: the loader has laid out a `Thread` there, zeroed, for as long as the thread
        // runs; the reference stays in functions that the thread is in.
        unsafe { &*ptr::with_exposed_provenance(at as usize) }
    }
}

/// A side stack, and whose it is.
#[repr(C, align(16))]
struct Owned {
    /// The thread, and its process.
    tid: AtomicI32,
    pid: i32,
    next: *mut Owned,
    side_stack: SideStack,
}

/// All that were made, the last one first. None is ever unmapped.
static ALL: AtomicPtr<Owned> = AtomicPtr::new(ptr::null_mut());
/// Calls that ran unhooked because no side stack could be made, or was being made.
static WITHOUT: AtomicU64 = AtomicU64::new(0);

/// How emitted code finds the side stack of the running thread; `None` where thread-local
/// storage is further away than an instruction reaches.
pub(super) fn place() -> Option<SideStackPlace> {
    let thread_offset = i32::try_from(fentry_thread_offset()).ok()?;
    let target = make as extern "C" fn() -> *mut SideStack as usize as u64;
    Some(SideStackPlace { thread_offset, make: Some(MakeSideStack { target, vectors: widest() }) })
}

/// What emitted code calls on a thread that has no side stack.
extern "C" fn make() -> *mut SideStack {
    let thread = Thread::own();
    if thread.making.swap(1, Ordering::Relaxed) != 0 {
        WITHOUT.fetch_add(1, Ordering::Relaxed);
        return ptr::null_mut();
    }
    let side_stack = take().or_else(map).map_or(ptr::null_mut(), NonNull::as_ptr);
    if side_stack.is_null() {
        WITHOUT.fetch_add(1, Ordering::Relaxed);
    }
    thread.side_stack.store(side_stack, Ordering::Relaxed);
    thread.making.store(0, Ordering::Relaxed);
    side_stack
}

/// Takes over the side stack of a thread that has ended: the first in the list. A new one becomes
/// the first. So what is left in those of other threads that have ended is behind this thread's,
/// and an unwinder that looks for a slot of this thread's stack comes upon this thread's first.
fn take() -> Option<NonNull<SideStack>> {
    let (own, pid) = (gettid().as_raw_nonzero().get(), getpid().as_raw_nonzero().get());
    let mut asked = 0;
    let found = all().filter(|owned| owned.pid == pid).find(|owned| {
        let tid = owned.tid.load(Ordering::Acquire);
        // A thread that needs one has none: this one's id was another's before.
        let ended = tid == own
            || asked < ASKED && {
                asked += 1;
                threads::has_left(tid)
            };
        let take = || owned.tid.compare_exchange(tid, own, Ordering::AcqRel, Ordering::Relaxed);
        ended && take().is_ok()
    })?;
    // SAFETY: the thread that it belonged to has ended, and only this one has taken it over.
    unsafe { found.side_stack.reset() };
    Some(NonNull::from(&found.side_stack))
}

/// Makes a new one.
fn map() -> Option<NonNull<SideStack>> {
    let before = offset_of!(Owned, side_stack);
    let bytes = SideStack::size_for(SIDE_STACK_DEPTH);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let memory = unsafe {
        rustix::mm::mmap_anonymous(ptr::null_mut(), before + bytes, access, MapFlags::PRIVATE)
    };
    let owned = NonNull::new(memory.ok()?.cast::<Owned>())?;
    // SAFETY: `before` is inside of the mapping.
    let place = unsafe { owned.cast::<u8>().add(before) };
    // SAFETY: new memory, zeroed, of which so many bytes are behind `before`; it is never
    // unmapped.
    let side_stack = unsafe { SideStack::init(place, bytes) }.ok()?;
    let tid = AtomicI32::new(gettid().as_raw_nonzero().get());
    let mut next = ALL.load(Ordering::Relaxed);
    // SAFETY: the fields before the side stack, in the new mapping; nobody else knows it yet.
    unsafe {
        let owned = owned.as_ptr();
        (&raw mut (*owned).tid).write(tid);
        (&raw mut (*owned).pid).write(getpid().as_raw_nonzero().get());
        (&raw mut (*owned).next).write(next);
    }
    loop {
        match ALL.compare_exchange(next, owned.as_ptr(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Some(side_stack),
            Err(other) => next = other,
        }
        // SAFETY: as above: it is not in the list yet.
        unsafe { (&raw mut (*owned.as_ptr()).next).write(next) };
    }
}

/// Where unwinders find all of them.
pub(super) fn list() -> SideStackList {
    SideStackList {
        first: ALL.as_ptr() as u64,
        next: offset_of!(Owned, next) as u8,
        side_stack: offset_of!(Owned, side_stack) as u8,
    }
}

/// Every side stack there is.
fn all() -> impl Iterator<Item = &'static Owned> {
    // SAFETY: what is in the list is whole (released by `map`), and never unmapped.
    let first = unsafe { ALL.load(Ordering::Acquire).as_ref() };
    // SAFETY: as above.
    core::iter::successors(first, |owned| unsafe { owned.next.as_ref() })
}

/// Calls of functions with programs at their exit that these programs did not see the end of,
/// or nothing of, in all threads since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// The functions were left without a return, by an exception or `longjmp`, or their thread
    /// ended inside: entry programs ran, and no exit programs. Counted when the thread next
    /// enters or leaves a hooked function. Of functions whose arguments on the stack
    /// [are known](super::Process::set_stack_arguments), counted are those that an exception
    /// leaves, at once, and none that `longjmp` leaves.
    pub abandoned: u64,
    /// The thread was in more hooked functions than [`SIDE_STACK_DEPTH`]: no program ran.
    pub overflowed: u64,
    /// The thread could not be given a side stack, or was being given one: no program ran.
    pub without_side_stack: u64,
}

/// What was missed so far, by functions whose state is on side stacks.
pub(super) fn missed() -> Missed {
    let without_side_stack = WITHOUT.load(Ordering::Relaxed);
    all().fold(Missed { without_side_stack, ..Missed::default() }, |missed, owned| Missed {
        abandoned: missed.abandoned + owned.side_stack.abandoned(),
        overflowed: missed.overflowed + owned.side_stack.overflowed(),
        ..missed
    })
}
