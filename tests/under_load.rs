//! Attaching and detaching while threads run the functions: nothing crashes, no result is
//! wrong, and what is counted is exact.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use fentry::emit::Context;
use fentry::host::{Cookies, Functions, Link, Process, Program};
use support::four::{PADDED, UNPADDED, build, find, numbered};
use support::object::Object;

/// Functions of each object.
const FUNCTIONS: usize = 64;

/// Added to the argument of the calls that are counted.
const MARK: i64 = 1 << 40;

/// Some tests have threads that cannot be held still, and would fail the others.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

type Function = extern "C" fn(i64) -> i64;

/// Functions that stay loaded.
struct Fleet {
    object: Object,
    process: &'static Process,
    selection: Functions,
    /// In the order of the selection: what each adds to its argument, and the function.
    functions: Vec<(i64, Function)>,
}

impl Fleet {
    fn load(name: &str, flags: &[&str]) -> Self {
        support::process();
        let object = build(name, &numbered(name, FUNCTIONS), "c", flags);
        let (process, selection) = find(&object);
        assert_eq!(selection.len(), FUNCTIONS, "functions of {name}");
        let function = |found: fentry::host::Function<'_>| {
            let symbol = found.name();
            let (_, number) = symbol.rsplit_once('_').expect("the names end in a number");
            // SAFETY: the type of every generated function.
            (number.parse().expect("a number"), unsafe { object.function(&symbol) })
        };
        let functions = selection.iter().map(function).collect();
        Self { object, process, selection, functions }
    }

    /// The functions from `from` up to `to`, in the order of the selection.
    fn some(&self, from: usize, to: usize) -> Functions {
        let mut position = 0..;
        self.selection.filter(|_| position.next().is_some_and(|at: usize| from <= at && at < to))
    }

    /// Calls each function once, with `argument`; asserts the results.
    fn call(&self, argument: i64) {
        assert_eq!(wrong_results(&self.functions, argument), 0, "results through hooked entries");
    }

    /// Calls all functions over and over, until told to stop; how often.
    fn spin(&self, argument: i64, stop: &AtomicBool) -> u64 {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            self.call(argument);
            rounds += 1;
        }
        rounds
    }

    fn attach(&self, functions: &Functions, program: Program) -> Link {
        // SAFETY: the programs of this file use atomics only, and the functions stay loaded
        // until their links are detached.
        unsafe { self.process.attach(functions, program) }
            .unwrap_or_else(|error| panic!("{}: {error}", self.object.module()))
    }
}

/// Calls each function once; how many results were wrong. Signal handlers use it.
fn wrong_results(functions: &[(i64, Function)], argument: i64) -> u64 {
    let wrong = |&&(number, function): &&(i64, Function)| function(argument) != argument + number;
    functions.iter().filter(wrong).count() as u64
}

/// Counts for each position of a selection, of calls with a marked argument only.
struct Marked(Arc<Vec<AtomicU64>>);

impl Marked {
    fn new() -> (Self, Program) {
        let counts: Arc<Vec<_>> = Arc::new((0..FUNCTIONS).map(|_| AtomicU64::new(0)).collect());
        let counted = Arc::clone(&counts);
        let program = Program::new(move |context: &mut Context, position| {
            if context.args()[0] == MARK as u64 {
                counted[position as usize].fetch_add(1, Ordering::Relaxed);
            }
        });
        (Self(counts), program.cookies(Cookies::Position))
    }

    /// Asserts that each of the first `functions` positions was counted so often.
    #[track_caller]
    fn assert(&self, functions: usize, count: u64, when: &str) {
        let counts: Vec<_> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let mut expected = vec![count; functions];
        expected.resize(FUNCTIONS, 0);
        assert_eq!(counts, expected, "{when}");
    }
}

/// Runs `work` while `threads` threads call the functions with unmarked arguments.
fn under_load(fleet: &Fleet, threads: usize, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // If `work` panics, the scope waits for threads that must be told.
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        let (started, has_started) = mpsc::channel();
        for number in 0..threads {
            let (started, stop) = (started.clone(), &stop);
            scope.spawn(move || {
                fleet.call(number as i64);
                started.send(()).expect("somebody waits");
                fleet.spin(number as i64, stop);
            });
        }
        (0..threads).for_each(|_| has_started.recv().expect("every thread starts"));
        work();
    });
}

/// Calls the function when it is dropped.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

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
        support::settle(fleet.process);
    }
}

#[test]
fn a_thread_that_blocks_every_signal_survives_twenty_thousand_rounds() {
    let _alone = alone();
    let fleet = Fleet::load("deaf", PADDED);
    let stop = AtomicBool::new(false);
    let seen = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        let (blocked, is_blocked) = mpsc::channel();
        let (fleet, stop, program) = (&fleet, &stop, counter_of(&seen));
        let few = fleet.some(0, 8);
        let deaf = scope.spawn(move || {
            block_every_signal();
            blocked.send(()).expect("somebody waits");
            fleet.spin(1, stop)
        });
        is_blocked.recv().expect("the thread says so");
        for _ in 0..20_000 {
            let link = fleet.attach(&few, program.clone());
            link.detach().expect("an attached link detaches");
        }
        // It is still there, and hooked like any other.
        let link = fleet.attach(&few, program);
        let before = seen.load(Ordering::Relaxed);
        while seen.load(Ordering::Relaxed) < before + 1_000 {
            assert!(!deaf.is_finished(), "the thread has ended");
            thread::yield_now();
        }
        link.detach().expect("an attached link detaches");
        stop.store(true, Ordering::Relaxed);
        assert!(deaf.join().expect("its results are right") > 0);
    });
    support::settle(fleet.process);
}

fn counter_of(count: &Arc<AtomicU64>) -> Program {
    let count = Arc::clone(count);
    Program::new(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    })
}

fn block_every_signal() {
    // SAFETY: a full set is a set, and what it blocks is this thread's business.
    unsafe {
        let mut all = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
        assert_eq!(failed, 0, "pthread_sigmask");
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
    support::settle(fleet.process);
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
        support::settle(fleet.process);
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
    // SAFETY: has no precondition.
    let attaching = unsafe { libc::gettid() };
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
    support::settle(fleet.process);
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

#[test]
fn libraries_follow_each_other_at_one_place_while_threads_run_hooked_functions() {
    let _alone = alone();
    let fleet = Fleet::load("resident", PADDED);
    let (_, program) = Marked::new();
    let stays = fleet.attach(&fleet.selection, program);
    under_load(&fleet, 2, || {
        // The same file twice, and two of the same size.
        for (name, flags) in
            [("guest_a", PADDED), ("guest_a", PADDED), ("guest_b", PADDED), ("guest_c", UNPADDED)]
                .into_iter()
                .cycle()
                .take(40)
        {
            let guest = Fleet::load(name, flags);
            let (marked, program) = Marked::new();
            let link = guest.attach(&guest.selection, program);
            guest.call(MARK);
            marked.assert(FUNCTIONS, 1, name);
            link.detach().expect("an attached link detaches");
            guest.call(MARK);
            marked.assert(FUNCTIONS, 1, name);
            synchronize(fleet.process);
            assert_eq!(Arc::strong_count(&marked.0), 1, "{name}: the program is still there");
            // SAFETY: detached and synchronised; only this thread called into it.
            unsafe { guest.object.unload() };
        }
    });
    stays.detach().expect("an attached link detaches");
    support::settle(fleet.process);
}

/// Synchronises, again where a busy thread's stack looked for two seconds as if it were inside.
fn synchronize(process: &Process) {
    let tries = (0..5).map(|_| process.synchronize());
    let last = tries.reduce(|last, next| if last.is_ok() { last } else { next });
    last.expect("five tries").expect("no thread stays inside");
}

#[test]
fn a_library_may_be_unloaded_while_another_thread_looks_for_new_ones() {
    let _alone = alone();
    let fleet = Fleet::load("looking", PADDED);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        let bystander = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let source = numbered("bystander", FUNCTIONS);
                let object = build("bystander", &source, "c", PADDED);
                // SAFETY: nobody was told of it, and nobody calls into it.
                unsafe { object.unload() };
                rounds += 1;
            }
            rounds
        });
        for _ in 0..300 {
            fleet.process.refresh().expect("what is loaded can be listed");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(bystander.join().expect("it loads and unloads") > 0);
    });
}

#[test]
fn a_forked_child_keeps_calling_hooked_functions() {
    let _alone = alone();
    let fleet = Fleet::load("forked", PADDED);
    let (marked, program) = Marked::new();
    let link = fleet.attach(&fleet.selection, program);
    under_load(&fleet, 2, || {
        for round in 0..20 {
            // SAFETY: the child calls the functions, whose program uses atomics, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let mut wrong = 0;
                for _ in 0..100 {
                    wrong += wrong_results(&fleet.functions, MARK);
                }
                let right = |count: &AtomicU64| count.load(Ordering::Relaxed) == round + 100;
                let counted = marked.0.iter().all(right);
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(wrong != 0) | i32::from(!counted) << 1) };
            }
            assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
            fleet.call(MARK);
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "1 in the second byte: wrong results, 2: wrong counts");
            marked.assert(FUNCTIONS, round + 1, "a child's calls are its own");
        }
    });
    link.detach().expect("an attached link detaches");
    support::settle(fleet.process);
}
