//! Libraries that come and go meanwhile, and children.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

use fentry::host::Process;

use crate::fleet::{FUNCTIONS, Finally, Fleet, MARK, Marked, alone, under_load, wrong_results};
use crate::support::four::{PADDED, UNPADDED, build, numbered};
use crate::support::settle;

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
    settle(fleet.process);
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
    settle(fleet.process);
}
