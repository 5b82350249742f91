//! Watches: what must be seen of a call, and what was.
//!
//! A watch stands for one link at a time. Whoever has it says when its link begins to change
//! and when it is on or off; each caller notes what all watches said before its call and says
//! of those that say the same afterwards whether exactly the right programs ran:
//!
//! ```text
//!  who attaches     off | changing: attach() ... returned | on ............... | changing: detach()
//!  who calls              call: 0 or once                   call: exactly once
//! ```
//!
//! What a thread's own call has seen stands in the thread's [`Call`], where only programs that
//! run on that thread write.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use fentry::emit::Context;

use crate::library::Target;
use crate::source::FORMS;
use crate::tally::{TALLY, What, failure};

/// How many watches there are. Each has at most two programs, and a function at most 16.
pub const WATCHES: usize = 7;

/// What a link's second program adds to what was seen; the first adds one.
pub const SECOND: u32 = 1 << 16;

/// No function.
const NONE: u32 = u32::MAX;

const OFF: u64 = 0;
const CHANGING: u64 = 1;
const ON: u64 = 2;
const PHASE: u64 = 3;
const VERSION: u64 = 4;

/// One link after the other, as callers see it.
struct Watch {
    /// A version that never comes again, and below it the phase.
    state: AtomicU64,
    /// What one call of a covered function adds while the link is on.
    expected: AtomicU32,
}

static ALL: [Watch; WATCHES] =
    [const { Watch { state: AtomicU64::new(OFF), expected: AtomicU32::new(0) } }; WATCHES];

/// The functions that are called all the time, and which watches cover each.
pub struct World {
    pub targets: Vec<Target>,
    /// A bit for each watch.
    covered: Vec<AtomicU8>,
    /// Entries and numbers, sorted.
    by_entry: Vec<(u64, u32)>,
}

impl World {
    pub fn new(targets: Vec<Target>) -> Self {
        let covered = targets.iter().map(|_| AtomicU8::new(0)).collect();
        let entries = targets.iter().map(|target| target.entry as u64);
        let mut by_entry: Vec<_> = entries.zip(0..).collect();
        by_entry.sort_unstable();
        Self { targets, covered, by_entry }
    }

    /// The number of the function at `entry`; `u32::MAX` if there is none. Its cost is why it is
    /// not what every program does.
    pub fn number_at(&self, entry: u64) -> u32 {
        let found = self.by_entry.binary_search_by_key(&entry, |&(entry, _)| entry);
        found.ok().and_then(|found| self.by_entry.get(found)).map_or(NONE, |&(_, number)| number)
    }

    /// Says that the link of `watch` begins to change: to attach, detach, enable or disable.
    /// The caller has the watch to itself.
    pub fn begin(watch: usize) {
        let state = ALL[watch].state.load(Ordering::Relaxed);
        ALL[watch].state.store((state & !PHASE) + VERSION + CHANGING, Ordering::SeqCst);
    }

    /// Says that the link of `watch` is on, or off.
    pub fn end(watch: usize, on: bool) {
        let state = ALL[watch].state.load(Ordering::Relaxed) & !PHASE;
        ALL[watch].state.store(state + if on { ON } else { OFF }, Ordering::SeqCst);
    }

    /// Says what the link of `watch` will cover, and how it is seen. It is changing.
    pub fn cover(&self, watch: usize, functions: &[u32], expected: u32) {
        ALL[watch].expected.store(expected, Ordering::Relaxed);
        for &function in functions {
            self.covered[function as usize].fetch_or(1 << watch, Ordering::Relaxed);
        }
    }

    /// Takes back what [`cover`](Self::cover) said.
    pub fn uncover(&self, watch: usize, functions: &[u32]) {
        for &function in functions {
            self.covered[function as usize].fetch_and(!(1 << watch), Ordering::Relaxed);
        }
    }

    /// Calls a function and checks everything: its result, and for each watch whether it saw
    /// the call as it should.
    #[inline]
    pub fn call(&self, function: u32, ticket: u64, b: u64) {
        let target = &self.targets[function as usize];
        let first = function - function % FORMS.len() as u32;
        let first = if target.form.calls_first() { first } else { NONE };
        let before = states();
        CALL.with(|call| call.begin(ticket, function, first));
        // SAFETY: the world's libraries are never unloaded.
        if !unsafe { target.call(ticket, b) } {
            TALLY.wrong.add(1);
            failure(What::Result, [function.into(), ticket, b, 0]);
        }
        CALL.with(|call| {
            call.ticket.store(0, Ordering::Relaxed);
            self.judge(function, &call.seen, &before);
            if first != NONE {
                self.judge(first, &call.seen_first, &before);
            }
        });
    }

    /// Compares what was seen of a call with what had to be.
    fn judge(&self, function: u32, seen: &[AtomicU32; WATCHES], before: &[u64; WATCHES]) {
        let covered = self.covered[function as usize].load(Ordering::Relaxed);
        let expected = ALL.each_ref().map(|watch| watch.expected.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        // Of a watch that says the same as before, what was read in between is true.
        let after = states();
        let (mut exact, mut silent) = (0, 0);
        for watch in 0..WATCHES {
            let seen = seen[watch].load(Ordering::Relaxed);
            let is_covered = covered & 1 << watch != 0;
            let steady = before[watch] == after[watch];
            let wanted = match before[watch] & PHASE {
                ON if steady && is_covered => {
                    exact += 1;
                    expected[watch]
                }
                ON | OFF if steady => {
                    silent += 1;
                    0
                }
                // In between, each program ran once or not at all.
                _ => seen & (1 | SECOND),
            };
            if seen != wanted {
                let others = (0..WATCHES).filter(|&other| other != watch);
                let changed = others.clone().any(|other| {
                    before[other] != after[other] || before[other] & PHASE == CHANGING
                });
                let numbers = [function.into(), watch as u64, seen.into(), 0];
                report(numbers, seen, wanted, Circumstances { steady, changed });
            }
        }
        TALLY_OF_THREAD.with(|tally| tally.add(exact, silent));
    }
}

fn states() -> [u64; WATCHES] {
    core::array::from_fn(|watch| ALL[watch].state.load(Ordering::Acquire))
}

/// What was going on during a call that was not seen as it should.
struct Circumstances {
    /// The watch's link was on or off all the time.
    steady: bool,
    /// Another link was changing.
    changed: bool,
}

#[cold]
fn report(numbers: [u64; 4], seen: u32, wanted: u32, during: Circumstances) {
    let more = |bits: u32| seen >> bits & 0xffff > wanted >> bits & 0xffff;
    let (count, what) = if during.steady && wanted == 0 {
        (&TALLY.late, What::Late)
    } else if more(0) || more(16) {
        (&TALLY.duplicated, What::Duplicated)
    } else if during.changed {
        (&TALLY.lost_in_change, What::LostInChange)
    } else {
        (&TALLY.lost, What::Lost)
    };
    count.add(1);
    failure(what, numbers);
}

/// The call that a thread is making, and what programs have seen of it.
pub struct Call {
    /// The call's first argument; 0 while the thread makes no call that is judged.
    ticket: AtomicU64,
    function: AtomicU32,
    /// The function that it calls itself, or [`NONE`].
    first: AtomicU32,
    seen: [AtomicU32; WATCHES],
    seen_first: [AtomicU32; WATCHES],
}

thread_local! {
    // Without a destructor and initialised by the loader: programs and signal handlers find
    // it at any time in a thread's life. Atomic because those interrupt its owner.
    static CALL: Call = const { Call::new() };
    static TALLY_OF_THREAD: ThreadTally = const { ThreadTally::new() };
}

impl Call {
    const fn new() -> Self {
        Self {
            ticket: AtomicU64::new(0),
            function: AtomicU32::new(NONE),
            first: AtomicU32::new(NONE),
            seen: [const { AtomicU32::new(0) }; WATCHES],
            seen_first: [const { AtomicU32::new(0) }; WATCHES],
        }
    }

    fn begin(&self, ticket: u64, function: u32, first: u32) {
        for seen in self.seen.iter().chain(&self.seen_first) {
            seen.store(0, Ordering::Relaxed);
        }
        self.function.store(function, Ordering::Relaxed);
        self.first.store(first, Ordering::Relaxed);
        self.ticket.store(ticket, Ordering::Relaxed);
    }

    fn copy_to(&self, other: &Self) {
        let copy = |from: &AtomicU32, to: &AtomicU32| {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        other.ticket.store(self.ticket.load(Ordering::Relaxed), Ordering::Relaxed);
        copy(&self.function, &other.function);
        copy(&self.first, &other.first);
        self.seen.iter().zip(&other.seen).for_each(|(from, to)| copy(from, to));
        self.seen_first.iter().zip(&other.seen_first).for_each(|(from, to)| copy(from, to));
    }
}

/// Does something that makes calls of its own, in the middle of a call: what a signal handler
/// has to do.
pub fn interrupting(work: impl FnOnce()) {
    CALL.with(|call| {
        let saved = Call::new();
        call.copy_to(&saved);
        work();
        saved.copy_to(call);
    });
}

/// What a program does: counts a call of `function`, as its cookie has it, for its watch.
/// `unit` is 1 or [`SECOND`].
#[inline]
pub fn observe(world: &World, context: &Context, function: u32, watch: usize, unit: u32) {
    CALL.with(|call| {
        let ticket = call.ticket.load(Ordering::Relaxed);
        let Some(target) = world.targets.get(function as usize) else {
            return wrong(What::Cookie, [watch as u64, function.into(), ticket, 0]);
        };
        let entry = context.function().get();
        if entry != target.entry as u64 {
            let numbers = [watch as u64, function.into(), entry, target.entry as u64];
            return wrong(What::Context, numbers);
        }
        if ticket == 0 {
            return;
        }
        let argument = context.args()[target.form.first_argument()];
        if argument != ticket {
            return wrong(What::Context, [watch as u64, function.into(), argument, ticket]);
        }
        let called = call.function.load(Ordering::Relaxed);
        let seen = if function == called {
            &call.seen
        } else if function == call.first.load(Ordering::Relaxed) {
            &call.seen_first
        } else {
            return wrong(What::Cookie, [watch as u64, function.into(), called.into(), 0]);
        };
        // Only this thread writes here; a handler in between puts back what it found.
        let seen = &seen[watch];
        seen.store(seen.load(Ordering::Relaxed) + unit, Ordering::Relaxed);
    });
}

/// Counts and describes something wrong.
#[cold]
pub fn wrong(what: What, numbers: [u64; 4]) {
    TALLY.wrong.add(1);
    failure(what, numbers);
}

/// What a thread has not yet added to the common tally, so that calling costs no contention.
struct ThreadTally {
    calls: AtomicU64,
    exact: AtomicU64,
    silent: AtomicU64,
}

impl ThreadTally {
    const fn new() -> Self {
        Self { calls: AtomicU64::new(0), exact: AtomicU64::new(0), silent: AtomicU64::new(0) }
    }

    fn add(&self, exact: u64, silent: u64) {
        // A handler in between may be forgotten: these are for the reader, not for the verdict.
        let add = |count: &AtomicU64, more: u64| {
            let sum = count.load(Ordering::Relaxed) + more;
            count.store(sum, Ordering::Relaxed);
            sum
        };
        add(&self.exact, exact);
        add(&self.silent, silent);
        if add(&self.calls, 1) >= 256 {
            self.flush();
        }
    }

    fn flush(&self) {
        TALLY.calls.add(self.calls.swap(0, Ordering::Relaxed));
        TALLY.exact.add(self.exact.swap(0, Ordering::Relaxed));
        TALLY.silent.add(self.silent.swap(0, Ordering::Relaxed));
    }
}

/// Adds what this thread has counted to the common tally: before it ends.
pub fn flush() {
    TALLY_OF_THREAD.with(ThreadTally::flush);
}
