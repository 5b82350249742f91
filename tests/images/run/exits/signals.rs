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
    /// The step at which the handler calls this function.
    static CALL_AT: Cell<u64> = const { Cell::new(0) };
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
    if step == CALL_AT.get()
        && let Some(call) = CALL.get()
    {
        // SAFETY: a function of the test's object that takes any number, hooked or not.
        RETURNED.set(unsafe { call(41) });
        // The rest runs at full speed.
        context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP;
    }
}

/// Calls `driver` with a trap behind every instruction.
fn step_through(driver: unsafe extern "C" fn(i64) -> i64, number: i64) -> i64 {
    let result;
    // SAFETY: the driver keeps to the C ABI; the trap flag is cleared again, and its signal
    // has a handler.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "call {driver}",
            "pushfq",
            "and qword ptr [rsp], -0x101",
            "popfq",
            driver = in(reg) driver,
            in("rdi") number,
            lateout("rax") result,
            clobber_abi("C"),
        );
    }
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

/// Runs `driver` once for each instruction of the images that it runs, interrupted there.
fn interrupt_everywhere(form: Form, driver: &str, number: i64, expected: i64, left: u64) {
    let functions = Functions::load(&format!("exits-signals-{driver}-{form:?}"));
    let count_entry: extern "C" fn(_, _, _) = count_entry;
    let count_exit: extern "C" fn(_, _, _) = count_exit;
    let entries = [call_of(count_entry as usize as u64, 0)];
    let exits = [call_of(count_exit as usize as u64, 0)];
    let programs = Programs { entries: &entries, exits: &exits, ..Programs::none(Vectors::Xmm) };
    let names = ["f_down", "f_catches", "f_jumps", "f_leaf"];
    let _hooks = functions.hook(form, &names, &programs);
    let ground = functions.0.address("ground") as u64;
    IMAGES.set((ground, ground + 0x40000));
    // SAFETY: its type in the C source.
    CALL.set(Some(unsafe { functions.0.function("f_leaf") }));
    // SAFETY: as above.
    let driver = unsafe { functions.0.function(driver) };
    let mut steps = 0;
    let mut call_at = 0_u64;
    while call_at <= steps {
        let side_stack = give_side_stack(16);
        for count in [&ENTRIES, &EXITS, &STEPS] {
            count.set(0);
        }
        // The first time it only counts.
        CALL_AT.set(call_at.wrapping_sub(1));
        RETURNED.set(42);
        assert_eq!(step_through(driver, number), expected, "{form:?}, step {call_at} of {steps}");
        assert_eq!(RETURNED.get(), 42, "{form:?}, step {call_at} of {steps}");
        let (entries, exits) = (ENTRIES.get(), EXITS.get());
        assert_eq!(entries - exits, left, "{form:?}, step {call_at} of {steps}");
        assert_eq!(side_stack.depth(), 0, "{form:?}, step {call_at} of {steps}");
        assert_eq!(side_stack.overflowed(), 0);
        steps = steps.max(STEPS.get());
        call_at += 1;
    }
    assert!(steps > 100, "the images were stepped through: {steps}");
}

#[test]
fn a_handler_that_calls_hooked_functions_may_come_at_any_instruction() {
    handle_steps();
    for form in SIDE_STACKS {
        interrupt_everywhere(form, "drive_down", 0, 1, 0);
        interrupt_everywhere(form, "drive_catches", 0, 0, 1);
        interrupt_everywhere(form, "drive_jumps", 0, 1, 1);
        // Here the handler, too, finds what was left.
        interrupt_everywhere(form, "drive_far", 1, 2, 2);
    }
}
