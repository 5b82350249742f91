//! What a thread does while it is held, and the signal that holds it.
//!
//! ```text
//! inspector                               handler, in every other thread
//! GENERATION = n
//! queue the signal, payload (n, slot) ->  ENTERED += 1
//!                                         GENERATION is n? otherwise go
//!                                         slot: instruction and stack pointer
//!                     answered += 1   <-  slot.state = ANSWERED
//! all have answered: look, judge, act
//! slot.move_to = ...
//! release = 1                         ->  instruction pointer = slot.move_to
//! GENERATION = 0                          ENTERED -= 1
//! wait until ENTERED is 0; free the slots
//! ```
//! In a survey nobody waits: a thread says whether it is outside, and goes on.
//!
//! A signal that comes too late finds another generation and touches nothing else: either
//! the handler counts itself into `ENTERED` before the inspector reads that, which then
//! waits for it, or it reads `GENERATION` after the inspector has cleared that. All four
//! accesses are `SeqCst` for this.
//!
//! A signal may come later than that it is ignored: a debugger stops a thread before it gets
//! one, and passes that on whenever the debugger's user likes. So where a thread is traced and
//! has not answered, the handler stays for good; under the default action the process would die.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ops::Range;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::boxed::Box;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::thread::futex;
use rustix::thread::futex::Timespec;

use super::list::{Status, bit, for_each};
use super::stacks::{Outside, OwnMemory, Stacks};

static GENERATION: AtomicU32 = AtomicU32::new(0);
static ENTERED: AtomicU32 = AtomicU32::new(0);
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(null_mut());
/// Signals that may still be on their way, as a mask. Their handler stays.
static ON_THEIR_WAY: AtomicU64 = AtomicU64::new(0);

const SILENT: u32 = 0;
const ANSWERING: u32 = 1;
const ANSWERED: u32 = 2;
/// As `ANSWERED`, in a survey: it is outside of what is watched.
const OUTSIDE: u32 = 3;

/// What one thread publishes, and what it is told.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: AtomicU32,
    /// Whether it was interrupted on its alternate signal stack.
    alternate: AtomicU32,
    instruction: AtomicU64,
    stack: AtomicU64,
    /// Where it goes on; 0: where it was.
    move_to: AtomicU64,
}

impl Slot {
    pub(super) fn has_answered(&self) -> bool {
        self.state.load(Ordering::Acquire) >= ANSWERED
    }

    /// Whether it has said that it is outside of what a survey watches.
    pub(super) fn is_outside(&self) -> bool {
        self.state.load(Ordering::Acquire) == OUTSIDE
    }

    /// Instruction pointer, stack pointer, whether on the alternate stack.
    pub(super) fn answer(&self) -> (u64, u64, bool) {
        (
            self.instruction.load(Ordering::Relaxed),
            self.stack.load(Ordering::Relaxed),
            self.alternate.load(Ordering::Relaxed) != 0,
        )
    }

    pub(super) fn move_to(&self, address: u64) {
        self.move_to.store(address, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    slots: Box<[Slot]>,
    answered: AtomicU32,
    release: AtomicU32,
    survey: Option<Question>,
}

/// What each thread is asked in a survey: whether it is outside.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) watched: Arc<[Range<u64>]>,
    pub(super) stacks: Arc<Stacks>,
    pub(super) memory: Arc<OwnMemory>,
}

impl Question {
    /// Whether nothing says that a thread which does not move is inside, or will return there: it
    /// goes on at `instruction`, with its stack at `pointer`. Done by system calls only, so that
    /// a signal handler may ask, and a helper that shares this memory.
    ///
    /// What was a stack when the mappings were read may be none any more: a thread that has just
    /// been started makes memory beside its stack, which the kernel takes for one mapping with
    /// it, and protects a part of that later.
    ///
    /// # Errors
    /// What was a stack cannot be read.
    pub(super) fn is_outside(&self, instruction: u64, pointer: u64) -> Result<bool, Errno> {
        let stack = self.stacks.above(pointer).ok_or(Errno::FAULT)?;
        let mut seen = Outside::new(&self.watched, instruction, &stack);
        self.memory.words(stack, |word| seen.word(word))?;
        Ok(seen.outside)
    }
}

/// The handler in place, and the threads it holds. Dropping it lets them go.
#[derive(Debug)]
pub(super) struct Hold {
    generation: u32,
    signal: c_int,
    shared: *mut Shared,
    asked: Cell<u32>,
}

impl Hold {
    /// Installs the handler. `signal` must be one of [`usable`]. With a `survey`, threads
    /// are not held, but answer and go on.
    pub(super) fn new(
        signal: c_int,
        capacity: usize,
        survey: Option<Question>,
    ) -> Result<Self, Errno> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let mut generation = NEXT.fetch_add(1, Ordering::Relaxed);
        if generation == 0 {
            generation = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        let slots = (0..capacity).map(|_| Slot::default()).collect();
        let (answered, release) = (AtomicU32::new(0), AtomicU32::new(0));
        let shared = Box::into_raw(Box::new(Shared { slots, answered, release, survey }));
        let hold = Self { generation, signal, shared, asked: Cell::new(0) };
        SHARED.store(shared, Ordering::Release);
        GENERATION.store(generation, Ordering::SeqCst);

        set_action(signal, handler(), HANDLER_FLAGS)?;
        Ok(hold)
    }

    fn shared(&self) -> &Shared {
        // SAFETY: made by `new` from a box, freed in `drop`; only shared references exist.
        unsafe { &*self.shared }
    }

    pub(super) fn slot(&self, index: usize) -> Option<&Slot> {
        self.shared().slots.get(index)
    }

    pub(super) fn signal(&self) -> c_int {
        self.signal
    }

    pub(super) fn capacity(&self) -> usize {
        self.shared().slots.len()
    }

    /// Asks thread `tid` to answer in slot `index`.
    pub(super) fn ask(&self, tid: i32, index: usize) -> Result<(), Errno> {
        // SAFETY: all zero bytes are a valid `siginfo_t`, which is integers.
        let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
        info.si_signo = self.signal;
        info.si_code = libc::SI_QUEUE;
        let queued = Queued {
            pid: std::process::id().cast_signed(),
            uid: 0,
            value: u64::from(self.generation) << 32 | index as u64,
        };
        // SAFETY: the kernel's layout of a queued signal (sigaction(2), `_rt` of the kernel's
        // `siginfo`): pid, uid and value from byte 16 on, in the 128 bytes of `info`.
        unsafe { (&raw mut info).cast::<u8>().add(QUEUED_AT).cast::<Queued>().write(queued) };
        // SAFETY: `info` lives through the call, which copies it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                queued.pid,
                tid,
                self.signal,
                &raw const info,
            )
        };
        if result == 0 {
            self.asked.set(self.asked.get() + 1);
            return Ok(());
        }
        // SAFETY: always valid for the calling thread.
        Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
    }

    /// Waits until another answer comes, or `nanoseconds` have passed. `seen` is what
    /// [`answers`](Self::answers) gave before the caller looked.
    pub(super) fn wait(&self, seen: u32, nanoseconds: i64) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let _ = futex::wait(&self.shared().answered, futex::Flags::PRIVATE, seen, Some(&timeout));
    }

    pub(super) fn answers(&self) -> u32 {
        self.shared().answered.load(Ordering::Acquire)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared().release.store(1, Ordering::Release);
        let _ = futex::wake(&self.shared().release, futex::Flags::PRIVATE, i32::MAX as u32);
        GENERATION.store(0, Ordering::SeqCst);
        if self.answers() != self.asked.get() {
            // Ignoring a signal discards what is pending of it, in every thread, blocked or not
            // (POSIX, sigaction; kernel/signal.c, `do_sigaction`), but not what a debugger has.
            let _ = set_action(self.signal, libc::SIG_IGN, 0);
            if is_traced() {
                ON_THEIR_WAY.fetch_or(bit(self.signal), Ordering::Relaxed);
            }
        }
        let _ = if ON_THEIR_WAY.load(Ordering::Relaxed) & bit(self.signal) == 0 {
            set_action(self.signal, libc::SIG_DFL, 0)
        } else {
            set_action(self.signal, handler(), HANDLER_FLAGS)
        };
        while ENTERED.load(Ordering::SeqCst) != 0 {
            rustix::thread::sched_yield();
        }
        SHARED.store(null_mut(), Ordering::Relaxed);
        // SAFETY: from `Box::into_raw`; no handler is in the shared part now, and none that
        // comes later finds this generation.
        drop(unsafe { Box::from_raw(self.shared) });
    }
}

/// Whether another process traces a thread of this one, as far as can be told.
fn is_traced() -> bool {
    let mut traced = false;
    let looked = for_each(|tid| traced |= Status::of(tid).is_some_and(|status| status.traced));
    traced || looked.is_err()
}

/// Forgets handlers of a parent process that were copied by `fork` while they held threads,
/// which the child does not have. Only with no [`Hold`] of this process in existence.
pub(super) fn forget_parent() {
    GENERATION.store(0, Ordering::SeqCst);
    ENTERED.store(0, Ordering::SeqCst);
}

/// Where `siginfo_t` has pid, uid and value of a queued signal, on 64-bit machines.
const QUEUED_AT: usize = 16;

#[derive(Clone, Copy)]
#[repr(C)]
struct Queued {
    pid: i32,
    uid: u32,
    value: u64,
}

/// On an alternate stack where the thread has one, because its own may be a small one of a
/// language runtime.
const HANDLER_FLAGS: c_int = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;

/// The handler's address, as `sigaction` has it.
fn handler() -> usize {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    handler as *const () as usize
}

/// With all signals blocked in the handler: another one on top would run code that the
/// inspector believes held.
fn set_action(signal: c_int, handler: usize, flags: c_int) -> Result<(), Errno> {
    // SAFETY: all zero bytes are a valid `sigaction`: default action, empty mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: both point to `action`; the handler, if one, is async-signal-safe.
    let result = unsafe {
        libc::sigfillset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, null_mut())
    };
    // The only errors are of a wrong number: it is none that a process may set.
    if result == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

/// The signals from `SIGRTMIN` on whose action is the default one, or which already have the
/// handler of this module, as a mask.
pub(super) fn usable() -> u64 {
    let mut mask = 0;
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: all zero bytes are a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: only reads the action, into `action`.
        let result = unsafe { libc::sigaction(signal, core::ptr::null(), &raw mut action) };
        if result == 0 && [libc::SIG_DFL, handler()].contains(&action.sa_sigaction) {
            mask |= bit(signal);
        }
    }
    mask
}

/// A [usable] signal that few of these threads block; `None` if there is none.
pub(super) fn least_blocked<'a>(threads: impl Iterator<Item = &'a Status>) -> Option<c_int> {
    let mut common = usable();
    for status in threads {
        let free = common & !status.blocked;
        if free != 0 {
            common = free;
        }
    }
    (common != 0).then(|| lowest(common))
}

/// The lowest signal of a mask.
pub(super) fn lowest(mask: u64) -> c_int {
    mask.trailing_zeros().cast_signed() + 1
}

/// Whether the calling thread is on its alternate signal stack.
pub(super) fn on_alternate_stack() -> bool {
    // SAFETY: all zero bytes are a valid `stack_t`.
    let mut stack: libc::stack_t = unsafe { core::mem::zeroed() };
    // SAFETY: only reads the setting, into `stack`.
    let result = unsafe { libc::sigaltstack(core::ptr::null(), &raw mut stack) };
    result == 0 && stack.ss_flags & libc::SS_ONSTACK != 0
}

/// Async-signal-safe: atomics and the system calls futex and getpid; `errno` is not touched.
extern "C" fn on_signal(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    ENTERED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel gives both pointers, valid until the handler returns.
    unsafe { answer(info, context.cast()) };
    ENTERED.fetch_sub(1, Ordering::SeqCst);
}

/// # Safety
/// The arguments of a handler installed with `SA_SIGINFO`, counted into `ENTERED`.
unsafe fn answer(info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: `info` is valid; where it was queued by this process, `ask` wrote the rest.
    let (code, queued) =
        unsafe { ((*info).si_code, info.cast::<u8>().add(QUEUED_AT).cast::<Queued>().read()) };
    let ours = code == libc::SI_QUEUE && queued.pid == std::process::id().cast_signed();
    let generation = (queued.value >> 32) as u32;
    if !ours || generation == 0 || generation != GENERATION.load(Ordering::SeqCst) {
        return;
    }
    // SAFETY: the generation is current and this handler is counted, so the inspector does
    // not free it before the handler is counted out.
    let Some(shared) = (unsafe { SHARED.load(Ordering::Acquire).as_ref() }) else {
        return;
    };
    let Some(slot) = shared.slots.get(queued.value as u32 as usize) else {
        return;
    };
    let claim =
        slot.state.compare_exchange(SILENT, ANSWERING, Ordering::Relaxed, Ordering::Relaxed);
    if claim.is_err() {
        return;
    }
    // SAFETY: `context` is valid, and this thread's alone.
    let (registers, alternate) =
        unsafe { (&mut (*context).uc_mcontext.gregs, &(*context).uc_stack) };
    let stack = registers[libc::REG_RSP as usize].cast_unsigned();
    let base = alternate.ss_sp as u64;
    // As the kernel's `sas_ss_flags`: at its very base is not on it, at its very end is.
    let on_alternate = alternate.ss_flags & libc::SS_DISABLE == 0
        && stack > base
        && stack - base <= alternate.ss_size as u64;
    slot.instruction.store(registers[libc::REG_RIP as usize].cast_unsigned(), Ordering::Relaxed);
    slot.stack.store(stack, Ordering::Relaxed);
    slot.alternate.store(u32::from(on_alternate), Ordering::Relaxed);
    let instruction = slot.instruction.load(Ordering::Relaxed);
    // What cannot be read now is looked at again.
    let is_outside = |survey: &Question| survey.is_outside(instruction, stack) == Ok(true);
    let outside = !on_alternate && shared.survey.as_ref().is_some_and(is_outside);
    slot.state.store(if outside { OUTSIDE } else { ANSWERED }, Ordering::Release);
    shared.answered.fetch_add(1, Ordering::Release);
    let _ = futex::wake(&shared.answered, futex::Flags::PRIVATE, 1);
    if shared.survey.is_some() {
        return;
    }

    while shared.release.load(Ordering::Acquire) == 0 {
        let _ = futex::wait(&shared.release, futex::Flags::PRIVATE, 0, None);
    }
    let move_to = slot.move_to.load(Ordering::Relaxed);
    if move_to != 0 {
        registers[libc::REG_RIP as usize] = move_to.cast_signed();
    }
}
