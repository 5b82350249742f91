//! Programs of every kind, which count what they see and change nothing.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use fentry::host::{Cookies, Functions, Link, Missed, Process, Program, SIDE_STACK_DEPTH, Session};

use crate::support::compile::{Build, Compiler, shared_object};
use crate::support::object::Object;

/// What was seen of one function.
#[derive(Default)]
pub struct Seen {
    pub entries: AtomicU64,
    pub exits: AtomicU64,
    pub sessions_begun: AtomicU64,
    pub sessions_ended: AtomicU64,
    /// Sessions that ended with another word than they began with.
    pub sessions_torn: AtomicU64,
}

/// What was seen of all functions of a selection, and what was missed of them.
pub struct Counts {
    process: &'static Process,
    pub seen: Arc<[Seen]>,
    before: Missed,
}

fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Relaxed);
}

impl Counts {
    /// Attaches the programs to the functions.
    pub fn attach(process: &'static Process, functions: &Functions) -> (Self, Link) {
        let seen: Arc<[Seen]> = functions.iter().map(|_| Seen::default()).collect();
        let of = |seen: &Arc<[Seen]>| {
            let seen = Arc::clone(seen);
            move |position: u64, count: fn(&Seen) -> &AtomicU64| {
                one_more(count(&seen[position as usize]));
            }
        };
        let [entry, exit, begin, end] = [(); 4].map(|()| of(&seen));
        let programs = [
            Program::new(move |_, at| entry(at, |seen| &seen.entries)),
            Program::exit(move |_, at| exit(at, |seen| &seen.exits)),
            Program::session(
                move |context, at, word| {
                    *word = context.caller().get() ^ at;
                    begin(at, |seen| &seen.sessions_begun);
                    Session::Exit
                },
                move |context, at, word| {
                    let right = *word == context.caller().get() ^ at;
                    end(
                        at,
                        if right {
                            |seen| &seen.sessions_ended
                        } else {
                            |seen| &seen.sessions_torn
                        },
                    );
                },
            ),
            Program::modify_return(|_, _| 0),
        ];
        let programs = programs.map(|program| program.cookies(Cookies::Position));
        let before = process.missed();
        // SAFETY: the programs add to counters, which no hooked function has to do with; none
        // of the hooked functions switches stacks.
        let link = unsafe { process.attach(functions, programs) }.expect("all can be attached to");
        (Self { process, seen, before }, link)
    }

    /// The sum of one count.
    pub fn sum(&self, count: fn(&Seen) -> &AtomicU64) -> u64 {
        self.seen.iter().map(|seen| count(seen).load(Relaxed)).sum()
    }

    /// What was missed since the programs were attached.
    pub fn missed(&self) -> Missed {
        let now = self.process.missed();
        Missed {
            abandoned: now.abandoned - self.before.abandoned,
            overflowed: now.overflowed - self.before.overflowed,
            without_side_stack: now.without_side_stack - self.before.without_side_stack,
        }
    }

    /// Asserts that every call that was seen to begin was seen to end, or to be abandoned, and
    /// that none was missed. Returns how many entries there were, and how many were abandoned.
    /// Every thread that was in a hooked function has entered one since, or has ended.
    pub fn assert_balanced(&self, what: &str) -> (u64, u64) {
        let (entries, exits) = (self.sum(|seen| &seen.entries), self.sum(|seen| &seen.exits));
        let missed = self.missed();
        assert_eq!(entries, exits + missed.abandoned, "{what}: {entries} {exits} {missed:?}");
        assert_eq!((missed.overflowed, missed.without_side_stack), (0, 0), "{what}");
        assert_eq!(self.sum(|seen| &seen.sessions_begun), entries, "{what}");
        assert_eq!(self.sum(|seen| &seen.sessions_ended), exits, "{what}");
        assert_eq!(self.sum(|seen| &seen.sessions_torn), 0, "{what}");
        (entries, missed.abandoned)
    }
}

/// A hooked function that calls itself as often as it is told: how many frames a thread's side
/// stack has left, it shows.
pub struct Well {
    process: &'static Process,
    down: extern "C" fn(i64) -> i64,
    _link: Link,
}

impl Well {
    pub fn dig(process: &'static Process) -> Self {
        let object = Object::load(&shared_object(&Build {
            name: "well",
            source: "__attribute__((noipa)) long down(long n) {\n\
                     if (n == 0) return 0; return 1 + down(n - 1); }\n",
            extension: "c",
            compiler: Compiler::Gcc,
            flags: &["-O1", "-fno-optimize-sibling-calls", "-fpatchable-function-entry=21,16"],
        }));
        process.refresh().expect("the object was loaded a moment ago");
        let functions = process.functions().module(&object.module()).expect("a pattern");
        assert_eq!(functions.len(), 1);
        // SAFETY: a program that does nothing.
        let link = unsafe { process.attach(&functions, Program::exit(|_, _| {})) };
        // SAFETY: its type in the C source.
        let down = unsafe { object.function("down") };
        Self { process, down, _link: link.expect("it can be attached to") }
    }

    /// Asserts that this thread's side stack is empty, when the thread is in no hooked function:
    /// as many calls find a frame as there are frames.
    pub fn assert_empty(&self) {
        let calls = i64::from(SIDE_STACK_DEPTH);
        let before = self.process.missed().overflowed;
        assert_eq!((self.down)(calls - 1), calls - 1);
        let without = self.process.missed().overflowed - before;
        assert_eq!(without, 0, "of {calls} calls that many found no frame");
    }
}

/// What `work` gives for each of some seeds, each on a thread of its own, all at once.
pub fn on_threads<T: Send>(work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4).map(|seed| scope.spawn(move || work(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that worked")).collect()
    })
}
