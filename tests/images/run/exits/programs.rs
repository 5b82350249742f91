//! Programs that write down what they see, and leave nothing as it was.

use core::arch::global_asm;
use core::cell::{Cell, RefCell};

use fentry::emit::{Context, CookiePlace, ExitContext, ProgramCall, Stride, Vectors};

/// What a program saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub exit: bool,
    pub index: u32,
    pub args: [u64; 6],
    pub function: u64,
    pub caller: u64,
    /// A number of this call alone, which its entry program has left in the session word.
    pub call: u64,
}

thread_local! {
    static EVENTS: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// What this thread's programs have seen since the last time.
pub fn take_events() -> Vec<Event> {
    EVENTS.take()
}

extern "C" fn at_entry(context: &mut Context, cookie: u64, data: u64, session: &mut u64) -> u64 {
    assert_eq!((cookie, data), (COOKIES[context.index() as usize], 1));
    assert_eq!(*session, 0, "a session begins with zero");
    CALLS.set(CALLS.get() + 1);
    *session = CALLS.get();
    let event = Event {
        exit: false,
        index: context.index(),
        args: *context.args(),
        function: context.function().get(),
        caller: context.caller().get(),
        call: *session,
    };
    EVENTS.with_borrow_mut(|events| events.push(event));
    0
}

extern "C" fn at_exit(context: &mut ExitContext, cookie: u64, data: u64, session: &mut u64) {
    assert_eq!((cookie, data), (COOKIES[context.index() as usize], 2));
    let event = Event {
        exit: true,
        index: context.index(),
        args: *context.args(),
        function: context.function().get(),
        caller: context.caller().get(),
        call: *session,
    };
    EVENTS.with_borrow_mut(|events| events.push(event));
}

/// Adds to both registers of the return value.
pub extern "C" fn change(context: &mut ExitContext, _: u64, _: u64) {
    let [low, high] = context.returned();
    context.set_returned([low + 1_000_000, high + 1]);
}

static COOKIES: [u64; 32] = {
    let mut cookies = [0; 32];
    let mut index = 0;
    while index < 32 {
        cookies[index] = 0x0c00_c1e0 + index as u64;
        index += 1;
    }
    cookies
};

pub fn call_of(target: u64, data: u64) -> ProgramCall {
    let cookie = CookiePlace { column: COOKIES.as_ptr() as u64, stride: Stride::Eight };
    ProgramCall { target, data: Some(data), cookie, session: None }
}

/// An entry program that notes the call, and one that clobbers what it may.
pub fn entries(vectors: Vectors) -> [ProgramCall; 2] {
    let at_entry: extern "C" fn(_, _, _, _) -> u64 = at_entry;
    let noting = ProgramCall { session: Some(7), ..call_of(at_entry as usize as u64, 1) };
    [noting, call_of(clobber(vectors), 0)]
}

/// The same for the exit; the one that clobbers runs first.
pub fn exits(vectors: Vectors) -> [ProgramCall; 2] {
    let at_exit: extern "C" fn(_, _, _, _) = at_exit;
    let noting = ProgramCall { session: Some(7), ..call_of(at_exit as usize as u64, 2) };
    [noting, call_of(clobber(vectors), 0)]
}

/// The program that clobbers all registers that compiled code for these vectors may change.
fn clobber(vectors: Vectors) -> u64 {
    let clobber: unsafe extern "C" fn() = match vectors {
        Vectors::Untouched => fentry_test_clobber_general,
        Vectors::Xmm => fentry_test_clobber_xmm,
        Vectors::Ymm => fentry_test_clobber_ymm,
        _ => fentry_test_clobber_zmm,
    };
    clobber as usize as u64
}

unsafe extern "C" {
    fn fentry_test_clobber_general();
    fn fentry_test_clobber_xmm();
    fn fentry_test_clobber_ymm();
    fn fentry_test_clobber_zmm();
}

global_asm!(
    ".globl fentry_test_clobber_xmm",
    "fentry_test_clobber_xmm:",
    ".irp k, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "pcmpeqd xmm\\k, xmm\\k",
    ".endr",
    "jmp fentry_test_clobber_general",
    ".globl fentry_test_clobber_ymm",
    "fentry_test_clobber_ymm:",
    ".irp k, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vcmpps ymm\\k, ymm\\k, ymm\\k, 15",
    ".endr",
    "vzeroupper",
    "jmp fentry_test_clobber_general",
    ".globl fentry_test_clobber_zmm",
    "fentry_test_clobber_zmm:",
    ".irp k, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vpternlogd zmm\\k, zmm\\k, zmm\\k, 255",
    ".endr",
    "vzeroupper",
    ".globl fentry_test_clobber_general",
    "fentry_test_clobber_general:",
    "mov rax, -1",
    // The red zone is the program's own.
    ".irp k, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
    "mov [rsp - 8 * \\k], rax",
    ".endr",
    ".irp register, rcx,rdx,rsi,rdi,r8,r9,r10,r11",
    "mov \\register, rax",
    ".endr",
    // Neither carry nor zero as the body leaves them.
    "cmp eax, eax",
    "stc",
    "ret",
);
