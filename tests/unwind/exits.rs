//! Functions with exit programs: their callers are on side stacks, where the unwinder finds them.

pub mod steps;

use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use std::backtrace::Backtrace;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Barrier, Mutex};

use crate::hooked::{Hooked, emitted, is_in, runs, within};
use crate::is_alone;
use crate::support::{process, settle};
use crate::walk::addresses;
use steps::{
    every_instruction_of_a_skipped_function_leads_to_the_caller,
    every_instruction_of_thunk_and_bodies_leads_to_the_caller,
};

/// The forms that keep the caller's return address in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    SideStack,
    Frame,
}

thread_local! {
    /// That of the test that runs on this thread.
    static FORM: Cell<Form> = const { Cell::new(Form::SideStack) };
}

/// Makes tests of these functions: one for each form.
macro_rules! in_both_forms {
    ($($test:ident,)*) => {
        mod side_stack {
            $(#[test]
            fn $test() {
                super::$test();
            })*
        }

        mod frame {
            $(#[test]
            fn $test() {
                super::FORM.set(super::Form::Frame);
                super::$test();
            })*
        }
    };
}

in_both_forms! {
    a_backtrace_in_the_origin_goes_on_in_the_caller,
    a_backtrace_after_tail_calls_goes_on_in_the_caller,
    a_backtrace_goes_through_hooked_functions_at_any_depth,
    programs_see_the_function_and_its_callers,
    every_instruction_of_thunk_and_bodies_leads_to_the_caller,
    every_instruction_of_a_skipped_function_leads_to_the_caller,
    cpp_exceptions_pass_and_are_accounted_for,
    rust_panics_pass_and_are_accounted_for,
    longjmp_leaves_the_side_stack_right,
    a_thread_that_ends_in_the_origin_unwinds_to_its_start,
    many_thunks_lead_to_their_callers_whichever_others_come_and_go,
    what_threads_have_left_behind_is_nobody_elses_caller,
    threads_find_their_own_callers,
}

/// Loads functions for this test's form.
fn load_source(name: &str, source: &str, extension: &str, functions: usize) -> Hooked {
    let form = FORM.get();
    let hooked = Hooked::load(&format!("{name}-{form:?}"), source, extension, functions);
    // The last two arguments of `many`.
    hooked.set_stack_arguments((form == Form::Frame).then_some(2));
    hooked
}

fn load(name: &str) -> Hooked {
    load_source(name, include_str!("exits.cc"), "cc", 10)
}

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
    let hooked = load(&format!("compare-{driver}"));
    hooked.call_back(look);
    let drive = hooked.driver(driver);
    let traces: Vec<_> = [false, true]
        .into_iter()
        .map(|hook| {
            let _link = hook.then(|| hooked.hook(look_from_program));
            seen(drive, argument)
        })
        .collect();
    let [(unhooked_result, unhooked), (result, traced)] = &traces[..] else { unreachable!() };
    assert_eq!(result, unhooked_result);
    let ([unhooked], [traced]) = (&unhooked[..], &traced[..]) else { panic!("looked at once") };
    let emitted = emitted();
    let (own, rest): (Vec<usize>, Vec<usize>) =
        traced.iter().copied().partition(|address| within(&emitted, *address));
    assert_eq!(rest, *unhooked, "{driver}: emitted code at {own:x?}");
    assert_eq!(own.len(), thunks, "{driver}: {own:x?}");
}

fn a_backtrace_in_the_origin_goes_on_in_the_caller() {
    compare("drive_leaf", 3, 1);
    compare("drive_many", 3, 1);
}

fn a_backtrace_after_tail_calls_goes_on_in_the_caller() {
    // Three hooked functions with one return address. On a side stack, one thunk is returned to;
    // frames return to each other.
    compare("drive_tail", 3, if FORM.get() == Form::Frame { 3 } else { 1 });
}

fn a_backtrace_goes_through_hooked_functions_at_any_depth() {
    for depth in 0..40 {
        compare("drive_down", depth, depth as usize + 1);
    }
}

fn programs_see_the_function_and_its_callers() {
    let hooked = load("programs");
    hooked.call_back(look);
    let drive = hooked.driver("drive_quiet");
    let _link = hooked.hook(look_from_program);
    FROM_PROGRAMS.set(true);
    let (result, traces) = seen(drive, 5);
    FROM_PROGRAMS.set(false);
    assert_eq!(result, 16);
    assert_eq!(traces.len(), 2, "one from each program");
    let here = addresses();
    for trace in &traces {
        let body = trace.iter().position(|address| within(&emitted(), *address));
        let [body, function, caller, test, rest @ ..] = &trace[body.expect("the body")..] else {
            panic!("{trace:x?}")
        };
        assert!(within(&emitted(), *body), "{trace:x?}");
        // What a debugger shows as the frame's place is before the return address.
        assert!(is_in(*function, "quiet"), "{trace:x?}");
        assert!(is_in(*caller, "drive_quiet"), "{trace:x?}");
        assert!(!within(&emitted(), *test), "{trace:x?}");
        assert_eq!(rest[1..], here[3..], "{trace:x?} {here:x?}");
    }
    assert_eq!(traces[0][traces[0].len() - 8..], traces[1][traces[1].len() - 8..]);
}

fn cpp_exceptions_pass_and_are_accounted_for() {
    let hooked = load("throw");
    let (throw, guards) = (hooked.driver("drive_throw"), hooked.driver("guards_run"));
    let quiet = hooked.driver("drive_quiet");
    let unhooked = throw(5);
    assert_eq!((unhooked, guards(0)), (1005, 6));
    let _link = hooked.hook(look_from_program);
    for round in 1..=20 {
        assert_eq!(throw(5), unhooked);
        assert_eq!(guards(0), 6 * (round + 1), "what is left is destroyed");
        assert_eq!(quiet(1), 8);
    }
    assert_eq!(runs(), (20 * 7, 20));
}

fn rust_panics_pass_and_are_accounted_for() {
    extern "C-unwind" fn panics(_: i64) {
        resume_unwind(Box::new("thrown in the origin"));
    }

    let hooked = load("panic");
    hooked.call_back(panics);
    let (down, quiet) = (hooked.driver("drive_down"), hooked.driver("drive_quiet"));
    let _link = hooked.hook(look_from_program);
    for _ in 0..20 {
        let caught = catch_unwind(|| down(5)).expect_err("it panics");
        assert_eq!(caught.downcast_ref(), Some(&"thrown in the origin"));
        assert_eq!(quiet(1), 8);
    }
    assert_eq!(runs(), (20 * 7, 20));
}

fn longjmp_leaves_the_side_stack_right() {
    let hooked = load("jump");
    hooked.call_back(look);
    let (jump, quiet) = (hooked.driver("drive_jump"), hooked.driver("drive_quiet"));
    let leaf = hooked.driver("drive_leaf");
    let _link = hooked.hook(look_from_program);
    for _ in 0..20 {
        assert_eq!(jump(5), 7);
        // Frames that were left behind are not taken for a caller's.
        let (result, traces) = seen(leaf, 1);
        assert_eq!((result, traces.len()), (4, 1));
        assert!(traces[0].len() > 5, "{:x?}", traces[0]);
        assert_eq!(quiet(1), 8);
    }
    assert_eq!(runs(), (20 * 8, 20 * 2));
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
    let hooked = load("names");
    hooked.call_back(capture);
    let drive = hooked.driver("drive_many");
    let unhooked = drive(2);
    let _link = hooked.hook(look_from_program);
    assert_eq!(drive(2), unhooked);
}

/// A thread that Rust knows nothing of, because it ends by unwinding, which Rust's own would not
/// survive.
fn a_thread_that_ends_in_the_origin_unwinds_to_its_start() {
    extern "C-unwind" fn exit(_: i64) {
        unsafe extern "C-unwind" {
            fn pthread_exit(value: *mut c_void) -> !;
        }
        // SAFETY: no frame between here and the thread's start has anything to drop.
        unsafe { pthread_exit(ptr::without_provenance_mut(42)) }
    }

    extern "C-unwind" fn start(drive: *mut c_void) -> *mut c_void {
        // SAFETY: the driver that is passed on below.
        let drive: extern "C-unwind" fn(i64) -> i64 = unsafe { core::mem::transmute(drive) };
        drive(5);
        ptr::null_mut()
    }

    let hooked = load("exit");
    hooked.call_back(exit);
    let drive = hooked.driver("drive_down") as *mut c_void;
    let _link = hooked.hook(look_from_program);
    let mut result = ptr::null_mut();
    // SAFETY: `start` has this type but for its ABI, which lets a forced unwinding pass; the
    // thread is joined.
    unsafe {
        let start: extern "C" fn(*mut c_void) -> *mut c_void =
            core::mem::transmute(start as extern "C-unwind" fn(*mut c_void) -> *mut c_void);
        let mut thread = 0;
        assert_eq!(libc::pthread_create(&raw mut thread, ptr::null(), start, drive), 0);
        assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
    }
    assert_eq!(result.addr(), 42);
}

/// More thunks than are emitted into one piece of memory, made and freed in turn.
fn many_thunks_lead_to_their_callers_whichever_others_come_and_go() {
    const FUNCTIONS: usize = 200;
    let mut source = String::from(
        "typedef void (*callback)(long); callback call_back;
        void set_callback(callback back) { call_back = back; }\n",
    );
    for number in 0..FUNCTIONS {
        source += &format!(
            "__attribute__((patchable_function_entry(21, 16))) long f_{number}(long n)
            {{ call_back(n); return n + {number}; }}
            long drive_{number}(long n) {{ long a = f_{number}(n); return a * 2; }}\n"
        );
    }
    let hooked = load_source("many", &source, "c", FUNCTIONS);
    hooked.call_back(look);
    let check = |attached: usize| {
        let emitted = emitted();
        for number in 0..FUNCTIONS {
            let (result, traces) = seen(hooked.driver(&format!("drive_{number}")), 1);
            assert_eq!((result, traces.len()), (2 * (1 + number as i64), 1));
            let mut callers =
                traces[0].iter().skip_while(|at| !is_in(**at, &format!("f_{number}")));
            callers.next();
            let thunk = callers.clone().next().is_some_and(|address| within(&emitted, *address));
            assert_eq!(thunk, attached > 0, "{number} of {attached} links: {:x?}", traces[0]);
            let caller = callers.nth(usize::from(thunk)).expect("somebody has called it");
            assert!(is_in(*caller, &format!("drive_{number}")), "{number}: {:x?}", traces[0]);
        }
    };
    check(0);
    let mut links = Vec::new();
    for attached in 1..=4 {
        links.push(hooked.hook(look_from_program));
        check(attached);
    }
    for (attached, link) in (0..4).rev().zip(links) {
        link.detach().expect("an attached link detaches");
        settle(process());
        check(attached);
    }
}

/// A thread that ended with frames on its side stack had the same stack that another has now.
fn what_threads_have_left_behind_is_nobody_elses_caller() {
    const THREADS: usize = 16;
    static ALL_LEFT: Barrier = Barrier::new(THREADS);

    let hooked = load("left-behind");
    hooked.call_back(look);
    let drive = hooked.driver("drive_maybe");
    let traces = Mutex::new(Vec::new());
    // The same code, so that the function's return address is in the same place.
    let work = |leave: i64| {
        let (result, seen) = seen(drive, leave);
        if leave == 1 {
            assert_eq!(result, 7);
            ALL_LEFT.wait();
        } else {
            assert_eq!(result, 2);
            traces.lock().expect("nobody panicked").extend(seen);
        }
    };
    let in_threads = |threads: usize, leave: i64| {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| work(leave));
            }
        });
        core::mem::take(&mut *traces.lock().expect("nobody panicked"))
    };
    let expected = in_threads(1, 0).remove(0);
    let _link = hooked.hook(look_from_program);
    let emitted = emitted();
    for _ in 0..8 {
        in_threads(THREADS, 1);
        // Few of these take over the side stack of the thread whose stack they have.
        for mut trace in in_threads(3, 0) {
            trace.retain(|address| !within(&emitted, *address));
            assert_eq!(trace, expected);
        }
    }
}

fn threads_find_their_own_callers() {
    const THREADS: usize = 12;
    static ALL_INSIDE: Barrier = Barrier::new(THREADS);

    /// Looks when every thread is in its origin.
    extern "C-unwind" fn look_together(_: i64) {
        ALL_INSIDE.wait();
        look(0);
        ALL_INSIDE.wait();
    }

    let hooked = load("threads");
    hooked.call_back(look_together);
    let down = hooked.driver("drive_down");
    let _link = hooked.hook(look_from_program);
    std::thread::scope(|scope| {
        for depth in 0..THREADS {
            scope.spawn(move || {
                let emitted = emitted();
                let (_, traces) = seen(down, depth as i64);
                let thunks = traces[0].iter().filter(|seen| within(&emitted, **seen)).count();
                assert_eq!(thunks, depth + 1, "{:x?}", traces[0]);
                let callers = traces[0].iter().filter(|seen| is_in(**seen, "drive_down"));
                assert_eq!(callers.count(), 1, "{:x?}", traces[0]);
            });
        }
    });
}
