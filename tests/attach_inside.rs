//! A program that runs in the middle of this library's own operations, because it is attached
//! to what the allocator calls: it gets an error, and nothing waits for itself.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::alloc::System;
use std::sync::{Arc, Mutex};

use fentry::host::{AttachError, OpenError, Program, SynchronizeError, Unavailable};
use support::four::{PADDED, attach, build, counter, find, numbered};

/// What the allocator calls: a hooked function, once there is one.
static CALLED: AtomicUsize = AtomicUsize::new(0);

std::thread_local! {
    /// Whether the allocator is to call it on this thread.
    static CALLS: Cell<bool> = const { Cell::new(false) };
}

struct Calling;

// SAFETY: the system's allocator, which is told nothing of the call before.
unsafe impl GlobalAlloc for Calling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let called = CALLED.load(Ordering::Acquire);
        // Not again from what the call allocates.
        if called != 0 && CALLS.try_with(|calls| calls.replace(false)).unwrap_or(false) {
            // SAFETY: a function of this type, that stays loaded.
            let called: extern "C" fn(i64) -> i64 = unsafe { core::mem::transmute(called) };
            called(1);
            CALLS.with(|calls| calls.set(true));
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(place, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Calling = Calling;

/// What the program was told, by what it tried.
#[derive(Default)]
struct Said {
    runs: AtomicU64,
    nested: [AtomicU64; 5],
    other: Mutex<Vec<String>>,
}

impl Said {
    fn note<T>(&self, which: usize, result: Result<T, impl core::fmt::Debug>, nested: bool) {
        match result {
            Err(_) if nested => _ = self.nested[which].fetch_add(1, Ordering::Relaxed),
            Ok(_) => {}
            Err(error) => self.other.lock().expect("no panic").push(format!("{error:?}")),
        }
    }
}

#[test]
fn a_program_that_interrupts_its_own_threads_operation_is_told_so() {
    let object = build("middle", &numbered("middle", 8), "c", PADDED);
    let (process, functions) = find(&object);
    assert_eq!(functions.len(), 8);
    let (first, others) = (functions.named("middle_0"), functions.named("middle_1"));
    // Switched and detached by the program.
    let switched = attach(process, &others, counter().1).expect("all have patch sites");
    let said = Arc::new(Said::default());
    let (says, selection) = (Arc::clone(&said), others.clone());
    let program = Program::new(move |_, _| {
        says.runs.fetch_add(1, Ordering::Relaxed);
        let unavailable = Unavailable::Nested;
        // SAFETY: the program counts; the functions stay loaded.
        let attached = unsafe { process.attach(&selection, counter().1) };
        let nested = matches!(&attached, Err(AttachError::Unavailable(u)) if *u == unavailable);
        says.note(0, attached, nested);
        let disabled = switched.disable().and_then(|()| switched.enable());
        let nested = matches!(&disabled, Err(AttachError::Unavailable(u)) if *u == unavailable);
        says.note(1, disabled, nested);
        let refreshed = process.refresh();
        let nested = matches!(&refreshed, Err(OpenError::Unavailable(u)) if *u == unavailable);
        says.note(2, refreshed, nested);
        let polled = process.quiescence().poll();
        let nested = matches!(&polled, Err(SynchronizeError::Unavailable(u)) if *u == unavailable);
        says.note(3, polled, nested);
        let synchronized = process.synchronize();
        let nested =
            matches!(&synchronized, Err(SynchronizeError::Unavailable(u)) if *u == unavailable);
        // Where nothing is half-way, it is itself inside.
        let inside = matches!(synchronized, Err(SynchronizeError::Inside { .. }));
        says.note(4, if inside { Ok(()) } else { synchronized }, nested);
        assert_eq!(process.functions().named("middle_1").len(), 1, "what is known can be read");
    });
    let link = attach(process, &first, program).expect("all have patch sites");
    let first = first.iter().next().expect("one function");
    // SAFETY: a function of this type.
    let function: extern "C" fn(i64) -> i64 = unsafe { object.function(&first.name()) };
    CALLED.store(function as *const () as usize, Ordering::Release);

    let (count, program) = counter();
    CALLS.set(true);
    let attached = attach(process, &others, program);
    let called = object.module();
    let detached = attached.map(|link| {
        let found = process.functions().module(&called).map(|found| found.len());
        (found, link.detach())
    });
    let refreshed = process.refresh();
    CALLS.set(false);
    let (found, detached) = detached.expect("the outer operation is not disturbed");
    assert_eq!(found.expect("a pattern"), 8);
    detached.expect("an attached link detaches");
    refreshed.expect("what is loaded can be listed");
    assert_eq!(count.load(Ordering::Relaxed), 0, "nobody called what it was attached to");

    assert_eq!(said.other.lock().expect("no panic").as_slice(), &[] as &[String]);
    let nested = said.nested.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert!(nested.iter().all(|&count| count > 0), "{nested:?} of {:?} runs", said.runs);
    assert!(nested[0] < said.runs.load(Ordering::Relaxed), "outside of operations it attaches");
    CALLED.store(0, Ordering::Release);
    link.detach().expect("an attached link detaches");
    support::settle(process);
}
