//! The breakpoint protocol: no site is too unaligned, no call is lost, and traps that are not
//! this library's reach whoever they are for.
#![cfg(all(feature = "std", target_os = "linux"))]

mod support;

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use fentry::host::traps::TrapsError;
use fentry::host::{AttachError, OpenError, Process, Protocol};
use support::four::{
    PADDED, UNPADDED, assert_says, attach, build, call_numbered, counter, find, numbered,
};

/// Traps that the handler of this program got.
static FOREIGN: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_trap(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    FOREIGN.fetch_add(1, Ordering::SeqCst);
}

fn set_handler(handler: usize) {
    // SAFETY: a zeroed action is valid; the handlers of this program are as it says.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO;
        let failed = libc::sigaction(libc::SIGTRAP, &raw const action, core::ptr::null_mut());
        assert_eq!(failed, 0, "sigaction");
    }
}

/// What this program has before the process is opened.
fn own_handler() -> usize {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = count_trap;
    handler as *const () as usize
}

/// Opens the process, with a handler of this program's there before. One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<bool> = Mutex::new(false);
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut opened = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !core::mem::replace(&mut *opened, true) {
        set_handler(own_handler());
        Process::open_with(Protocol::Breakpoint).expect("nobody blocks the signal");
    }
    turn
}

fn trap() {
    // SAFETY: has a handler, which returns.
    unsafe { core::arch::asm!("int3") };
}

#[test]
fn calls_under_fire_are_right_and_counted_and_foreign_traps_arrive() {
    let _alone = alone();
    for (name, flags) in [("fire", PADDED), ("fire_thunks", UNPADDED)] {
        let object = build(name, &numbered(name, 16), "c", flags);
        let (process, functions) = find(&object);
        assert_eq!(functions.len(), 16);
        let stop = AtomicBool::new(false);
        let before = FOREIGN.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let (object, stop) = (&object, &stop);
            let callers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(move || {
                        let (mut rounds, mut traps) = (0_u64, 0);
                        while !stop.load(Ordering::Relaxed) {
                            call_numbered(object, name, 16);
                            rounds += 1;
                            if rounds.is_multiple_of(64) {
                                trap();
                                traps += 1;
                            }
                        }
                        traps
                    })
                })
                .collect();
            let (staying, program) = counter();
            let stays = attach(process, &functions, program).expect("nobody blocks the signal");
            for _ in 0..500 {
                let (count, program) = counter();
                let link = attach(process, &functions, program).expect("nobody blocks it");
                let (other, own) = (count.load(Ordering::Relaxed), staying.load(Ordering::Relaxed));
                call_numbered(object, name, 16);
                assert!(count.load(Ordering::Relaxed) >= other + 16);
                assert!(staying.load(Ordering::Relaxed) >= own + 16);
                link.detach().expect("an attached link detaches");
            }
            stop.store(true, Ordering::Relaxed);
            let traps: u64 = callers.into_iter().map(|c| c.join().expect("right results")).sum();
            assert!(traps > 0);
            let arrived = FOREIGN.load(Ordering::SeqCst) - before;
            assert_eq!(arrived, traps, "all of theirs reached the earlier handler, none of ours");
            stays.detach().expect("an attached link detaches");
        });
        support::settle(process);
    }
    let before = FOREIGN.load(Ordering::SeqCst);
    trap();
    // SAFETY: has a handler, which returns.
    unsafe { libc::raise(libc::SIGTRAP) };
    assert_eq!(FOREIGN.load(Ordering::SeqCst), before + 2, "an int3 and a signal of our own");
}

/// Where an attachment stays while another one comes and goes, no call misses it: a call that
/// meets a breakpoint does what the new instruction does.
#[test]
fn a_link_counts_every_call_while_others_of_its_functions_change() {
    let _alone = alone();
    let object = build("stays", &numbered("stays", 8), "c", PADDED);
    let (process, functions) = find(&object);
    let (staying, program) = counter();
    let stays = attach(process, &functions, program).expect("nobody blocks the signal");
    let stop = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                call_numbered(&object, "stays", 8);
                rounds += 1;
            }
            rounds
        });
        for _ in 0..500 {
            let link = attach(process, &functions, counter().1).expect("nobody blocks the signal");
            link.detach().expect("an attached link detaches");
        }
        stop.store(true, Ordering::Relaxed);
        caller.join().expect("its results are right")
    });
    assert_eq!(staying.load(Ordering::Relaxed), rounds * 8, "every call, once");
    stays.detach().expect("an attached link detaches");
}

/// Sites that begin anywhere, that at the last byte of an aligned 16 included.
#[test]
fn every_alignment_can_be_hooked() {
    let _alone = alone();
    let mut source = String::from(".text\n");
    for offset in 0..16 {
        source += &format!(
            ".p2align 4\n.skip {offset}, 0x90\n.globl any_{offset}\n.type any_{offset}, @function\n\
             any_{offset}: .byte 0x0f, 0x1f, 0x44, 0, 0\nlea {offset}(%rdi), %rax\nret\n\
             .size any_{offset}, .-any_{offset}\n"
        );
    }
    source += ".section __patchable_function_entries,\"awo\",@progbits,.text\n";
    (0..16).for_each(|offset| source += &format!(".quad any_{offset}\n"));
    source += ".section .note.GNU-stack,\"\",@progbits\n";
    let object = build("alignments", &source, "s", &[]);
    let (process, functions) = find(&object);
    assert_eq!(functions.len(), 16);
    let before = object.text();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                call_numbered(&object, "any", 16);
            }
        });
        for _ in 0..500 {
            let (count, program) = counter();
            let link = attach(process, &functions, program).expect("nobody blocks the signal");
            call_numbered(&object, "any", 16);
            assert!(count.load(Ordering::Relaxed) >= 16);
            link.detach().expect("an attached link detaches");
        }
        stop.store(true, Ordering::Relaxed);
        caller.join().expect("its results are right");
    });
    process.synchronize().expect("no thread is inside");
    assert!(object.text() == before, "detaching left something behind");
}

#[test]
fn a_thread_that_blocks_the_signal_is_named_and_nothing_is_written() {
    let _alone = alone();
    let object = build("blocked", &numbered("blocked", 4), "c", PADDED);
    let (process, functions) = find(&object);
    let before = object.text();
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let (done, is_done) = mpsc::channel::<()>();
        let builder = thread::Builder::new().name("untrapped".into());
        let blocks = move || {
            // SAFETY: a set of one signal, blocked in this thread only.
            let tid = unsafe {
                let mut one = core::mem::zeroed();
                libc::sigemptyset(&raw mut one);
                libc::sigaddset(&raw mut one, libc::SIGTRAP);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const one, core::ptr::null_mut());
                libc::gettid()
            };
            ready.send(tid).expect("somebody waits");
            let _ = is_done.recv();
        };
        builder.spawn_scoped(scope, blocks).expect("a thread can be started");
        let blocking = is_ready.recv().expect("it says so");
        let error = attach(process, &functions, counter().1).expect_err("it would be killed");
        let AttachError::Traps(TrapsError::Blocked { tid, name }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*tid, name.to_string().as_str()), (blocking, "untrapped"));
        assert_says(&error, &["untrapped", "SIGTRAP", "unblock"]);
        assert!(object.text() == before, "a refused attachment has written text");
        done.send(()).expect("it waits");
    });
    let link = attach(process, &functions, counter().1).expect("nobody blocks the signal now");
    link.detach().expect("an attached link detaches");
}

#[test]
fn a_handler_that_replaces_ours_is_noticed() {
    let _alone = alone();
    let object = build("replaced", &numbered("replaced", 4), "c", PADDED);
    let (process, functions) = find(&object);
    // SAFETY: an action is read, and put back.
    let ours = unsafe {
        let mut ours: libc::sigaction = core::mem::zeroed();
        libc::sigaction(libc::SIGTRAP, core::ptr::null(), &raw mut ours);
        ours
    };
    set_handler(own_handler());
    let error = attach(process, &functions, counter().1).expect_err("the handler is another's");
    assert_eq!(error, AttachError::Traps(TrapsError::Taken));
    assert_says(&error, &["another handler", "before"]);
    // SAFETY: as it was.
    unsafe { libc::sigaction(libc::SIGTRAP, &raw const ours, core::ptr::null_mut()) };
    attach(process, &functions, counter().1)
        .expect("our handler is back")
        .detach()
        .expect("an attached link detaches");
}

#[test]
fn a_process_has_one_protocol() {
    let _alone = alone();
    let error = Process::open_with(Protocol::ShortJump).expect_err("opened with breakpoints");
    assert_eq!(error, OpenError::OtherProtocol { opened: Protocol::Breakpoint });
    Process::open().expect("whatever it was opened with");
}

#[test]
fn without_an_earlier_handler_a_foreign_trap_kills_as_ever() {
    support::hostile::in_child("without_an_earlier_handler_a_foreign_trap_kills_as_ever", || {
        Process::open_with(Protocol::Breakpoint).expect("nobody blocks the signal");
        for raise in [false, true] {
            // SAFETY: the child ends here, one way or the other.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: a signal to oneself, and the end of the child.
                unsafe {
                    if raise {
                        libc::raise(libc::SIGTRAP);
                    } else {
                        trap();
                    }
                    libc::_exit(0);
                }
            }
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(libc::WIFSIGNALED(status), "status {status:#x}");
            assert_eq!(libc::WTERMSIG(status), libc::SIGTRAP);
        }
    });
}
