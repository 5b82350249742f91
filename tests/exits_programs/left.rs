//! Programs that leave their functions without a return: in C by `longjmp`, in C++ by exceptions.

use core::sync::atomic::Ordering::Relaxed;

use crate::counts::{Counts, Well, on_threads};
use crate::support::compile::{Build, compilers, shared_object};
use crate::support::object::Object;
use crate::{alone, support};

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
}

/// Runs the program unhooked and hooked, and compares.
fn check(source: &Source) {
    let _alone = alone();
    let process = support::process();
    let well = Well::dig(process);
    for compiler in compilers() {
        for optimisation in ["-O0", "-O2"] {
            let what = format!("{}-{}{optimisation}", source.name, compiler.command());
            let flags = [optimisation, "-falign-functions=16", "-fpatchable-function-entry=21,16"];
            let object = Object::load(&shared_object(&Build {
                name: &what,
                source: source.text,
                extension: source.extension,
                compiler,
                flags: &[&flags, source.flags].concat(),
            }));
            process.refresh().expect("the object was loaded a moment ago");
            let functions = process.functions().module(&object.module()).expect("a pattern");
            // SAFETY: its type in the source.
            let run: Run = unsafe { object.function("run") };
            let work = |seed| {
                let mut counted = Counted::default();
                // SAFETY: any numbers will do.
                let result = unsafe { run(seed, source.rounds, &mut counted) };
                (result, counted)
            };

            let unhooked = on_threads(work);
            let (counts, link) = Counts::attach(process, &functions);
            let hooked = on_threads(|seed| {
                let done = work(seed);
                well.assert_empty();
                done
            });
            link.detach().expect("an attached link detaches");
            assert_eq!(hooked, unhooked, "{what}");

            counts.assert_balanced(&what);
            let mut seen = Counted::default();
            for (function, of_function) in functions.iter().zip(counts.seen.iter()) {
                if (source.counts)(&function.name()) {
                    seen.calls += of_function.entries.load(Relaxed);
                    seen.returned += of_function.exits.load(Relaxed);
                }
            }
            let counted = Counted {
                calls: hooked.iter().map(|(_, counted)| counted.calls).sum(),
                returned: hooked.iter().map(|(_, counted)| counted.returned).sum(),
            };
            assert_eq!(seen, counted, "{what}: what was seen, and what the program counted");
            let left = counted.calls - counted.returned;
            assert!(counted.returned > 1000 && left > 10_000, "{what}: {counted:?}");
        }
    }
}

#[test]
fn what_longjmp_leaves_is_accounted_for_and_takes_no_frame() {
    check(&Source {
        name: "jumps",
        text: include_str!("jumps.c"),
        extension: "c",
        flags: &[],
        rounds: 60,
        counts: |_| true,
    });
}

#[test]
fn what_exceptions_leave_is_accounted_for_and_takes_no_frame() {
    check(&Source {
        name: "throws",
        text: include_str!("throws.cc"),
        extension: "cc",
        flags: &["-Wl,--no-as-needed", "-lstdc++"],
        rounds: 150,
        // No lambda of theirs, which is named after them.
        counts: |name| name.starts_with("level_") && !name.contains("::"),
    });
}
