//! A signal handler that calls hooked functions, at every single instruction of the images: the
//! processor's trap flag makes a signal of each.

use core::arch::asm;
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;

use fentry::emit::{Context, ExitContext, Vectors};

use super::programs::call_of;
use super::{Form, Functions};
use crate::hooks::{Programs, SIDE_STACKS, give_side_stack};

/// The flag that traps behind the next instruction.
const TRAP: i64 = 0x100;

thread_local! {
    static ENTRIES: Cell<u64> = const { Cell::new(0) };
    static EXITS: Cell<u64> = const { Cell::new(0) };
    /// The images, and how many of their instructions were run.
    static IMAGES: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
    /// The steps at which the handler calls this function.
    static CALLS_AT: Cell<[u64; 2]> = const { Cell::new([0; 2]) };
    static CALL: Cell<Option<unsafe extern "C" fn(i64) -> i64>> = const { Cell::new(None) };
    static RETURNED: Cell<i64> = const { Cell::new(0) };
}

extern "C" fn count_entry(_: &mut Context, _: u64, _: u64) {
    ENTRIES.set(ENTRIES.get() + 1);
}

extern "C" fn count_exit(_: &mut ExitContext, _: u64, _: u64) {
    EXITS.set(EXITS.get() + 1);
}

extern "C" fn on_step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: what the kernel passes to a handler with `SA_SIGINFO`.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let at = context.uc_mcontext.gregs[libc::REG_RIP as usize].cast_unsigned();
    let (start, end) = IMAGES.get();
    if !(start..end).contains(&at) {
        return;
    }
    let step = STEPS.get();
    STEPS.set(step + 1);
    let calls_at = CALLS_AT.get();
    if calls_at.contains(&step)
        && let Some(call) = CALL.get()
    {
        // SAFETY: a function of the test's object that takes any number, hooked or not, and does
        // not ask where the frame pointer points.
        RETURNED.set(RETURNED.get() + unsafe { call_with_frame(call, 41) });
        if step == calls_at[1] {
            // The rest runs at full speed.
            context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP;
        }
    }
}

/// Calls a function with a number that is nobody's frame pointer for one, which it has to keep.
///
/// # Safety
/// That of the call; it makes no use of its caller's frame pointer.
unsafe fn call_with_frame(function: unsafe extern "C" fn(i64) -> i64, number: i64) -> i64 {
    let (result, kept): (i64, i64);
    // SAFETY: the function keeps to the C ABI (contract).
    unsafe {
        asm!(
            "push rbp",
            "push rbp",
            "mov rbp, rdi",
            "call {function}",
            "mov rcx, rbp",
            "pop rbp",
            "pop rbp",
            function = in(reg) function,
            in("rdi") number,
            lateout("rax") result,
            lateout("rcx") kept,
            clobber_abi("C"),
        );
    }
    assert_eq!(kept, number, "the frame pointer");
    result
}

/// Calls `driver` with a trap behind every instruction.
fn step_through(driver: unsafe extern "C" fn(i64) -> i64, number: i64) -> i64 {
    let set = |trap: bool| {
        // SAFETY: the trap flag's signal has a handler.
        unsafe {
            asm!(
                "pushfq",
                "and qword ptr [rsp], -0x101",
                "or qword ptr [rsp], {flag}",
                "popfq",
                flag = in(reg) if trap { TRAP } else { 0 },
            );
        }
    };
    set(true);
    // SAFETY: a driver, which makes no use of its caller's frame pointer.
    let result = unsafe { call_with_frame(driver, number) };
    set(false);
    result
}

fn handle_steps() {
    // SAFETY: all zeroes is a `sigaction`.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(_, _, _) = on_step;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler does what a handler may: it calls functions that only calculate.
    let failed = unsafe { libc::sigaction(libc::SIGTRAP, &action, core::ptr::null_mut()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

/// Runs `driver` once for each instruction of the images that it runs, interrupted there, and
/// once again `apart` instructions later.
fn interrupt_everywhere(
    functions: &Functions,
    form: Form,
    driver: (&str, i64),
    expected: i64,
    left: u64,
    apart: u64,
) {
    let count_entry: extern "C" fn(_, _, _) = count_entry;
    let count_exit: extern "C" fn(_, _, _) = count_exit;
    let entries = [call_of(count_entry as usize as u64, 0)];
    let exits = [call_of(count_exit as usize as u64, 0)];
    let programs = Programs { entries: &entries, exits: &exits, ..Programs::none(Vectors::Xmm) };
    let names = ["f_down", "f_catches", "f_jumps", "f_leaf", "f_catches_far"];
    let _hooks = functions.hook(form, &names, &programs);
    let ground = functions.0.address("ground") as u64;
    IMAGES.set((ground, ground + 0x40000));
    // SAFETY: its type in the C source.
    CALL.set(Some(unsafe { functions.0.function("f_leaf") }));
    let (driver, number) = driver;
    // SAFETY: as above.
    let driver = unsafe { functions.0.function(driver) };
    let run = |calls_at: [u64; 2], calls: i64| {
        let side_stack = give_side_stack(16);
        for count in [&ENTRIES, &EXITS, &STEPS] {
            count.set(0);
        }
        CALLS_AT.set(calls_at);
        RETURNED.set(0);
        let at = || format!("{form:?}, steps {calls_at:?}");
        assert_eq!(step_through(driver, number), expected, "{}", at());
        assert_eq!(RETURNED.get(), 42 * calls, "{}", at());
        assert_eq!(ENTRIES.get() - EXITS.get(), left, "{}", at());
        assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0), "{}", at());
        assert_eq!(side_stack.abandoned(), left, "{}", at());
    };
    // At no step: this only counts them.
    run([u64::MAX; 2], 0);
    let steps = STEPS.get();
    for first in 0..steps - apart {
        run([first, first + apart], 1 + i64::from(apart > 0));
    }
    assert!(steps > 100, "the images were stepped through: {steps}");
}

/// How many instructions a second handler comes after the first: up to those between the first
/// that touches a frame and the last that has to notice.
const APART: u64 = 8;

#[test]
fn handlers_that_call_hooked_functions_may_come_at_any_instruction() {
    handle_steps();
    let functions = Functions::load("exits-signals");
    for form in SIDE_STACKS {
        let interrupt = |driver, expected, left, apart| {
            interrupt_everywhere(&functions, form, driver, expected, left, apart);
        };
        for apart in 0..=APART {
            interrupt(("drive_down", 0), 1, 0, apart);
        }
        interrupt(("drive_catches", 0), 0, 1, 0);
        interrupt(("drive_jumps", 0), 1, 1, 0);
        // Here the handler, too, finds what was left.
        interrupt(("drive_far", 1), 2, 2, 0);
        interrupt(("drive_catches_far", 1), 10, 2, 0);
    }
}
