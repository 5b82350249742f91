//! Threads that somebody else traces, as a debugger does.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::thread;

use crate::fleet::{Finally, Fleet, tid};
use crate::support::four::PADDED;
use crate::support::hostile::in_child;
use crate::support::skipped;

/// What the tracer says.
const TRACES: u8 = b't';
const MAY_NOT: u8 = b'n';
const HAS_A_SIGNAL: u8 = b's';

fn receive(reader: &mut PipeReader) -> u8 {
    let mut byte = [0];
    reader.read_exact(&mut byte).expect("the other process is there");
    byte[0]
}

fn request(request: libc::c_uint, tid: i32, signal: i32) -> bool {
    let data = core::ptr::without_provenance_mut::<libc::c_void>(signal as usize);
    // SAFETY: the requests below take a number, and read and write no memory of this process.
    unsafe { libc::ptrace(request, tid, core::ptr::null_mut::<libc::c_void>(), data) == 0 }
}

/// Traces a thread until the kernel is about to give it a signal, and passes that on when told to.
/// Runs in a child of `fork`: system calls only.
fn trace(tid: i32, mut says: PipeWriter, mut hears: PipeReader) -> Option<()> {
    let mut say = |byte| says.write_all(&[byte]).ok();
    if !request(libc::PTRACE_SEIZE, tid, 0) {
        return say(MAY_NOT);
    }
    say(TRACES)?;
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let stopped = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) } == tid;
    if !stopped || !libc::WIFSTOPPED(status) {
        return None;
    }
    say(HAS_A_SIGNAL)?;
    receive(&mut hears);
    request(libc::PTRACE_DETACH, tid, libc::WSTOPSIG(status)).then_some(())
}

#[test]
fn a_signal_that_a_debugger_passes_on_too_late_does_no_harm() {
    in_child("traced::a_signal_that_a_debugger_passes_on_too_late_does_no_harm", || {
        let fleet = Fleet::load("traced", PADDED);
        let (mut hears, child_says) = std::io::pipe().expect("a pipe");
        let (child_hears, mut says) = std::io::pipe().expect("a pipe");
        let (traced, stop) = (AtomicI32::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
            let spinning = scope.spawn(|| {
                traced.store(tid(), Ordering::SeqCst);
                fleet.spin(1, &stop)
            });
            while traced.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            // SAFETY: lets any process trace this one, where the kernel asks for that (Yama).
            unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
            // SAFETY: the child makes system calls only, and ends.
            let tracer = unsafe { libc::fork() };
            if tracer == 0 {
                let done = trace(traced.load(Ordering::SeqCst), child_says, child_hears);
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(done.is_none())) };
            }
            assert!(tracer > 0, "fork: {}", std::io::Error::last_os_error());
            if receive(&mut hears) == MAY_NOT {
                skipped("a signal that a debugger passes on too late", "tracing is not allowed");
                return;
            }
            fleet.retire_something();
            fleet.process.synchronize().expect("the thread stands still, outside");
            assert_eq!(receive(&mut hears), HAS_A_SIGNAL, "it was asked by a signal");
            says.write_all(b"!").expect("the tracer waits");
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            assert_eq!(unsafe { libc::waitpid(tracer, &raw mut status, 0) }, tracer);
            assert_eq!(status, 0, "the signal is passed on");
            for _ in 0..10 {
                fleet.retire_something();
                fleet.process.synchronize().expect("it runs, and answers");
            }
            stop.store(true, Ordering::Relaxed);
            assert!(spinning.join().expect("its results are right") > 0);
        });
    });
}
