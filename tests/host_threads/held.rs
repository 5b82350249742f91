//! Which threads can be held, and what holding them leaves behind.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Barrier;

use fentry::host::threads::{Summary, ThreadsError, Verdict, inspect, inspect_then, thread_count};

use super::{Finally, actions, alone, tid, wait_for};

#[test]
fn the_action_runs_while_no_thread_moves() {
    let _alone = alone();
    let (count, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..50 {
            let (_, (before, after)) = inspect_then(
                &[],
                |_| Verdict::LEAVE,
                || {
                    let before = count.load(Ordering::SeqCst);
                    // Long enough for a running thread to count.
                    (0..20_000).for_each(|_| core::hint::spin_loop());
                    (before, count.load(Ordering::SeqCst))
                },
            )
            .unwrap();
            assert_eq!(before, after);
            wait_for(|| count.load(Ordering::Relaxed) > after);
        }
    });
}

#[test]
fn a_thread_that_blocks_every_signal_is_named() {
    let _alone = alone();
    let (ready, done) = (Barrier::new(2), Barrier::new(2));
    let blocking = AtomicI32::new(0);
    let before = actions();
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("deaf".into());
        let thread = builder.spawn_scoped(scope, || {
            // SAFETY: a zeroed set is filled and installed, in this thread only.
            unsafe {
                let mut all: libc::sigset_t = core::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
            }
            blocking.store(tid(), Ordering::Relaxed);
            ready.wait();
            done.wait();
        });
        ready.wait();
        let result = inspect(&[], |_| Verdict::LEAVE);
        let Err(ThreadsError::Blocked { tid, name, signal }) = &result else {
            panic!("{result:?}");
        };
        assert_eq!(*tid, blocking.load(Ordering::Relaxed));
        assert_eq!(name.to_string(), "deaf");
        assert_eq!(*signal, libc::SIGRTMIN());
        assert!(result.unwrap_err().to_string().contains("unblock SIGRTMIN+0 in it"));
        done.wait();
        thread.unwrap().join().unwrap();
    });
    assert_eq!(actions(), before);
    inspect(&[], |_| Verdict::LEAVE).unwrap();
}

#[test]
fn a_signal_that_a_thread_blocks_is_not_the_one_used() {
    let _alone = alone();
    let (ready, done) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: a zeroed set gets the signals and is installed, in this thread only.
            unsafe {
                let mut some: libc::sigset_t = core::mem::zeroed();
                for signal in libc::SIGRTMIN()..=libc::SIGRTMIN() + 5 {
                    libc::sigaddset(&raw mut some, signal);
                }
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const some, core::ptr::null_mut());
            }
            ready.wait();
            done.wait();
        });
        ready.wait();
        let summary = inspect(&[], |_| Verdict::LEAVE);
        done.wait();
        assert!(summary.unwrap().threads >= 3);
    });
}

#[test]
fn a_thread_asleep_in_a_system_call_is_seen_and_the_call_goes_on() {
    let _alone = alone();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let sleeping = AtomicI32::new(0);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sleeping.store(tid(), Ordering::Relaxed);
            let mut byte = 0u8;
            // One call, not a loop: `EINTR` would be seen.
            // SAFETY: one byte is written to `byte` at most.
            let read = unsafe { libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1) };
            (read, byte)
        });
        wait_for(|| {
            let path = format!("/proc/self/task/{}/syscall", sleeping.load(Ordering::Relaxed));
            std::fs::read_to_string(path).is_ok_and(|call| call.starts_with("0 "))
        });
        for _ in 0..20 {
            let seen_asleep = AtomicBool::new(false);
            inspect(&[], |seen| {
                if seen.tid == sleeping.load(Ordering::Relaxed) {
                    seen_asleep.store(true, Ordering::Relaxed);
                }
                Verdict::LEAVE
            })
            .unwrap();
            assert!(seen_asleep.into_inner());
        }
        writer.write_all(b"x").unwrap();
        assert_eq!(thread.join().unwrap(), (1, b'x'));
    });
}

#[test]
fn a_thread_that_does_not_react_is_named_and_survives() {
    let _alone = alone();
    let before = actions();
    let (reader, writer) = std::io::pipe().unwrap();
    let waiting = AtomicI32::new(0);
    std::thread::scope(|scope| {
        let let_go = Finally(|| (&writer).write_all(b"x").unwrap());
        let thread = scope.spawn(|| {
            waiting.store(tid(), Ordering::Relaxed);
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
        wait_for(|| {
            let path = format!("/proc/self/task/{}/stat", waiting.load(Ordering::Relaxed));
            std::fs::read_to_string(path).is_ok_and(|stat| stat.contains(") D "))
        });
        let result = inspect(&[], |_| Verdict::LEAVE);
        let Err(ThreadsError::Unresponsive { tid, state, .. }) = result else {
            panic!("{result:?}");
        };
        assert_eq!((tid, state), (waiting.load(Ordering::Relaxed), 'D'));
        assert_eq!(actions(), before);
        // The signal must not be waiting for the thread: its default action kills.
        drop(let_go);
        assert_eq!(thread.join().unwrap(), 0);
    });
    inspect(&[], |_| Verdict::LEAVE).unwrap();
}

#[test]
fn threads_come_and_go_during_a_thousand_inspections() {
    let _alone = alone();
    let stop = AtomicBool::new(false);
    let (started, count) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::scope(|scope| {
                        scope.spawn(|| {
                            (0..2000).for_each(|_| _ = count.fetch_add(1, Ordering::Relaxed));
                        });
                    });
                    started.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..1000 {
            let (summary, moved) = inspect_then(
                &[],
                |_| Verdict::LEAVE,
                || {
                    let before = count.load(Ordering::SeqCst);
                    (0..500).for_each(|_| core::hint::spin_loop());
                    count.load(Ordering::SeqCst) - before
                },
            )
            .unwrap();
            assert_eq!(moved, 0, "a thread ran that was not held");
            assert!(summary.threads >= 3, "{summary:?}");
        }
        let before = started.load(Ordering::Relaxed);
        wait_for(|| started.load(Ordering::Relaxed) > before);
    });
}

#[test]
fn inspections_of_several_threads_take_turns() {
    let _alone = alone();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50 {
                    inspect(&[], |_| Verdict::LEAVE).unwrap();
                }
            });
        }
    });
}

#[test]
fn an_inspection_within_another_is_refused() {
    let _alone = alone();
    let nested = inspect_then(&[], |_| Verdict::LEAVE, || inspect(&[], |_| Verdict::LEAVE));
    assert_eq!(nested.unwrap().1, Err(ThreadsError::Nested));
}

#[test]
fn a_child_forked_during_an_inspection_can_inspect_itself() {
    let _alone = alone();
    let (_, child) = inspect_then(
        &[],
        |_| Verdict::LEAVE,
        || {
            // Not the libc's, which takes locks.
            // SAFETY: the child has one thread, allocates nothing and ends with `_exit`.
            let child = unsafe { libc::syscall(libc::SYS_fork) } as i32;
            if child == 0 {
                let counted = thread_count();
                let seen = AtomicU32::new(0);
                let result = inspect(&[], |_| {
                    seen.fetch_add(1, Ordering::Relaxed);
                    Verdict::LEAVE
                });
                let failed = u32::from(counted != Ok(1))
                    | u32::from(result != Ok(only_the_caller())) << 1
                    | u32::from(seen.into_inner() != 1) << 2;
                // SAFETY: ends the child.
                unsafe { libc::_exit(failed.cast_signed()) };
            }
            child
        },
    )
    .unwrap();
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "status {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "bits of what failed in the child");
}

fn only_the_caller() -> Summary {
    Summary { threads: 1, moved: 0 }
}
