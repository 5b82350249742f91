//! Forked children: they go on as their parent would.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

use fentry::host::{AttachError, OpenError, Program, Unavailable};

use crate::fleet::{FUNCTIONS, Finally, Fleet, MARK, Marked, alone, counter_of, wrong_results};
use crate::support::four::{PADDED, UNPADDED};
use crate::support::settle;

/// What a child's status says, bit by bit.
const FAILED: &str = "bits of the exit code: what failed in the child, in its order";

fn wait_for(child: i32) -> i32 {
    assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Ends a child, with a bit for each check that failed; if it hangs instead, an alarm does.
fn child(checks: impl FnOnce() -> Vec<bool>) -> ! {
    // SAFETY: the default action of the signal ends the child; nobody handles it.
    unsafe { libc::alarm(60) };
    let failed = checks().iter().rev().fold(0, |bits, &right| bits << 1 | i32::from(!right));
    // SAFETY: ends the child.
    unsafe { libc::_exit(failed) }
}

#[test]
fn a_child_attaches_and_detaches_while_its_parent_does() {
    let _alone = alone();
    for (name, flags) in [("parent", PADDED), ("parent_thunks", UNPADDED)] {
        let fleet = Fleet::load(name, flags);
        let (staying, program) = Marked::new();
        let stays = fleet.attach(&fleet.some(0, 32), program);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = Finally(|| stop.store(true, Ordering::Relaxed));
            let changes = scope.spawn(|| {
                let mut rounds = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let link = fleet.attach(&fleet.some(16, 64), counter_of(&Arc::default()));
                    link.detach().expect("an attached link detaches");
                    // A thread may be late to be seen outside; the next round tries again.
                    let _ = fleet.process.synchronize();
                    rounds += 1;
                }
                rounds
            });
            for _ in 0..30 {
                // SAFETY: the C library's fork leaves its own locks usable in the child.
                let forked = unsafe { libc::fork() };
                if forked == 0 {
                    child(|| {
                        let (own, program) = Marked::new();
                        // SAFETY: the program counts.
                        let link = unsafe { fleet.process.attach(&fleet.selection, program) };
                        let attached = link.is_ok();
                        let right = wrong_results(&fleet.functions, MARK) == 0;
                        let counts = |marked: &Marked, functions: usize, count: u64| {
                            marked
                                .0
                                .iter()
                                .take(functions)
                                .all(|n| n.load(Ordering::Relaxed) == count)
                        };
                        let both = counts(&own, FUNCTIONS, 1) && counts(&staying, 32, 1);
                        let detached = link.is_ok_and(|link| link.detach().is_ok());
                        let right = right && wrong_results(&fleet.functions, MARK) == 0;
                        let one = counts(&own, FUNCTIONS, 1) && counts(&staying, 32, 2);
                        let gone = fleet.process.synchronize().is_ok();
                        let freed = Arc::strong_count(&own.0) == 1;
                        vec![attached, right, both, detached, one, gone, freed]
                    });
                }
                assert_eq!(wait_for(forked) >> 8, 0, "{name}: {FAILED}");
            }
            stop.store(true, Ordering::Relaxed);
            assert!(changes.join().expect("it attaches and detaches") > 0);
        });
        staying.assert(32, 0, "children's calls are their own");
        fleet.call(MARK);
        staying.assert(32, 1, "the parent's link is still there");
        stays.detach().expect("an attached link detaches");
        settle(fleet.process);
    }
}

static CHILD: AtomicI32 = AtomicI32::new(0);

/// The child is inside a program when its parent frees the code that the program returns to.
#[test]
fn a_child_that_is_forked_by_a_program_returns_from_it() {
    let _alone = alone();
    let fleet = Fleet::load("forks", PADDED);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let program = Program::new(move |_, _| {
        if counted.fetch_add(1, Ordering::Relaxed) != 0 {
            return;
        }
        // SAFETY: the child reads, returns, and ends.
        let forked = unsafe { libc::fork() };
        CHILD.store(forked, Ordering::Relaxed);
        if forked == 0 {
            let mut byte = 0_u8;
            // SAFETY: one byte is written to `byte` at most.
            unsafe {
                use std::os::fd::AsRawFd;
                libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1);
            }
        }
    });
    let link = fleet.attach(&fleet.some(0, 2), program);
    let (number, function) = fleet.functions[0];
    let right = function(1) == 1 + number;
    if CHILD.load(Ordering::Relaxed) == 0 {
        child(|| {
            let (other, second) = fleet.functions[1];
            let right = right && function(2) == 2 + number && second(3) == 3 + other;
            let counted = calls.load(Ordering::Relaxed) == 3;
            let detached = link.detach().is_ok();
            let gone = fleet.process.synchronize().is_ok();
            vec![right, counted, detached, gone]
        });
    }
    assert!(right, "the parent's result");
    link.detach().expect("an attached link detaches");
    fleet.process.synchronize().expect("the child is another process");
    // What is emitted now takes the place of what was freed.
    let next = fleet.attach(&fleet.selection, counter_of(&calls));
    std::io::Write::write_all(&mut { writer }, b"x").expect("the child reads");
    assert_eq!(wait_for(CHILD.load(Ordering::Relaxed)), 0, "{FAILED}");
    next.detach().expect("an attached link detaches");
    settle(fleet.process);
}

/// The C library leaves the loader's lock to a thread that is not there.
#[test]
fn a_child_that_is_forked_while_a_library_is_loaded_goes_on() {
    extern "C" fn linger(
        _: *mut libc::dl_phdr_info,
        _: usize,
        state: *mut core::ffi::c_void,
    ) -> core::ffi::c_int {
        // SAFETY: the two flags below, which outlive the call.
        let [inside, leave] = unsafe { &*state.cast::<[AtomicBool; 2]>() };
        inside.store(true, Ordering::SeqCst);
        while !leave.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        1
    }
    let _alone = alone();
    let fleet = Fleet::load("loading", PADDED);
    let flags = [const { AtomicBool::new(false) }; 2];
    let [inside, leave] = &flags;
    thread::scope(|scope| {
        let _leave = Finally(|| leave.store(true, Ordering::SeqCst));
        // Holds the lock that loading and unloading holds.
        // SAFETY: the function takes the flags.
        scope.spawn(|| unsafe {
            libc::dl_iterate_phdr(Some(linger), (&raw const flags).cast_mut().cast())
        });
        while !inside.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        // SAFETY: the C library's fork leaves its own locks usable in the child.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            child(|| {
                let (marked, program) = Marked::new();
                // SAFETY: the program counts.
                let link = unsafe { fleet.process.attach(&fleet.selection, program) };
                let right = wrong_results(&fleet.functions, MARK) == 0;
                let counted = marked.0.iter().all(|count| count.load(Ordering::Relaxed) == 1);
                let detached = link.is_ok_and(|link| link.detach().is_ok());
                let gone = fleet.process.synchronize().is_ok();
                // Or a C library that makes the lock usable.
                let told = matches!(
                    fleet.process.refresh(),
                    Ok(()) | Err(OpenError::Unavailable(Unavailable::Loader))
                );
                vec![right, counted, detached, gone, Arc::strong_count(&marked.0) == 1, told]
            });
        }
        assert_eq!(wait_for(forked), 0, "{FAILED}");
    });
    settle(fleet.process);
}

/// The bare system call runs no handlers, so that the child shares its parent's code.
#[test]
fn a_child_of_the_bare_system_call_is_refused() {
    let _alone = alone();
    let fleet = Fleet::load("bare_fork", PADDED);
    let (marked, program) = Marked::new();
    let link = fleet.attach(&fleet.selection, program);
    // SAFETY: no other thread runs, so that no lock of the allocator is taken.
    let forked = unsafe { libc::syscall(libc::SYS_fork) } as i32;
    if forked == 0 {
        child(|| {
            let right = wrong_results(&fleet.functions, MARK) == 0;
            let counted = marked.0.iter().all(|count| count.load(Ordering::Relaxed) == 1);
            // SAFETY: the program counts.
            let refused =
                unsafe { fleet.process.attach(&fleet.selection, counter_of(&Arc::default())) };
            let forked = |error: &AttachError| {
                matches!(error, AttachError::Unavailable(Unavailable::Forked { .. }))
            };
            let refused = refused.as_ref().is_err_and(forked);
            let kept = link.detach().is_err_and(|error| forked(&error.cause));
            vec![right, counted, refused, kept]
        });
    }
    assert_eq!(wait_for(forked), 0, "{FAILED}");
    link.detach().expect("an attached link detaches");
    settle(fleet.process);
}
