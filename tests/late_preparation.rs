//! gcc's one-byte nops in a library that is loaded when threads run already: made one
//! instruction while nobody is between them, or refused.

mod support;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use fentry::attach::SiteNop;
use fentry::host::{AttachError, Process};
use support::four::{PADDED, assert_says, attach, build, call_numbered, counter, find, numbered};
use support::object::Object;

/// Calls `name_0`, which returns its argument plus something, until told to stop; gives how
/// often it was called.
fn spin(object: &Object, name: &str, stop: &AtomicBool) -> u64 {
    // SAFETY: the type of every generated function.
    let function: extern "C" fn(i64) -> i64 = unsafe { object.function(&format!("{name}_0")) };
    let expected = function(5);
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(function(5), expected);
        calls += 1;
    }
    calls
}

#[test]
fn threads_that_run_a_library_already_do_not_stop_it_from_being_hooked() {
    Process::open().expect("this process can be hooked");
    for round in 0..20 {
        let name = format!("late{round}");
        let object = build(&name, &numbered(&name, 4), "c", PADDED);
        let stop = AtomicBool::new(false);
        let started = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    started.fetch_add(1, Ordering::Relaxed);
                    assert!(spin(&object, &name, &stop) > 0);
                });
            }
            while started.load(Ordering::Relaxed) < 3 {
                thread::yield_now();
            }
            let (process, functions) = find(&object);
            assert!(functions.iter().all(|found| found.found().nop == SiteNop::OneByte));
            let (count, program) = counter();
            let link = attach(process, &functions, program).expect("prepared under load");
            while count.load(Ordering::Relaxed) < 1_000 {
                thread::yield_now();
            }
            link.detach().expect("an attached link detaches");
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn a_thread_that_cannot_be_looked_at_is_named_and_nothing_is_attached() {
    support::hostile::in_child(
        "a_thread_that_cannot_be_looked_at_is_named_and_nothing_is_attached",
        || {
            Process::open().expect("this process can be hooked");
            let (blocked, is_blocked) = mpsc::channel();
            let (end, is_end) = mpsc::channel::<()>();
            let deaf = thread::Builder::new().name("deaf".into()).spawn(move || {
                // SAFETY: a full set is a set, and blocking signals is this thread's business.
                unsafe {
                    let mut all = core::mem::zeroed();
                    libc::sigfillset(&raw mut all);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
                }
                blocked.send(()).expect("somebody waits");
                let _ = is_end.recv();
            });
            let deaf = deaf.expect("a thread starts");
            is_blocked.recv().expect("the thread says so");

            let object = build("deaf", &numbered("deaf", 4), "c", PADDED);
            let (process, functions) = find(&object);
            let (count, program) = counter();
            let error = attach(process, &functions, program).unwrap_err();
            assert!(matches!(&error, AttachError::NotPrepared { .. }), "{error:?}");
            assert_says(&error, &["deaf_", "deaf", "before starting threads", "clang"]);
            call_numbered(&object, "deaf", 4);
            assert_eq!(count.load(Ordering::Relaxed), 0);

            drop(end);
            deaf.join().expect("the thread ends");
            let (count, program) = counter();
            let link = attach(process, &functions, program).expect("nobody is in the way now");
            call_numbered(&object, "deaf", 4);
            assert_eq!(count.load(Ordering::Relaxed), 4);
            link.detach().expect("an attached link detaches");
        },
    );
}
