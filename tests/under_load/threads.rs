//! Threads that run the functions, whatever they block and wherever they are.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use fentry::host::{Process, Program};

use crate::fleet::{
    FUNCTIONS, Finally, Fleet, Function, MARK, Marked, alone, counter_of, tid, under_load,
    wrong_results,
};
use crate::support::four::{PADDED, UNPADDED};
use crate::support::settle;

#[test]
fn two_thousand_rounds_while_three_threads_call() {
    let _alone = alone();
    for (name, flags) in [("padded", PADDED), ("unpadded", UNPADDED)] {
        let fleet = Fleet::load(name, flags);
        under_load(&fleet, 3, || {
            let (marked, program) = Marked::new();
            for round in 1..=1_000 {
                let link = fleet.attach(&fleet.selection, program.clone());
                fleet.call(MARK);
                marked.assert(FUNCTIONS, round, "every call while attached is counted");
                link.detach().expect("an attached link detaches");
                fleet.call(MARK);
                marked.assert(FUNCTIONS, round, "no call after detaching is counted");
            }
        });
        settle(fleet.process);
    }
}

#[test]
fn enabled_is_counted_and_disabled_is_not() {
    let _alone = alone();
    let fleet = Fleet::load("switched", PADDED);
    under_load(&fleet, 2, || {
        let (marked, program) = Marked::new();
        let link = fleet.attach(&fleet.selection, program);
        for round in 0..1_000 {
            link.disable().expect("an attached link can be disabled");
            fleet.call(MARK);
            marked.assert(FUNCTIONS, round, "no call while disabled is counted");
            link.enable().expect("a disabled link can be enabled");
            fleet.call(MARK);
            marked.assert(FUNCTIONS, round + 1, "every call while enabled is counted");
        }
        link.detach().expect("an attached link detaches");
    });
    settle(fleet.process);
}

#[test]
fn a_link_counts_every_call_while_others_of_its_functions_change() {
    let _alone = alone();
    for (name, flags) in [("shared", PADDED), ("shared_thunks", UNPADDED)] {
        let fleet = Fleet::load(name, flags);
        let (staying, program) = Marked::new();
        let stays = fleet.attach(&fleet.some(0, 48), program);
        let overlapping = fleet.some(16, 64);
        let stop = AtomicBool::new(false);
        let rounds = thread::scope(|scope| {
            let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
            let caller = scope.spawn(|| fleet.spin(MARK, &stop));
            for round in 0..500 {
                let (coming, program) = Marked::new();
                let link = fleet.attach(&overlapping, program);
                if round % 2 == 0 {
                    link.disable().expect("an attached link can be disabled");
                    link.enable().expect("a disabled link can be enabled");
                }
                link.detach().expect("an attached link detaches");
                drop(coming);
            }
            stop.store(true, Ordering::Relaxed);
            caller.join().expect("its results are right")
        });
        staying.assert(48, rounds, "calls by a thread, all of them while attached");
        stays.detach().expect("an attached link detaches");
        settle(fleet.process);
    }
}

/// What the signal handler calls and counts.
static IN_HANDLER: Mutex<&[(i64, Function)]> = Mutex::new(&[]);
static ATTACHING: AtomicBool = AtomicBool::new(false);
static HANDLED: AtomicU64 = AtomicU64::new(0);
static WRONG_IN_HANDLER: AtomicU64 = AtomicU64::new(0);

extern "C" fn call_functions(_signal: i32) {
    // Set before the handler was, and never held since.
    let Ok(functions) = IN_HANDLER.try_lock() else { return };
    let wrong = wrong_results(&functions, 3);
    WRONG_IN_HANDLER.fetch_add(wrong, Ordering::Relaxed);
    if ATTACHING.load(Ordering::Relaxed) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_signal_handler_calls_the_functions_that_its_thread_is_attaching_to() {
    let _alone = alone();
    let fleet = Fleet::load("signalled", PADDED);
    *IN_HANDLER.lock().expect("nobody panicked with it") = fleet.functions.clone().leak();
    // SAFETY: a zeroed action is valid; the handler uses atomics and calls loaded functions.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let handler: extern "C" fn(i32) = call_functions;
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        let failed = libc::sigaction(libc::SIGUSR2, &raw const action, core::ptr::null_mut());
        assert_eq!(failed, 0, "sigaction");
    }
    let attaching = tid();
    let stop = AtomicBool::new(false);
    let seen = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: a signal with a handler, to a thread that waits for this one.
                unsafe {
                    libc::syscall(libc::SYS_tgkill, libc::getpid(), attaching, libc::SIGUSR2);
                }
                thread::sleep(core::time::Duration::from_micros(50));
            }
        });
        let program = counter_of(&seen);
        while HANDLED.load(Ordering::Relaxed) < 300 {
            ATTACHING.store(true, Ordering::Relaxed);
            let link = fleet.attach(&fleet.selection, program.clone());
            ATTACHING.store(false, Ordering::Relaxed);
            fleet.call(4);
            ATTACHING.store(true, Ordering::Relaxed);
            link.detach().expect("an attached link detaches");
            ATTACHING.store(false, Ordering::Relaxed);
        }
    });
    assert_eq!(WRONG_IN_HANDLER.load(Ordering::Relaxed), 0, "results in the handler");
    assert!(seen.load(Ordering::Relaxed) > 0);
    settle(fleet.process);
}

/// What a program that waits says and is told.
#[derive(Default)]
struct Waiting {
    entered: AtomicBool,
    may_leave: AtomicBool,
    left: AtomicBool,
    dropped: AtomicBool,
    /// The program went on when it had been dropped.
    too_late: AtomicBool,
}

/// Is captured by the program, and says when it is dropped.
struct Canary(Arc<Waiting>);

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_closure_is_dropped_when_no_thread_is_in_it() {
    let _alone = alone();
    let fleet = Fleet::load("inside", PADDED);
    let waiting = Arc::new(Waiting::default());
    let canary = Canary(Arc::clone(&waiting));
    let program = Program::new(move |_, _| {
        let Canary(waiting) = &canary;
        waiting.entered.store(true, Ordering::SeqCst);
        while !waiting.may_leave.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        waiting.too_late.fetch_or(waiting.dropped.load(Ordering::SeqCst), Ordering::SeqCst);
        waiting.left.store(true, Ordering::SeqCst);
    });
    let first = fleet.some(0, 1);
    let link = fleet.attach(&first, program);
    thread::scope(|scope| {
        let _leave = Finally(|| waiting.may_leave.store(true, Ordering::SeqCst));
        let (number, function) = fleet.functions[0];
        let caller = scope.spawn(move || assert_eq!(function(5), 5 + number));
        while !waiting.entered.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        link.detach().expect("detaching waits for nobody");
        assert_eq!(function(6), 6 + number, "a call after detaching does not wait");
        assert!(!waiting.dropped.load(Ordering::SeqCst), "dropped while a thread is inside");
        scope.spawn(|| {
            // While the other thread waits for it, most likely.
            thread::sleep(core::time::Duration::from_millis(30));
            waiting.may_leave.store(true, Ordering::SeqCst);
        });
        let result = fleet.process.synchronize();
        assert!(waiting.left.load(Ordering::SeqCst) || result.is_err(), "{result:?} too early");
        caller.join().expect("its result is right");
    });
    fleet.process.synchronize().expect("no thread is inside");
    assert!(waiting.dropped.load(Ordering::SeqCst), "not dropped when all threads are outside");
    assert!(!waiting.too_late.load(Ordering::SeqCst), "dropped under the program's feet");
}

/// Is captured by a program; its drop takes until it is told, and synchronises meanwhile.
struct Lingering {
    process: &'static Process,
    waiting: Arc<Waiting>,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.waiting.entered.store(true, Ordering::SeqCst);
        while !self.waiting.may_leave.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        self.process.synchronize().expect("nothing is inside");
        self.waiting.dropped.store(true, Ordering::SeqCst);
    }
}

#[test]
fn synchronising_waits_for_closures_that_another_thread_drops() {
    let _alone = alone();
    let fleet = Fleet::load("lingers", PADDED);
    let waiting = Arc::new(Waiting::default());
    let lingering = Lingering { process: fleet.process, waiting: Arc::clone(&waiting) };
    let program = Program::new(move |_, _| {
        let _ = &lingering;
    });
    fleet.attach(&fleet.selection, program).detach().expect("an attached link detaches");
    thread::scope(|scope| {
        let _leave = Finally(|| waiting.may_leave.store(true, Ordering::SeqCst));
        scope.spawn(|| fleet.process.synchronize().expect("nothing is inside"));
        while !waiting.entered.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        scope.spawn(|| {
            // While the other one waits for it, most likely.
            thread::sleep(core::time::Duration::from_millis(30));
            waiting.may_leave.store(true, Ordering::SeqCst);
        });
        fleet.process.synchronize().expect("nothing is inside");
        assert!(waiting.dropped.load(Ordering::SeqCst), "a closure is still being dropped");
    });
}
