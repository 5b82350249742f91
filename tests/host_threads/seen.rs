//! What is seen of threads, and moving them.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::Mutex;

use fentry::host::memory::{Allocation, Arena};
use fentry::host::threads::{Seen, ThreadsError, Verdict, inspect, inspect_then};

use super::{Finally, actions, alone, tid, wait_for};

fn emit(code: &[u8]) -> Allocation {
    let here = emit as *const () as u64;
    let mut memory = Arena::reserve(&(here..here + 1), 4096).unwrap();
    let mut place = memory.allocate(code.len(), 64).unwrap();
    place.fill(0, code).unwrap();
    place
}

/// `f(entered, stop)`: stores 1 to `*entered`, then goes round `body` until `*stop` is not 0,
/// and returns 7. Gives the addresses of the loop.
fn looping(body: &[u8]) -> (Allocation, Range<u64>) {
    let mut code = vec![0xc6, 0x07, 0x01]; // mov byte [rdi], 1
    let start = code.len();
    code.extend_from_slice(body);
    code.extend_from_slice(&[0x80, 0x3e, 0x00]); // cmp byte [rsi], 0
    let back = i8::try_from(start as i64 - (code.len() as i64 + 2)).unwrap();
    code.extend_from_slice(&[0x74, back.cast_unsigned()]); // je start
    let end = code.len();
    code.extend_from_slice(&[0xb8, 7, 0, 0, 0, 0xc3]); // mov eax, 7; ret
    let place = emit(&code);
    let range = place.run() + start as u64..place.run() + end as u64;
    (place, range)
}

fn call(address: u64, entered: &AtomicU8, stop: &AtomicU8) -> u32 {
    // SAFETY: the tests pass the address of a function that takes two addresses of bytes.
    let function: extern "C" fn(*mut u8, *mut u8) -> u32 =
        unsafe { core::mem::transmute(address as usize) };
    function(entered.as_ptr(), stop.as_ptr())
}

#[test]
fn threads_in_a_watched_loop_are_all_seen_inside() {
    let _alone = alone();
    let before = actions();
    let (place, range) = looping(&[0x90; 64]);
    let watched = [range.clone()];
    let entered: [AtomicU8; 3] = Default::default();
    let stop = AtomicU8::new(0);
    let run = place.run();
    std::thread::scope(|scope| {
        let _stop = Finally(|| stop.store(1, Ordering::Relaxed));
        for entered in &entered {
            let stop = &stop;
            scope.spawn(move || assert_eq!(call(run, entered, stop), 7));
        }
        wait_for(|| entered.iter().all(|entered| entered.load(Ordering::Relaxed) == 1));
        for _ in 0..100 {
            let inside = AtomicU32::new(0);
            let summary = inspect(&watched, |seen: &Seen| {
                // No assertion here: a panic would allocate while threads are held.
                let there = seen.instruction.is_some_and(|address| range.contains(&address));
                if there && seen.inside.as_ref() == Some(&range) {
                    inside.fetch_add(1, Ordering::Relaxed);
                }
                Verdict::LEAVE
            })
            .unwrap();
            assert_eq!(inside.into_inner(), 3);
            assert!(summary.threads >= 4);
            assert_eq!(summary.moved, 0);
        }
        stop.store(1, Ordering::Relaxed);
    });
    let after =
        inspect(
            &watched,
            |seen| {
                if seen.inside.is_some() { Verdict::REFUSE } else { Verdict::LEAVE }
            },
        );
    assert!(after.is_ok());
    assert_eq!(actions(), before);
}

#[test]
fn a_thread_is_moved_out_of_an_endless_loop_and_goes_on() {
    let _alone = alone();
    // mov byte [rdi], 1; jmp $; mov eax, 7; ret
    let place = emit(&[0xc6, 0x07, 0x01, 0xeb, 0xfe, 0xb8, 7, 0, 0, 0, 0xc3]);
    let range = place.run() + 3..place.run() + 5;
    let watched = [range.clone()];
    let (entered, stop) = (AtomicU8::new(0), AtomicU8::new(0));
    std::thread::scope(|scope| {
        let parked = scope.spawn(|| call(place.run(), &entered, &stop));
        wait_for(|| entered.load(Ordering::Relaxed) == 1);
        // The store comes before the loop: give it the one instruction.
        let summary = loop {
            let summary = inspect(&watched, |seen| match &seen.inside {
                // SAFETY: the jump has no effect, and what follows needs no register.
                Some(range) => unsafe { Verdict::move_to(range.end) },
                None => Verdict::LEAVE,
            })
            .unwrap();
            if summary.moved != 0 {
                break summary;
            }
        };
        assert_eq!(summary.moved, 1);
        assert_eq!(parked.join().unwrap(), 7);
    });
}

#[test]
fn a_refused_inspection_moves_nobody_and_does_not_act() {
    let _alone = alone();
    let (place, range) = looping(&[0x90; 8]);
    let watched = [range.clone()];
    let (entered, stop) = (AtomicU8::new(0), AtomicU8::new(0));
    let run = place.run();
    std::thread::scope(|scope| {
        let _stop = Finally(|| stop.store(1, Ordering::Relaxed));
        let looping = scope.spawn(|| call(run, &entered, &stop));
        wait_for(|| entered.load(Ordering::Relaxed) == 1);
        let acted = AtomicBool::new(false);
        let result = inspect_then(
            &watched,
            |seen| {
                if seen.inside.is_some() { Verdict::REFUSE } else { Verdict::LEAVE }
            },
            || acted.store(true, Ordering::Relaxed),
        );
        let Err(error @ ThreadsError::Refused { .. }) = result else { panic!("{result:?}") };
        assert!(error.to_string().contains("is not outside the watched code: it executes 0x"));
        assert!(!acted.into_inner());
        stop.store(1, Ordering::Relaxed);
        assert_eq!(looping.join().unwrap(), 7);
    });
}

static PARKED: AtomicI32 = AtomicI32::new(0);
static UNPARK: AtomicBool = AtomicBool::new(false);

extern "C" fn park() {
    PARKED.store(tid(), Ordering::SeqCst);
    wait_for(|| UNPARK.load(Ordering::SeqCst));
    PARKED.store(0, Ordering::SeqCst);
}

extern "C" fn park_in_handler(_signal: i32) {
    park();
}

/// `f()`: calls the function and returns 7. Gives the return address.
fn calling(function: extern "C" fn()) -> (Allocation, u64) {
    let mut code = vec![0x50, 0x48, 0xb8]; // push rax; mov rax, function
    code.extend_from_slice(&(function as *const () as u64).to_le_bytes());
    code.extend_from_slice(&[0xff, 0xd0]); // call rax
    let behind = code.len() as u64;
    code.extend_from_slice(&[0x59, 0xb8, 7, 0, 0, 0, 0xc3]); // pop rcx; mov eax, 7; ret
    let place = emit(&code);
    let address = place.run() + behind;
    (place, address)
}

fn call_plain(address: u64) -> u32 {
    // SAFETY: the tests pass the address of a function that takes nothing.
    let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(address as usize) };
    function()
}

/// What an inspection saw of the thread `tid`.
fn see(watched: &[Range<u64>], tid: i32) -> Seen {
    let found = core::cell::RefCell::new(None);
    inspect(watched, |seen| {
        if seen.tid == tid {
            *found.borrow_mut() = Some(seen.clone());
        }
        Verdict::LEAVE
    })
    .unwrap();
    found.into_inner().expect("the thread is seen")
}

#[test]
fn a_return_address_on_a_stack_is_found() {
    let _alone = alone();
    let (place, behind) = calling(park);
    let range = place.run()..place.run() + place.size() as u64;
    UNPARK.store(false, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let _unpark = Finally(|| UNPARK.store(true, Ordering::SeqCst));
        let thread = scope.spawn(|| call_plain(place.run()));
        wait_for(|| PARKED.load(Ordering::SeqCst) != 0);
        let parked = PARKED.load(Ordering::SeqCst);
        let seen = see(core::slice::from_ref(&range), parked);
        assert_eq!(seen.inside, None);
        let word = seen.on_stack.clone().unwrap();
        assert_eq!((word.value, &word.range), (behind, &range));
        assert!(!seen.is_outside());
        // A range that ends before the return address is not where it returns to.
        let before = see(core::slice::from_ref(&(range.start..behind)), parked);
        assert_eq!(before.on_stack, None);
        UNPARK.store(true, Ordering::SeqCst);
        assert_eq!(thread.join().unwrap(), 7);
    });
}

/// A thread in a watched loop gets a signal whose handler parks; what is seen of it then?
fn seen_in_a_handler(flags: i32) -> (Seen, Range<u64>) {
    let (place, range) = looping(&[0x90; 16]);
    let (entered, stop) = (AtomicU8::new(0), AtomicU8::new(0));
    UNPARK.store(false, Ordering::SeqCst);
    let pthread = AtomicU64::new(0);
    let run = place.run();
    let mut seen = None;
    std::thread::scope(|scope| {
        let _stop = Finally(|| stop.store(1, Ordering::Relaxed));
        let _unpark = Finally(|| UNPARK.store(true, Ordering::SeqCst));
        let thread = scope.spawn(|| {
            // SAFETY: has no precondition.
            pthread.store(unsafe { libc::pthread_self() } as u64, Ordering::SeqCst);
            call(run, &entered, &stop)
        });
        wait_for(|| entered.load(Ordering::Relaxed) == 1);
        // SAFETY: a zeroed `sigaction` is valid; the handler only uses atomics and system
        // calls; the thread runs until it is told to stop.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            let handler: extern "C" fn(i32) = park_in_handler;
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = flags;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, core::ptr::null_mut()), 0);
            let target = pthread.load(Ordering::SeqCst) as libc::pthread_t;
            assert_eq!(libc::pthread_kill(target, libc::SIGUSR1), 0);
        }
        wait_for(|| PARKED.load(Ordering::SeqCst) != 0);
        seen = Some(see(core::slice::from_ref(&range), PARKED.load(Ordering::SeqCst)));
        UNPARK.store(true, Ordering::SeqCst);
        stop.store(1, Ordering::Relaxed);
        assert_eq!(thread.join().unwrap(), 7);
    });
    (seen.unwrap(), range)
}

#[test]
fn the_saved_context_of_a_handler_is_found() {
    let _alone = alone();
    let (seen, range) = seen_in_a_handler(0);
    assert_eq!((&seen.inside, seen.alternate_stack), (&None, false));
    assert_eq!(seen.on_stack.unwrap().range, range);
}

#[test]
fn a_handler_on_an_alternate_stack_is_told() {
    let _alone = alone();
    // Threads of `std` have an alternate stack.
    let (seen, _) = seen_in_a_handler(libc::SA_ONSTACK);
    assert!(seen.alternate_stack);
    assert!(!seen.is_outside());
}

#[test]
fn the_calling_thread_is_seen_through_its_stack() {
    static SEEN: Mutex<Option<Seen>> = Mutex::new(None);
    static WATCHED: Mutex<Vec<Range<u64>>> = Mutex::new(Vec::new());
    extern "C" fn look() {
        let watched = WATCHED.lock().unwrap();
        *SEEN.lock().unwrap() = Some(see(&watched, tid()));
    }
    let _alone = alone();
    let (place, behind) = calling(look);
    WATCHED.lock().unwrap().push(place.run()..place.run() + place.size() as u64);
    assert_eq!(call_plain(place.run()), 7);
    let seen = SEEN.lock().unwrap().take().unwrap();
    assert_eq!((seen.instruction, &seen.inside), (None, &None));
    // `behind` is a local of this frame too: what counts is that the call's word is found first.
    assert_eq!(seen.on_stack.unwrap().value, behind);
}

#[test]
fn the_calling_thread_cannot_be_moved() {
    let _alone = alone();
    let own = tid();
    let result = inspect(&[], |seen| {
        if seen.tid != own {
            return Verdict::LEAVE;
        }
        // SAFETY: refused.
        unsafe { Verdict::move_to(1) }
    });
    assert!(matches!(result, Err(ThreadsError::Refused { seen }) if seen.tid == own));
}

#[test]
fn ranges_out_of_order_are_refused() {
    let error = inspect(&[16..32, 8..12], |_| Verdict::LEAVE).unwrap_err();
    assert_eq!(error, ThreadsError::Unsorted { at: 8 });
    let error = inspect(&[16..32, 31..40], |_| Verdict::LEAVE).unwrap_err();
    assert_eq!(error, ThreadsError::Unsorted { at: 31 });
}
