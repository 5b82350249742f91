//! Programs and closures that use this library themselves, and threads that end.

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle};

use fentry::host::{Functions, Process, Program, SynchronizeError};

use crate::fleet::{Fleet, alone, counter_of, tid, under_load};
use crate::support::four::{PADDED, build, find};
use crate::support::settle;

#[test]
fn a_program_attaches_and_detaches() {
    let _alone = alone();
    let fleet = Fleet::load("attaches", PADDED);
    let (first, others) = (fleet.some(0, 1), fleet.some(8, 16));
    let seen = Arc::new(AtomicU64::new(0));
    let process = fleet.process;
    let (counted, selection, called) = (Arc::clone(&seen), others.clone(), fleet.functions[8].1);
    let program = Program::new(move |_, _| {
        // SAFETY: the program counts; the functions stay loaded.
        let link = unsafe { process.attach(&selection, counter_of(&counted)) };
        let link = link.expect("nothing of this thread is half-way");
        called(1);
        link.disable().expect("an attached link can be disabled");
        called(1);
        link.detach().expect("an attached link detaches");
    });
    let link = fleet.attach(&first, program);
    let (number, function) = fleet.functions[0];
    under_load(&fleet, 2, || {
        let before = seen.load(Ordering::Relaxed);
        for _ in 0..100 {
            assert_eq!(function(3), 3 + number);
        }
        assert!(seen.load(Ordering::Relaxed) >= before + 100, "each call was counted once");
    });
    link.detach().expect("an attached link detaches");
    settle(fleet.process);
}

#[test]
fn a_program_that_synchronizes_is_told_that_it_is_inside() {
    let _alone = alone();
    let fleet = Fleet::load("synchronizes", PADDED);
    let process = fleet.process;
    let said = Arc::new(OnceLock::new());
    let (says, selection) = (Arc::clone(&said), fleet.some(0, 1));
    let program = Program::new(move |_, _| {
        // Its own image must be left, for there to be something to wait for.
        // SAFETY: the program counts; the functions stay loaded.
        let other = unsafe { process.attach(&selection, counter_of(&Arc::default())) };
        drop(other);
        let _ = says.set(process.synchronize());
    });
    let link = fleet.attach(&fleet.some(0, 1), program);
    let (number, function) = fleet.functions[0];
    assert_eq!(function(3), 3 + number);
    let tid = tid();
    assert_eq!(said.get(), Some(&Err(SynchronizeError::Inside { tid })));
    link.detach().expect("an attached link detaches");
    settle(fleet.process);
}

/// Is captured by a program; its drop waits for a thread that synchronizes.
struct Joins {
    thread: Option<JoinHandle<Result<(), SynchronizeError>>>,
    go: mpsc::Sender<()>,
    said: Arc<Mutex<Vec<Result<(), SynchronizeError>>>>,
}

impl Drop for Joins {
    fn drop(&mut self) {
        self.go.send(()).expect("the thread waits");
        let result = self.thread.take().map(|thread| thread.join().expect("it synchronizes"));
        self.said.lock().expect("nobody panics with it").extend(result);
    }
}

#[test]
fn a_closure_may_wait_for_a_thread_that_synchronizes() {
    let _alone = alone();
    let fleet = Fleet::load("joins", PADDED);
    let process = fleet.process;
    let (go, waits) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        waits.recv().expect("somebody says so");
        process.synchronize()
    });
    let said = Arc::new(Mutex::new(Vec::new()));
    let joins = Mutex::new(Joins { thread: Some(thread), go, said: Arc::clone(&said) });
    let program = Program::new(move |_, _| {
        let _ = &joins;
    });
    fleet.attach(&fleet.selection, program).detach().expect("an attached link detaches");
    process.synchronize().expect("nobody is inside");
    // It waited for the drop, that waited for it, and gave up.
    assert_eq!(said.lock().expect("dropped").as_slice(), [Err(SynchronizeError::Dropping)]);
}

/// `begin` runs `end` as its last act, a thread ends in `end`, or sleeps there for ever.
const ENDS: &str = "\
    #include <pthread.h>\n\
    #include <unistd.h>\n\
    __attribute__((noipa)) void end(void *how) { if (!how) pthread_exit(0); for (;;) pause(); }\n\
    __attribute__((noipa)) void *begin(void *how) { end(how); return how; }\n";

#[test]
fn threads_that_end_inside_of_hooked_functions_are_counted() {
    type Start = extern "C" fn(*mut c_void) -> *mut c_void;
    let _alone = alone();
    let object = build("ends", ENDS, "c", PADDED);
    let (process, functions): (&'static Process, Functions) = find(&object);
    assert_eq!(functions.len(), 2);
    // SAFETY: its type, as above.
    let begin: Start = unsafe { object.function("begin") };
    let seen = Arc::new(AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    for round in 1..=200 {
        // SAFETY: the program counts; the object stays loaded.
        let link = unsafe { process.attach(&functions, counter_of(&seen)) };
        let link = link.expect("all have patch sites");
        let cancelled = round % 2 == 0;
        let how: *mut c_void =
            if cancelled { (&raw const stop).cast_mut().cast() } else { core::ptr::null_mut() };
        // SAFETY: `begin` is a start routine that takes any pointer; a thread that sleeps in
        // `pause` can be cancelled there.
        unsafe {
            let mut thread: libc::pthread_t = core::mem::zeroed();
            let failed = libc::pthread_create(&raw mut thread, core::ptr::null(), begin, how);
            assert_eq!(failed, 0, "pthread_create");
            if cancelled {
                while seen.load(Ordering::Relaxed) < round * 2 {
                    thread::yield_now();
                }
                assert_eq!(libc::pthread_cancel(thread), 0);
            }
            assert_eq!(libc::pthread_join(thread, core::ptr::null_mut()), 0);
        }
        assert_eq!(seen.load(Ordering::Relaxed), round * 2, "both functions, once each");
        link.detach().expect("an attached link detaches");
        process.synchronize().expect("the thread has ended");
        assert_eq!(Arc::strong_count(&seen), 1);
    }
}
