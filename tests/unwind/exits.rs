//! Functions with exit programs: their callers are on side stacks, where the unwinder finds them.

mod hooked;

use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use std::backtrace::Backtrace;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Barrier, OnceLock};

use fentry::emit::x86_64::{Bodies, Marks, SideStackList, UnwindTable};

use crate::is_alone;
use crate::walk::{addresses, step};
use hooked::{DEPTH, ENTRIES, EXITS, Hooked, is_in, side_stack};

thread_local! {
    static SEEN: RefCell<Vec<Vec<usize>>> = const { RefCell::new(Vec::new()) };
    static FROM_PROGRAMS: Cell<bool> = const { Cell::new(false) };
}

/// Looks at the stack from where it is called.
extern "C-unwind" fn look(_: i64) {
    let seen = addresses();
    SEEN.with_borrow_mut(|all| all.push(seen));
}

/// The same from programs, if that was asked for.
fn look_from_program() {
    if FROM_PROGRAMS.get() {
        look(0);
    }
}

/// What was seen while the driver ran.
#[inline(never)]
fn seen(drive: extern "C-unwind" fn(i64) -> i64, argument: i64) -> (i64, Vec<Vec<usize>>) {
    let result = drive(argument);
    (result, SEEN.take())
}

/// What the origin sees is what it sees unhooked, but for thunks, of which there are so many.
fn compare(driver: &str, argument: i64, thunks: usize) {
    let hooked = Hooked::load(&format!("compare-{driver}"));
    hooked.call_back(look);
    let drive = hooked.driver(driver);
    let traces: Vec<_> = [false, true]
        .into_iter()
        .map(|hook| {
            let _hooks = hook.then(|| hooked.hook());
            seen(drive, argument)
        })
        .collect();
    let [(unhooked_result, unhooked), (result, traced)] = &traces[..] else { unreachable!() };
    assert_eq!(result, unhooked_result);
    let ([unhooked], [traced]) = (&unhooked[..], &traced[..]) else { panic!("looked at once") };
    let (own, rest): (Vec<usize>, Vec<usize>) =
        traced.iter().copied().partition(|address| hooked.emitted.contains(address));
    assert_eq!(rest, *unhooked, "{driver}: emitted code at {own:x?}");
    assert_eq!(own.len(), thunks, "{driver}: {own:x?}");
    assert_eq!(side_stack().depth(), 0);
}

#[test]
fn a_backtrace_in_the_origin_goes_on_in_the_caller() {
    compare("drive_leaf", 3, 1);
    compare("drive_many", 3, 1);
}

#[test]
fn a_backtrace_after_tail_calls_goes_on_in_the_caller() {
    // Three hooked functions with one return address: one thunk is returned to.
    compare("drive_tail", 3, 1);
}

#[test]
fn a_backtrace_goes_through_hooked_functions_at_any_depth() {
    for depth in 0..40 {
        compare("drive_down", depth, depth as usize + 1);
    }
}

#[test]
fn programs_see_the_function_and_its_callers() {
    let hooked = Hooked::load("programs");
    hooked.call_back(look);
    let drive = hooked.driver("drive_quiet");
    let _hooks = hooked.hook();
    FROM_PROGRAMS.set(true);
    let (result, traces) = seen(drive, 5);
    FROM_PROGRAMS.set(false);
    assert_eq!(result, 16);
    assert_eq!(traces.len(), 2, "one from each program");
    let here = addresses();
    for trace in &traces {
        let body = trace.iter().position(|address| hooked.emitted.contains(address));
        let [body, function, caller, test, rest @ ..] = &trace[body.expect("the body")..] else {
            panic!("{trace:x?}")
        };
        assert!(hooked.emitted.contains(body), "{trace:x?}");
        // What a debugger shows as the frame's place is before the return address.
        assert!(is_in(*function, "quiet"), "{trace:x?}");
        assert!(is_in(*caller, "drive_quiet"), "{trace:x?}");
        assert!(!hooked.emitted.contains(test), "{trace:x?}");
        assert_eq!(rest[1..], here[3..], "{trace:x?} {here:x?}");
    }
    assert_eq!(traces[0][traces[0].len() - 8..], traces[1][traces[1].len() - 8..]);
}

/// At every instruction of thunks and bodies, the stack leads to the driver of the functions, and
/// on from there; `more` are hooked functions of which one may be called by the other.
fn step_through(hooked: &Hooked, driver: &str, more: &[&str], argument: i64) {
    // SAFETY: a driver, which may be called with any number.
    let (_, steps) = unsafe { step(hooked.address(driver), argument, &hooked.emitted) };
    assert!(steps.len() > 50, "{} instructions", steps.len());
    let mut tail = None;
    for seen in &steps {
        let place = seen.at - hooked.emitted.start;
        let of_driver = |address: &&usize| {
            !hooked.emitted.contains(*address) && !more.iter().any(|name| is_in(**address, name))
        };
        let callers: Vec<usize> = seen.callers.iter().filter(of_driver).copied().collect();
        assert!(callers.len() > 3, "at {place:#x}: {:x?}", seen.callers);
        assert!(is_in(callers[0], driver), "at {place:#x}: {:x?}", seen.callers);
        let rest = &callers[1..];
        assert_eq!(tail.get_or_insert_with(|| rest.to_vec()), rest, "at {place:#x}");
    }
}

/// Functions that call back to something that does nothing.
fn quiet_functions(name: &str) -> Hooked {
    extern "C-unwind" fn nothing(_: i64) {}
    let hooked = Hooked::load(name);
    hooked.call_back(nothing);
    hooked
}

#[test]
fn every_instruction_of_thunk_and_bodies_leads_to_the_caller() {
    let hooked = quiet_functions("step");
    let _hooks = hooked.hook();
    // The first call makes the side stack.
    for _ in 0..2 {
        step_through(&hooked, "drive_quiet", &["quiet"], 1);
        step_through(&hooked, "drive_tail", &["tail_twice", "tail", "leaf"], 1);
        step_through(&hooked, "drive_down", &["down"], 2);
    }
    // Frames that were left are dropped, by the next call and by a return to further down.
    step_through(&hooked, "drive_left", &["quiet", "jumper"], 3);
    assert_eq!(side_stack().abandoned(), 4);
    step_through(&hooked, "drive_landing", &["landing", "jumper"], 3);
    assert_eq!((side_stack().abandoned(), side_stack().depth()), (8, 0));
}

#[test]
fn every_instruction_of_an_unhooked_call_leads_to_the_caller() {
    DEPTH.set(1);
    let hooked = quiet_functions("step-full");
    let _hooks = hooked.hook();
    for calls in 1..=2 {
        step_through(&hooked, "drive_down", &["down"], 2);
        assert_eq!((side_stack().overflowed(), side_stack().depth()), (2 * calls, 0));
    }
}

#[test]
fn cpp_exceptions_pass_and_are_accounted_for() {
    let hooked = Hooked::load("throw");
    let (throw, guards) = (hooked.driver("drive_throw"), hooked.driver("guards_run"));
    let quiet = hooked.driver("drive_quiet");
    let unhooked = throw(5);
    assert_eq!((unhooked, guards(0)), (1005, 6));
    let _hooks = hooked.hook();
    for round in 1..=20 {
        assert_eq!(throw(5), unhooked);
        assert_eq!(guards(0), 6 * (round + 1), "what is left is destroyed");
        assert_eq!(quiet(1), 8);
    }
    let (entries, exits) = (ENTRIES.get(), EXITS.get());
    assert_eq!((entries, exits), (20 * 7, 20));
    assert_eq!((side_stack().abandoned(), side_stack().depth()), (20 * 6, 0));
}

#[test]
fn rust_panics_pass_and_are_accounted_for() {
    extern "C-unwind" fn panics(_: i64) {
        resume_unwind(Box::new("thrown in the origin"));
    }

    let hooked = Hooked::load("panic");
    hooked.call_back(panics);
    let (down, quiet) = (hooked.driver("drive_down"), hooked.driver("drive_quiet"));
    let _hooks = hooked.hook();
    for _ in 0..20 {
        let caught = catch_unwind(|| down(5)).expect_err("it panics");
        assert_eq!(caught.downcast_ref(), Some(&"thrown in the origin"));
        assert_eq!(quiet(1), 8);
    }
    assert_eq!((ENTRIES.get(), EXITS.get()), (20 * 7, 20));
    assert_eq!((side_stack().abandoned(), side_stack().depth()), (20 * 6, 0));
}

#[test]
fn longjmp_leaves_the_side_stack_right() {
    let hooked = Hooked::load("jump");
    hooked.call_back(look);
    let (jump, quiet) = (hooked.driver("drive_jump"), hooked.driver("drive_quiet"));
    let leaf = hooked.driver("drive_leaf");
    let _hooks = hooked.hook();
    for _ in 0..20 {
        assert_eq!(jump(5), 7);
        // Frames that were left behind are not taken for a caller's.
        let (result, traces) = seen(leaf, 1);
        assert_eq!((result, traces.len()), (4, 1));
        assert!(traces[0].len() > 5, "{:x?}", traces[0]);
        assert_eq!(quiet(1), 8);
    }
    assert_eq!((ENTRIES.get(), EXITS.get()), (20 * 8, 20 * 2));
    assert_eq!((side_stack().abandoned(), side_stack().depth()), (20 * 6, 0));
}

#[test]
fn backtraces_name_the_function_and_its_caller() {
    extern "C-unwind" fn capture(_: i64) {
        let text = Backtrace::force_capture().to_string();
        let place = |name: &str| {
            let line = text.lines().position(|line| line.trim_end().ends_with(name));
            line.unwrap_or_else(|| panic!("{name} is missing:\n{text}"))
        };
        assert!(place(": many") < place(": drive_many"), "{text}");
        assert!(place(": drive_many") < place("backtraces_name_the_function_and_its_caller"));
    }

    if !is_alone("exits::backtraces_name_the_function_and_its_caller") {
        return;
    }
    let hooked = Hooked::load("names");
    hooked.call_back(capture);
    let drive = hooked.driver("drive_many");
    let unhooked = drive(2);
    let _hooks = hooked.hook();
    assert_eq!(drive(2), unhooked);
}

/// As [`libc::pthread_create`] wants it: a thread that Rust knows nothing of, because it ends by
/// unwinding, which Rust's own would not survive.
#[test]
fn a_thread_that_ends_in_the_origin_unwinds_to_its_start() {
    static DRIVER: OnceLock<extern "C-unwind" fn(i64) -> i64> = OnceLock::new();

    extern "C-unwind" fn exit(_: i64) {
        unsafe extern "C-unwind" {
            fn pthread_exit(value: *mut c_void) -> !;
        }
        // SAFETY: no frame between here and the thread's start has anything to drop.
        unsafe { pthread_exit(ptr::without_provenance_mut(42)) }
    }

    extern "C-unwind" fn start(_: *mut c_void) -> *mut c_void {
        DRIVER.get().expect("set before")(5);
        ptr::null_mut()
    }

    let hooked = Hooked::load("exit");
    hooked.call_back(exit);
    DRIVER.set(hooked.driver("drive_down")).expect("set once");
    let _hooks = hooked.hook();
    let mut result = ptr::null_mut();
    // SAFETY: `start` has this type but for its ABI, which lets a forced unwinding pass; the
    // thread is joined.
    unsafe {
        let start: extern "C" fn(*mut c_void) -> *mut c_void =
            core::mem::transmute(start as extern "C-unwind" fn(*mut c_void) -> *mut c_void);
        let mut thread = 0;
        assert_eq!(libc::pthread_create(&raw mut thread, ptr::null(), start, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
    }
    assert_eq!(result.addr(), 42);
}

#[test]
fn the_longest_tables_fit() {
    let far = |n: u64| 0x1000 * n;
    let marks = Marks {
        exit_found: far(3),
        exit_end: far(4),
        unhooked: far(5)..far(6),
        enter_found: far(8),
    };
    let bodies = Bodies { exit: far(2), enter: far(7) };
    let list = SideStackList { first: u64::MAX, next: 127, side_stack: 127 };
    let tables = [
        UnwindTable::of_side_stack_bodies(far(1)..far(9), bodies, &marks, &list),
        UnwindTable::of_exit_thunks(far(1), 0x10_0000, &list),
        UnwindTable::of_entry_body(far(1), 0x10_0000),
        UnwindTable::of_entry_thunks(far(1), 0x10_0000),
    ];
    for table in &tables {
        assert_eq!(table.as_bytes().strip_suffix(&[0; 4]), Some(table.entries()));
        assert!(table.entries().len() > 40);
    }
}

#[test]
fn threads_find_their_own_callers() {
    const THREADS: usize = 12;
    static ALL_INSIDE: Barrier = Barrier::new(THREADS);

    /// Looks when every thread is in its origin.
    extern "C-unwind" fn look_together(_: i64) {
        ALL_INSIDE.wait();
        look(0);
        ALL_INSIDE.wait();
    }

    let hooked = Hooked::load("threads");
    hooked.call_back(look_together);
    let down = hooked.driver("drive_down");
    let _hooks = hooked.hook();
    std::thread::scope(|scope| {
        for depth in 0..THREADS {
            let hooked = &hooked;
            scope.spawn(move || {
                let (_, traces) = seen(down, depth as i64);
                let thunks = traces[0].iter().filter(|seen| hooked.emitted.contains(*seen)).count();
                assert_eq!(thunks, depth + 1, "{:x?}", traces[0]);
                let callers = traces[0].iter().filter(|seen| is_in(**seen, "drive_down"));
                assert_eq!(callers.count(), 1, "{:x?}", traces[0]);
                assert_eq!(side_stack().depth(), 0);
            });
        }
    });
}
