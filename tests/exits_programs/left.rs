//! Programs that leave their functions without a return: in C by `longjmp`, in C++ by exceptions.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use fentry::host::{Functions, Missed, Process};

use crate::counts::{Counts, Well, on_threads};
use crate::support::compile::{Build, Compiler, compilers, shared_object};
use crate::support::object::Object;
use crate::{alone, support};

/// How often programs are attached and detached while threads run.
const TIMES: usize = 20;

/// What a program counts itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Counted {
    calls: u64,
    returned: u64,
}

/// Computes something that depends on all that happens in so many rounds.
type Run = unsafe extern "C" fn(seed: u64, rounds: u64, counted: &mut Counted) -> u64;

struct Source {
    name: &'static str,
    text: &'static str,
    extension: &'static str,
    flags: &'static [&'static str],
    rounds: u64,
    /// Whether the function of this name counts its calls.
    counts: fn(&str) -> bool,
    /// Whether who unwinds the stack tells of it.
    unwinds: bool,
}

impl Source {
    /// Compiles and loads it; what runs it, and its functions.
    fn load(&self, compiler: Compiler, optimisation: &str, layout: &str) -> Loaded {
        let name = format!("{}-{}{optimisation}-{layout}", self.name, compiler.command());
        let site = format!("-fpatchable-function-entry={layout}");
        let object = Object::load(&shared_object(&Build {
            name: &name.replace(',', "_"),
            source: self.text,
            extension: self.extension,
            compiler,
            flags: &[&[optimisation, "-falign-functions=16", &site], self.flags].concat(),
        }));
        let process = support::process();
        process.refresh().expect("the object was loaded a moment ago");
        let functions = process.functions().module(&object.module()).expect("a pattern");
        // SAFETY: its type in the source.
        let run = unsafe { object.function("run") };
        Loaded { name, process, functions, run, rounds: self.rounds }
    }

    /// Compares what was seen of the functions that count with what they counted.
    fn compare(&self, loaded: &Loaded, counts: &Counts, ran: &[(u64, Counted)], what: &str) {
        let mut seen = Counted::default();
        for (function, of_function) in loaded.functions.iter().zip(counts.seen.iter()) {
            if (self.counts)(&function.name()) {
                seen.calls += of_function.entries.load(Relaxed);
                seen.returned += of_function.exits.load(Relaxed);
            }
        }
        let counted = Counted {
            calls: ran.iter().map(|(_, counted)| counted.calls).sum(),
            returned: ran.iter().map(|(_, counted)| counted.returned).sum(),
        };
        assert_eq!(seen, counted, "{what}: what was seen, and what the program counted");
        let left = counted.calls - counted.returned;
        assert!(counted.returned > 1000 && left > 10_000, "{what}: {counted:?}");
    }
}

/// Where what is needed at the exit is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    SideStack,
    /// On the ordinary stack: what `longjmp` leaves is gone, and nobody counts it.
    Frame,
}

impl Form {
    /// What is said of the functions' arguments on the stack.
    const fn words(self) -> Option<u8> {
        match self {
            Self::SideStack => None,
            Self::Frame => Some(16),
        }
    }
}

struct Loaded {
    name: String,
    process: &'static Process,
    functions: Functions,
    run: Run,
    rounds: u64,
}

impl Loaded {
    /// What is attached from now on keeps its state there. The same file may be loaded in another
    /// test, which has left it otherwise.
    fn take(&self, form: Form) {
        // SAFETY: no function has more words, and what is above theirs is the threads' stacks,
        // which are readable.
        let said = unsafe { self.process.set_stack_arguments(&self.functions, form.words()) };
        said.expect("nothing is attached");
    }

    fn run(&self, seed: u64) -> (u64, Counted) {
        let mut counted = Counted::default();
        // SAFETY: any numbers will do.
        let result = unsafe { (self.run)(seed, self.rounds, &mut counted) };
        (result, counted)
    }
}

/// Runs the program unhooked and hooked, and compares.
fn check(source: &Source) {
    let _alone = alone();
    let well = Well::dig(support::process());
    for compiler in compilers() {
        for (optimisation, layout) in [("-O0", "5"), ("-O2", "21,16")] {
            let loaded = source.load(compiler, optimisation, layout);
            let unhooked = on_threads(|seed| loaded.run(seed));
            for form in [Form::SideStack, Form::Frame] {
                let what = format!("{}, {form:?}", loaded.name);
                loaded.take(form);
                let (counts, link) = Counts::attach(loaded.process, &loaded.functions);
                let hooked = on_threads(|seed| {
                    let done = loaded.run(seed);
                    well.assert_empty();
                    done
                });
                link.detach().expect("an attached link detaches");
                assert_eq!(hooked, unhooked, "{what}");
                source.compare(&loaded, &counts, &hooked, &what);
                if form == Form::SideStack || source.unwinds {
                    counts.assert_balanced(&what);
                } else {
                    assert_eq!(counts.missed(), Missed::default(), "{what}");
                }
            }
        }
    }
}

/// Threads run the program while programs are attached to all of its functions and detached again.
fn check_coming_and_going(source: &Source) {
    let _alone = alone();
    let well = Well::dig(support::process());
    let loaded = source.load(Compiler::Gcc, "-O2", "21,16");
    loaded.take(Form::SideStack);
    let unhooked = on_threads(|seed| loaded.run(seed));
    let before = loaded.process.missed();
    let (done, running) = (AtomicBool::new(false), AtomicBool::new(true));
    let (entries, exits) = std::thread::scope(|scope| {
        let operator = scope.spawn(|| {
            let all: Vec<Counts> = (0..TIMES)
                .map(|_| {
                    let (counts, link) = Counts::attach(loaded.process, &loaded.functions);
                    while counts.sum(|seen| &seen.exits) < 1000 && running.load(Relaxed) {
                        std::thread::yield_now();
                    }
                    link.detach().expect("an attached link detaches");
                    support::settle(loaded.process);
                    counts
                })
                .collect();
            done.store(true, Relaxed);
            all
        });
        on_threads(|seed| {
            while !done.load(Relaxed) {
                let same = loaded.run(seed) == unhooked[seed as usize - 1];
                running.fetch_and(same, Relaxed);
                assert!(same, "{}: another result", loaded.name);
            }
            well.assert_empty();
        });
        let all = operator.join().expect("it attached and detached");
        let sum = |count| all.iter().map(|counts| counts.sum(count)).sum::<u64>();
        (sum(|seen| &seen.entries), sum(|seen| &seen.exits))
    });
    let missed = loaded.process.missed();
    assert_eq!(entries, exits + missed.abandoned - before.abandoned, "{}", loaded.name);
    assert_eq!(missed.overflowed, before.overflowed, "{}", loaded.name);
}

const JUMPS: Source = Source {
    name: "jumps",
    text: include_str!("jumps.c"),
    extension: "c",
    flags: &[],
    rounds: 60,
    counts: |_| true,
    unwinds: false,
};

const THROWS: Source = Source {
    name: "throws",
    text: include_str!("throws.cc"),
    extension: "cc",
    flags: &["-Wl,--no-as-needed", "-lstdc++"],
    rounds: 150,
    // No lambda of theirs, which is named after them.
    counts: |name| name.starts_with("level_") && !name.contains("::"),
    unwinds: true,
};

#[test]
fn what_longjmp_leaves_is_accounted_for_and_takes_no_frame() {
    check(&JUMPS);
}

#[test]
fn what_exceptions_leave_is_accounted_for_and_takes_no_frame() {
    check(&THROWS);
}

#[test]
fn programs_come_and_go_while_functions_are_left_by_longjmp() {
    check_coming_and_going(&JUMPS);
}

#[test]
fn programs_come_and_go_while_functions_are_left_by_exceptions() {
    check_coming_and_going(&THROWS);
}
