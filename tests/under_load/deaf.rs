//! Threads that cannot be signalled: they block everything, sleep, or cannot be woken.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::thread;

use fentry::host::{Process, Program, SynchronizeError};

use crate::fleet::{Finally, Fleet, alone, counter_of, tid};
use crate::support::four::PADDED;
use crate::support::settle;

fn block_every_signal() {
    // SAFETY: a full set is a set, and what it blocks is this thread's business.
    unsafe {
        let mut all = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
        assert_eq!(failed, 0, "pthread_sigmask");
    }
}

/// How often to attach and detach: `FENTRY_ROUNDS`, or 20,000.
fn rounds() -> u64 {
    let wanted = std::env::var("FENTRY_ROUNDS").ok();
    wanted.map_or(20_000, |rounds| rounds.parse().expect("FENTRY_ROUNDS is a number"))
}

#[test]
fn a_thread_that_blocks_every_signal_and_spins_survives_every_round() {
    let _alone = alone();
    let fleet = Fleet::load("deaf", PADDED);
    let stop = AtomicBool::new(false);
    let seen = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        let (blocked, is_blocked) = mpsc::channel();
        let (fleet, stop) = (&fleet, &stop);
        let few = fleet.some(0, 8);
        let deaf = scope.spawn(move || {
            block_every_signal();
            blocked.send(()).expect("somebody waits");
            fleet.spin(1, stop)
        });
        is_blocked.recv().expect("the thread says so");
        for round in 1..=rounds() {
            let link = fleet.attach(&few, counter_of(&seen));
            link.detach().expect("an attached link detaches");
            if round % 1_000 == 0 {
                fleet.process.synchronize().expect("it is outside now and then");
                assert_eq!(Arc::strong_count(&seen), 1, "closures live on after {round} rounds");
            }
        }
        // It is still there, and hooked like any other.
        let link = fleet.attach(&few, counter_of(&seen));
        let before = seen.load(Ordering::Relaxed);
        while seen.load(Ordering::Relaxed) < before + 1_000 {
            assert!(!deaf.is_finished(), "the thread has ended");
            thread::yield_now();
        }
        link.detach().expect("an attached link detaches");
        stop.store(true, Ordering::Relaxed);
        assert!(deaf.join().expect("its results are right") > 0);
    });
    settle(fleet.process);
}

/// A program that says which thread is in it, and stays until it is told to go.
struct Inside {
    tid: AtomicI32,
    may_leave: AtomicBool,
    dropped: AtomicBool,
}

struct Canary(Arc<Inside>);

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::SeqCst);
    }
}

impl Inside {
    /// The program does `work` over and over.
    fn new(work: impl Fn() + Send + Sync + 'static) -> (Arc<Self>, Program) {
        let inside = Arc::new(Self {
            tid: AtomicI32::new(0),
            may_leave: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        });
        let canary = Canary(Arc::clone(&inside));
        let program = Program::new(move |_, _| {
            let Canary(inside) = &canary;
            inside.tid.store(tid(), Ordering::SeqCst);
            while !inside.may_leave.load(Ordering::SeqCst) {
                work();
            }
        });
        (inside, program)
    }

    /// Attaches `program`, has a thread enter it, and detaches: the closure must live until the
    /// thread has left it.
    fn check(
        self: &Arc<Self>,
        name: &str,
        program: Program,
        before: impl Fn() + Send,
        wake: impl FnOnce(),
    ) {
        let fleet = Fleet::load(name, PADDED);
        let link = fleet.attach(&fleet.some(0, 1), program);
        let (number, function) = fleet.functions[0];
        thread::scope(|scope| {
            let leave = Finally(|| self.may_leave.store(true, Ordering::SeqCst));
            let caller = scope.spawn(move || {
                before();
                block_every_signal();
                assert_eq!(function(5), 5 + number);
            });
            while self.tid.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            link.detach().expect("detaching waits for nobody");
            let error = fleet.process.synchronize().expect_err("a thread is inside");
            let tid = self.tid.load(Ordering::SeqCst);
            assert_eq!(error, SynchronizeError::Inside { tid });
            assert!(!self.dropped.load(Ordering::SeqCst), "dropped while a thread is inside");
            drop(leave);
            wake();
            caller.join().expect("its result is right");
        });
        fleet.process.synchronize().expect("no thread is inside");
        assert!(self.dropped.load(Ordering::SeqCst), "not dropped");
    }
}

#[test]
fn a_deaf_thread_that_spins_in_a_program_is_seen_there() {
    let _alone = alone();
    let (inside, program) = Inside::new(core::hint::spin_loop);
    inside.check("deaf_spins", program, || (), || ());
}

fn read_one(reader: &PipeReader) {
    let mut byte = 0_u8;
    // SAFETY: one byte is written to `byte` at most.
    unsafe { libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1) };
}

fn wake(mut writer: PipeWriter) {
    writer.write_all(b"x").expect("somebody reads");
}

#[test]
fn a_deaf_thread_that_sleeps_in_a_program_is_seen_there() {
    let _alone = alone();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (inside, program) = Inside::new(move || read_one(&reader));
    inside.check("deaf_sleeps", program, || (), || wake(writer));
}

/// What the handler below reads from.
static READS: AtomicI32 = AtomicI32::new(-1);
static IN_HANDLER: AtomicBool = AtomicBool::new(false);

extern "C" fn sleep_in_handler(_signal: i32) {
    IN_HANDLER.store(true, Ordering::SeqCst);
    let mut byte = 0_u8;
    // SAFETY: one byte is written to `byte` at most.
    unsafe { libc::read(READS.load(Ordering::SeqCst), (&raw mut byte).cast(), 1) };
}

/// The program's return address is on the thread's own stack, and the thread on another one.
#[test]
fn a_deaf_thread_that_sleeps_in_a_handler_on_another_stack_is_seen_inside() {
    let _alone = alone();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    READS.store(reader.as_raw_fd(), Ordering::SeqCst);
    // SAFETY: a zeroed action is valid; the handler reads a byte.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let handler: extern "C" fn(i32) = sleep_in_handler;
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        let failed = libc::sigaction(libc::SIGUSR1, &raw const action, core::ptr::null_mut());
        assert_eq!(failed, 0, "sigaction");
    }
    let (inside, program) = Inside::new(|| {
        if !IN_HANDLER.load(Ordering::SeqCst) {
            // SAFETY: for this moment, the thread hears this one signal, which has a handler.
            unsafe {
                let mut one = core::mem::zeroed();
                libc::sigemptyset(&raw mut one);
                libc::sigaddset(&raw mut one, libc::SIGUSR1);
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const one, core::ptr::null_mut());
                libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1);
            }
        }
        core::hint::spin_loop();
    });
    // Threads of `std` have an alternate stack.
    inside.check("deaf_handler", program, || (), || wake(writer));
    assert!(IN_HANDLER.load(Ordering::SeqCst), "the handler never ran");
    drop(reader);
}

fn wait_for_state(tid: &AtomicI32, state: &str) {
    loop {
        let path = format!("/proc/self/task/{}/stat", tid.load(Ordering::SeqCst));
        if std::fs::read_to_string(path).is_ok_and(|stat| stat.contains(state)) {
            return;
        }
        thread::yield_now();
    }
}

#[test]
fn a_thread_that_sleeps_elsewhere_is_not_woken() {
    let _alone = alone();
    let fleet = Fleet::load("asleep", PADDED);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let sleeping = AtomicI32::new(0);
    thread::scope(|scope| {
        // `poll` returns EINTR on any signal that has a handler.
        let sleeper = scope.spawn(|| {
            sleeping.store(tid(), Ordering::SeqCst);
            let mut one = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives through the call.
            unsafe { libc::poll(&raw mut one, 1, -1) }
        });
        wait_for_state(&sleeping, ") S ");
        for _ in 0..100 {
            fleet.retire_something();
            fleet.process.synchronize().expect("nobody is inside");
        }
        wake(writer);
        assert_eq!(sleeper.join().expect("it polls"), 1, "poll was interrupted");
    });
}

#[test]
fn a_thread_that_no_signal_wakes_is_in_nobodys_way() {
    let _alone = alone();
    let fleet = Fleet::load("uninterruptible", PADDED);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let waiting = AtomicI32::new(0);
    thread::scope(|scope| {
        let parent = scope.spawn(|| {
            waiting.store(tid(), Ordering::SeqCst);
            // The child has a copy of the memory; this thread sleeps in the kernel, where no
            // signal but a fatal one reaches it, until the child ends.
            // SAFETY: the child only reads, and ends with `_exit`.
            unsafe {
                let flags = libc::CLONE_VFORK | libc::SIGCHLD;
                let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as i32;
                if child == 0 {
                    let mut byte = 0u8;
                    libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1);
                    libc::_exit(0);
                }
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
                status
            }
        });
        wait_for_state(&waiting, ") D ");
        for _ in 0..10 {
            fleet.retire_something();
            fleet.process.synchronize().expect("nobody is inside");
        }
        wake(writer);
        assert_eq!(parent.join().expect("it waits"), 0);
    });
}

#[test]
fn threads_that_start_and_end_are_in_nobodys_way() {
    let _alone = alone();
    let fleet = Fleet::load("short_lived", PADDED);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    thread::scope(|scope| _ = scope.spawn(|| fleet.call(7)));
                }
            });
        }
        for _ in 0..200 {
            fleet.retire_something();
            fleet.process.synchronize().expect("nobody stays inside");
        }
    });
}

#[test]
fn quiescence_is_polled() {
    let _alone = alone();
    let (inside, program) = Inside::new(thread::yield_now);
    let fleet = Fleet::load("polled", PADDED);
    let process: &'static Process = fleet.process;
    let link = fleet.attach(&fleet.some(0, 1), program);
    let (number, function) = fleet.functions[0];
    thread::scope(|scope| {
        let leave = Finally(|| inside.may_leave.store(true, Ordering::SeqCst));
        scope.spawn(move || {
            block_every_signal();
            assert_eq!(function(5), 5 + number);
        });
        while inside.tid.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let earlier = process.quiescence();
        link.detach().expect("detaching waits for nobody");
        let gone = process.quiescence();
        for _ in 0..20 {
            assert_eq!(gone.poll(), Ok(false), "a thread is inside");
        }
        assert_eq!(earlier.poll(), Ok(true), "it was made before that was detached");
        drop(leave);
        while !gone.poll().expect("threads can be looked at") {
            assert!(!inside.dropped.load(Ordering::SeqCst), "dropped, and not said so");
            thread::yield_now();
        }
        assert!(inside.dropped.load(Ordering::SeqCst), "not dropped");
        assert_eq!(gone.poll(), Ok(true), "it stays so");
    });
}
