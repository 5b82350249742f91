//! Walking stacks: with the unwinder that exceptions use, here and after every instruction.

use core::ffi::{c_int, c_void};
use core::ops::Range;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Frames that are looked at, the nearest.
const DEPTH: usize = 128;
/// Instructions that are looked at.
const STEPS: usize = 4096;

// SAFETY: libgcc_s, which every Rust program on a GNU system is linked to, has these functions
// with these types (Itanium C++ ABI, "Exception Handling", level I).
unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(
        each: extern "C-unwind" fn(*mut c_void, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

const URC_NO_REASON: c_int = 0;
const URC_END_OF_STACK: c_int = 5;

/// Return addresses, the nearest first.
#[derive(Clone, Copy)]
struct Trace {
    addresses: [usize; DEPTH],
    len: usize,
}

impl Trace {
    const EMPTY: Self = Self { addresses: [0; DEPTH], len: 0 };

    #[inline(never)]
    fn take(&mut self) {
        extern "C-unwind" fn each(context: *mut c_void, trace: *mut c_void) -> c_int {
            // SAFETY: what `take` has passed on.
            let trace = unsafe { &mut *trace.cast::<Trace>() };
            let Some(place) = trace.addresses.get_mut(trace.len) else { return URC_END_OF_STACK };
            // SAFETY: the unwinder's own.
            *place = unsafe { _Unwind_GetIP(context) };
            if *place == 0 {
                return URC_END_OF_STACK;
            }
            trace.len += 1;
            URC_NO_REASON
        }
        self.len = 0;
        // SAFETY: `each` takes what is passed on here.
        unsafe { _Unwind_Backtrace(each, (&raw mut *self).cast()) };
    }
}

/// The addresses that the caller's frames return to, as far as they can be found.
#[inline(never)]
pub fn addresses() -> Vec<usize> {
    let mut trace = Trace::EMPTY;
    trace.take();
    trace.addresses[..trace.len].to_vec()
}

core::arch::global_asm!(
    r#"
    # fentry_unwind_step(function, argument): calls it with a trap after every instruction.
    .globl fentry_unwind_step
    .type fentry_unwind_step, @function
    fentry_unwind_step:
    .cfi_startproc
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    mov rax, rdi
    mov rdi, rsi
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    call rax
    pushfq
    and qword ptr [rsp], ~0x100
    popfq
    pop rbp
    .cfi_def_cfa rsp, 8
    ret
    .cfi_endproc
    .size fentry_unwind_step, . - fentry_unwind_step
    "#
);

// SAFETY: above.
unsafe extern "C" {
    fn fentry_unwind_step(function: usize, argument: i64) -> i64;
}

/// What a step has shown: where it was, and who called that.
pub struct Step {
    pub at: usize,
    pub callers: Vec<usize>,
}

struct Steps {
    at: [usize; STEPS],
    traces: [Trace; STEPS],
}

static STEPPING: Mutex<()> = Mutex::new(());
static WATCHED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static mut TAKEN: Steps = Steps { at: [0; STEPS], traces: [Trace::EMPTY; STEPS] };

extern "C" fn trapped(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let at = context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    let count = COUNT.load(Relaxed);
    if (WATCHED[0].load(Relaxed)..WATCHED[1].load(Relaxed)).contains(&at) && count < STEPS {
        COUNT.store(count + 1, Relaxed);
        // SAFETY: one thread steps at a time, and reads this when it is done.
        unsafe {
            (&raw mut TAKEN.at).cast::<usize>().add(count).write(at);
            (*(&raw mut TAKEN.traces).cast::<Trace>().add(count)).take();
        }
    }
}

/// Calls `function(argument)` and looks at the stack before every instruction in `watched`.
///
/// # Safety
/// There is such a function, and calling it is sound.
pub unsafe fn step(function: usize, argument: i64, watched: &Range<usize>) -> (i64, Vec<Step>) {
    let _alone: MutexGuard<'_, ()> = STEPPING.lock().unwrap_or_else(PoisonError::into_inner);
    WATCHED[0].store(watched.start, Relaxed);
    WATCHED[1].store(watched.end, Relaxed);
    COUNT.store(0, Relaxed);
    // SAFETY: the action is set back below; nothing else of this process traps. The function is
    // the caller's promise.
    let result = unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = trapped as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut before: libc::sigaction = core::mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, &raw mut before), 0);
        let result = fentry_unwind_step(function, argument);
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const before, null_mut()), 0);
        result
    };
    let count = COUNT.load(Relaxed);
    assert!(count < STEPS, "more instructions than there is room for");
    let steps = (0..count).map(|step| {
        // SAFETY: written by `trapped`, which is over.
        let (at, trace) = unsafe { (TAKEN.at[step], TAKEN.traces[step]) };
        let known = &trace.addresses[..trace.len];
        // Before it are the handler's own frames.
        let here = known.iter().position(|&address| address == at);
        let callers = here.map_or(&[][..], |here| &known[here + 1..]);
        Step { at, callers: callers.to_vec() }
    });
    (result, steps.collect())
}
