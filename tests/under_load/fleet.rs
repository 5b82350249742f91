//! Functions that stay loaded, calls of them, and counts of calls.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use fentry::emit::Context;
use fentry::host::{Cookies, Functions, Link, Process, Program};

use crate::support::four::{build, find, numbered};
use crate::support::object::Object;
use crate::support::process;

/// Functions of each object.
pub const FUNCTIONS: usize = 64;

/// Added to the argument of the calls that are counted.
pub const MARK: i64 = 1 << 40;

/// Some tests have threads that cannot be held still, and would fail the others.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread's id.
pub fn tid() -> i32 {
    // SAFETY: has no precondition.
    unsafe { libc::gettid() }
}

pub type Function = extern "C" fn(i64) -> i64;

/// Functions that stay loaded.
pub struct Fleet {
    pub object: Object,
    pub process: &'static Process,
    pub selection: Functions,
    /// In the order of the selection: what each adds to its argument, and the function.
    pub functions: Vec<(i64, Function)>,
}

impl Fleet {
    pub fn load(name: &str, flags: &[&str]) -> Self {
        process();
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
    pub fn some(&self, from: usize, to: usize) -> Functions {
        let mut position = 0..;
        self.selection.filter(|_| position.next().is_some_and(|at: usize| from <= at && at < to))
    }

    /// Calls each function once, with `argument`; asserts the results.
    pub fn call(&self, argument: i64) {
        assert_eq!(wrong_results(&self.functions, argument), 0, "results through hooked entries");
    }

    /// Calls all functions over and over, until told to stop; how often.
    pub fn spin(&self, argument: i64, stop: &AtomicBool) -> u64 {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            self.call(argument);
            rounds += 1;
        }
        rounds
    }

    /// Attaches a program and detaches it, so that there is something to wait for.
    pub fn retire_something(&self) {
        let link = self.attach(&self.selection, counter_of(&Arc::default()));
        link.detach().expect("an attached link detaches");
    }

    pub fn attach(&self, functions: &Functions, program: Program) -> Link {
        // SAFETY: the programs of this file use atomics only, and the functions stay loaded
        // until their links are detached.
        unsafe { self.process.attach(functions, program) }
            .unwrap_or_else(|error| panic!("{}: {error}", self.object.module()))
    }
}

/// Calls each function once; how many results were wrong. Signal handlers use it.
pub fn wrong_results(functions: &[(i64, Function)], argument: i64) -> u64 {
    let wrong = |&&(number, function): &&(i64, Function)| function(argument) != argument + number;
    functions.iter().filter(wrong).count() as u64
}

/// Counts for each position of a selection, of calls with a marked argument only.
pub struct Marked(pub Arc<Vec<AtomicU64>>);

impl Marked {
    pub fn new() -> (Self, Program) {
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
    pub fn assert(&self, functions: usize, count: u64, when: &str) {
        let counts: Vec<_> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let mut expected = vec![count; functions];
        expected.resize(FUNCTIONS, 0);
        assert_eq!(counts, expected, "{when}");
    }
}

/// Runs `work` while `threads` threads call the functions with unmarked arguments.
pub fn under_load(fleet: &Fleet, threads: usize, work: impl FnOnce()) {
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
pub struct Finally<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A program that counts every call.
pub fn counter_of(count: &Arc<AtomicU64>) -> Program {
    let count = Arc::clone(count);
    Program::new(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    })
}
