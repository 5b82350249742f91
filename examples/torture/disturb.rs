//! What else goes on in a process: signals, threads that come and go, forks.

use core::ffi::{c_int, c_void};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::thread::{scope, sleep};

use fentry::emit::Context;
use fentry::host::Program;

use crate::operator::Stage;
use crate::random::Random;
use crate::source::FORMS;
use crate::tally::{TALLY, refused};
use crate::watch::{World, flush, interrupting};

/// What signal handlers call.
static WORLD: AtomicPtr<World> = AtomicPtr::new(null_mut());
static INTERRUPTIONS: AtomicU64 = AtomicU64::new(0);

/// The threads that get signals; 0 where there is none.
static LISTENERS: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];

/// Has the calling thread get signals until it is dropped; then its calls are added up.
pub struct Listener(Option<&'static AtomicI32>);

impl Listener {
    pub fn new() -> Self {
        // SAFETY: has no precondition.
        let tid = unsafe { libc::gettid() };
        let take = |place: &&AtomicI32| {
            place.compare_exchange(0, tid, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        Self(LISTENERS.iter().find(take))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Ordering::Relaxed);
        }
        flush();
    }
}

/// Calls hooked functions, wherever the thread is.
extern "C" fn handler(_signal: c_int) {
    // SAFETY: null, or the world, which lives for ever.
    let Some(world) = (unsafe { WORLD.load(Ordering::Acquire).as_ref() }) else { return };
    let mut random = Random::new(INTERRUPTIONS.fetch_add(1, Ordering::Relaxed));
    interrupting(|| {
        for _ in 0..4 {
            world.call(any_function(world, &mut random), random.next() | 1, random.next());
        }
    });
    TALLY.signals.add(1);
}

/// The number of one of the world's functions.
pub fn any_function(world: &World, random: &mut Random) -> u32 {
    random.below(world.targets.len()) as u32
}

/// Sets up the handler of [`signals`].
pub fn prepare_signals(world: &'static World) -> Result<(), std::io::Error> {
    WORLD.store(core::ptr::from_ref(world).cast_mut(), Ordering::Release);
    // SAFETY: a zeroed action is valid; the handler uses atomics and calls what is never
    // unloaded, and makes no system call.
    let failed = unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let handler: extern "C" fn(c_int) = handler;
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &raw const action, null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Sends signals to threads that listen.
pub fn signals(stop: &AtomicBool) {
    let mut random = Random::new(3);
    while !stop.load(Ordering::Relaxed) {
        let tid = LISTENERS[random.below(LISTENERS.len())].load(Ordering::Relaxed);
        if tid != 0 {
            // SAFETY: a signal that has a handler; a thread that is gone is an error.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) };
        }
        sleep(Duration::from_micros(100));
    }
}

/// Starts threads that call functions and end: some by returning, and some that begin in a
/// hooked function and end in another.
pub fn short_threads(stage: &Stage, start: usize, stop: &AtomicBool) {
    let mut random = Random::new(4);
    while !stop.load(Ordering::Relaxed) {
        let seed = random.next();
        scope(|scope| {
            scope.spawn(|| {
                let _listener = Listener::new();
                let mut random = Random::new(seed);
                for _ in 0..300 {
                    let function = any_function(stage.world, &mut random);
                    stage.world.call(function, random.next() | 1, random.next());
                }
            });
        });
        let mut wrong = 0_u64;
        // SAFETY: `start` is a thread's start routine, which counts in its argument; that
        // lives until the thread has been joined.
        let failed = unsafe {
            type Start = extern "C" fn(*mut c_void) -> *mut c_void;
            let start: Start = core::mem::transmute(start);
            let mut thread: libc::pthread_t = core::mem::zeroed();
            match libc::pthread_create(&raw mut thread, null(), start, (&raw mut wrong).cast()) {
                0 => libc::pthread_join(thread, null_mut()),
                error => error,
            }
        };
        if failed != 0 {
            refused("thread", &std::io::Error::from_raw_os_error(failed));
        }
        TALLY.wrong.add(wrong);
        TALLY.threads.add(2);
        sleep(Duration::from_millis(1));
    }
}

/// Forks children that call functions, attach and detach, and end.
pub fn forks(stage: &Stage, stop: &AtomicBool) {
    let _listener = Listener::new();
    let mut random = Random::new(5);
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = fork_once(stage, &mut random) {
            refused("fork", &error);
        }
        TALLY.forks.add(1);
        sleep(Duration::from_millis(100));
    }
}

fn fork_once(stage: &Stage, random: &mut Random) -> Result<(), String> {
    let seed = random.next();
    // SAFETY: the C library's fork leaves its own locks usable in the child, and this library's.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(std::io::Error::last_os_error().to_string()),
        0 => {
            // SAFETY: ends a child that hangs.
            unsafe { libc::alarm(60) };
            let mut random = Random::new(seed);
            let before = TALLY.bad();
            for _ in 0..500 {
                let function = any_function(stage.world, &mut random);
                stage.world.call(function, random.next() | 1, random.next());
            }
            let attached = attach_once(stage, &mut random);
            let failed = u8::from(TALLY.bad() != before) | u8::from(!attached) << 1;
            // SAFETY: ends the child.
            unsafe { libc::_exit(failed.into()) };
        }
        _ => {}
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error.to_string());
        }
    }
    if status == 0 { Ok(()) } else { Err(format!("a child's status is {status:#x}")) }
}

/// Attaches to a selection, detaches, and counts the calls of it that only this thread makes.
fn attach_once(stage: &Stage, random: &mut Random) -> bool {
    let selection = &stage.selections[random.below(stage.selections.len())];
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let program = Program::new(move |_: &mut Context, _| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    // SAFETY: the program counts, and nothing else; the functions are never unloaded.
    let Ok(link) = (unsafe { stage.process.attach(&selection.functions, program) }) else {
        return false;
    };
    // A group's first function is the one that calls no other.
    let first = |number: &&u32| (**number as usize).is_multiple_of(FORMS.len());
    let called: Vec<u32> = selection.numbers.iter().filter(first).copied().collect();
    let mut call = || {
        for &function in &called {
            stage.world.call(function, random.next() | 1, random.next());
        }
        count.load(Ordering::Relaxed)
    };
    let attached = call() == called.len() as u64;
    let detached = link.detach().is_ok() && call() == called.len() as u64;
    attached && detached && stage.process.synchronize().is_ok() && Arc::strong_count(&count) == 1
}
