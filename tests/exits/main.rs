//! Programs at the exit of functions, by way of the front door: what they see and change, in
//! which order they run, and what becomes of calls that are on their way meanwhile.

mod loaded;
mod log;
#[path = "../support/mod.rs"]
mod support;

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fentry::host::{Context, ExitContext, Program, Recursion, SIDE_STACK_DEPTH, Session};
use loaded::{LAYOUTS, Loaded, STACK_ARGUMENTS, alone};
use log::Log;

#[test]
fn an_exit_program_sees_arguments_and_results_and_changes_them() {
    Loaded::each(|loaded| {
        let log = Log::default();
        let seen = log.clone();
        let look = Program::exit(move |context: &mut ExitContext, cookie| {
            let [value, _] = context.returned();
            seen.add(format_args!("{} {} {cookie}", context.args()[0] as i32, value as i32));
            context.set_returned([value + 100, 0]);
        })
        .cookies(fentry::host::Cookies::Same(7));
        let link = loaded.attach("identity", look).unwrap();
        assert_eq!(loaded.int("identity")(5), 105);
        assert_eq!(log.take(), ["5 5 7"]);
        drop(link);
        assert_eq!(loaded.int("identity")(5), 5);
        assert_eq!(log.take(), [""; 0]);
    });
}

#[test]
fn vectors_and_stack_arguments_are_seen_and_changed() {
    Loaded::each(|loaded| {
        let log = Log::default();
        let (before, after) = (log.clone(), log.clone());
        let halving = [
            Program::new(move |context: &mut Context, _| {
                before.add(context.double(0).expect("vectors are saved"));
                let doubled = (context.double(0).unwrap() * 2.0).to_le_bytes();
                context.vector_mut(0).unwrap()[..8].copy_from_slice(&doubled);
            }),
            Program::exit(move |context, _| {
                after.add(context.double(0).expect("vectors are saved"));
                context.vector_mut(0).unwrap()[..8].copy_from_slice(&1.5_f64.to_le_bytes());
            }),
        ];
        let link = loaded.attach("half", halving).unwrap();
        // SAFETY: its type in the C source.
        let half = unsafe { loaded.object.function::<extern "C" fn(f64) -> f64>("half") };
        assert_eq!(half(10.0), 1.5);
        assert_eq!(log.take(), ["10", "10"]);
        drop(link);
        assert_eq!(half(10.0), 5.0);

        type Many = extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64) -> i64;
        // SAFETY: its type in the C source.
        let many = unsafe { loaded.object.function::<Many>("many") };
        let seen = log.clone();
        let both = |at_exit: bool| {
            let seen = seen.clone();
            let entry = Program::new(move |context: &mut Context, _| {
                // SAFETY: it has two arguments on the stack.
                let [g, h] = [0, 1].map(|position| unsafe { context.stack_argument(position) });
                seen.add(format_args!("{g} {h}"));
                // SAFETY: as above.
                unsafe { context.set_stack_argument(1, h + 1) };
            });
            let exit = Program::exit(|_, _| {});
            if at_exit { vec![entry, exit] } else { vec![entry] }
        };
        let unhooked = many(1, 1, 1, 1, 1, 1, 70, 80);
        for at_exit in [false, true] {
            let _link = loaded.attach("many", both(at_exit)).unwrap();
            assert_eq!(many(1, 1, 1, 1, 1, 1, 70, 80), unhooked + 8);
            assert_eq!(log.take(), ["70 80"]);
        }
        assert_eq!(many(1, 1, 1, 1, 1, 1, 70, 80), unhooked);
    });
}

#[test]
fn programs_run_in_order_and_at_the_exit_in_reverse() {
    Loaded::each(|loaded| {
        let log = Log::default();
        let identity = loaded.int("identity");
        let first = loaded
            .attach("identity", [log.exit("a"), log.entry("b"), log.session("c", Session::Exit)])
            .unwrap();
        let second = loaded
            .attach("identity", [log.session("d", Session::NoExit), log.exit("e"), log.entry("f")])
            .unwrap();
        assert_eq!(identity(3), 3);
        let entries = ["b 0", "c begins", "d begins", "f 0"];
        assert_eq!(log.take(), [&entries[..], &["e 0", "c ends, 4", "a 0"]].concat());
        first.disable().unwrap();
        assert_eq!(identity(4), 4);
        assert_eq!(log.take(), ["d begins", "f 0", "e 0"]);
        first.enable().unwrap();
        second.detach().unwrap();
        assert_eq!(identity(5), 5);
        assert_eq!(log.take(), ["b 0", "c begins", "c ends, 6", "a 0"]);
    });
}

#[test]
fn a_modified_return_skips_the_origin_and_not_the_exits() {
    Loaded::each(|loaded| {
        let log = Log::default();
        let never = loaded.int("never");
        let programs = [
            log.modify("zero", 0),
            log.modify("seven", 7),
            log.modify("not asked", 8),
            log.entry("entry"),
            log.session("session", Session::Exit),
            log.exit("exit"),
        ];
        let _link = loaded.attach("never", programs).unwrap();
        assert_eq!(never(1), 7);
        let expected = ["entry 0", "session begins", "zero", "seven", "exit 0", "session ends, 2"];
        assert_eq!(log.take(), expected);
    });
}

#[test]
fn a_replacement_runs_instead_and_can_call_the_origin() {
    static ORIGIN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn doubled(value: i32) -> i32 {
        let origin = ORIGIN.load(Ordering::Relaxed) as usize as *const ();
        // SAFETY: the origin of a function of this type.
        let origin: extern "C" fn(i32) -> i32 = unsafe { core::mem::transmute(origin) };
        2 * origin(value)
    }
    Loaded::each(|loaded| {
        let log = Log::default();
        let identity = loaded.int("identity");
        let instead = loaded.object.address("instead") as *const ();
        // In reach of a jump, and out of reach.
        for (replacement, expected) in
            [(instead, -21), (doubled as extern "C" fn(i32) -> i32 as *const (), 42)]
        {
            let function = loaded.functions.named("identity");
            ORIGIN.store(function.iter().next().unwrap().origin().get(), Ordering::Relaxed);
            let replaced = loaded.attach("identity", Program::replace(replacement)).unwrap();
            assert_eq!(identity(21), expected);
            let error = loaded.attach("identity", Program::replace(instead)).unwrap_err();
            assert!(error.to_string().contains("replaced already"), "{error}");
            let around = loaded.attach("identity", [log.entry("before"), log.exit("after")]);
            assert_eq!(identity(21), expected);
            assert_eq!(log.take(), ["before 0", "after 0"]);
            drop(replaced);
            assert_eq!(identity(21), 21);
            assert_eq!(log.take(), ["before 0", "after 0"]);
            drop(around);
            assert_eq!(identity(21), 21);
        }
    });
}

#[test]
fn a_call_leaves_by_the_programs_that_it_came_in_by() {
    Loaded::each(|loaded| {
        let log = Log::default();
        let outer = loaded.long("outer");
        // While `outer` is on its way, a program of `inner` changes what `outer` has.
        let old = loaded.attach("outer", [log.entry("old"), log.exit("old exit")]).unwrap();
        let (old, new) = (Mutex::new(Some(old)), Mutex::new(None));
        let (process, functions) = (loaded.process, loaded.functions.named("outer"));
        let at_exit = log.exit("new exit");
        std::thread::scope(|scope| {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let (done, ready) = std::sync::mpsc::channel::<()>();
            let (go, ready) = (Mutex::new(go), Mutex::new(ready));
            let change = Arc::new(move || {
                go.lock().unwrap().send(()).unwrap();
                ready.lock().unwrap().recv().unwrap();
            });
            let once = Mutex::new(Some(change));
            let pause = Program::new(move |_, _| {
                if let Some(change) = once.lock().unwrap().take() {
                    change();
                }
            });
            let pausing = loaded.attach("inner", pause).unwrap();
            scope.spawn(|| {
                let (wait, done) = (wait, done);
                wait.recv().unwrap();
                drop(old.lock().unwrap().take());
                // SAFETY: as every attachment here.
                let link = unsafe { process.attach(&functions, at_exit) }.unwrap();
                *new.lock().unwrap() = Some(link);
                done.send(()).unwrap();
            });
            assert_eq!(outer(1), 20);
            assert_eq!(log.take(), ["old 0", "old exit 0"]);
            drop(pausing);
        });
        assert_eq!(outer(2), 30);
        assert_eq!(log.take(), ["new exit 0"]);
        drop(new);
        loaded.process.synchronize().unwrap();
        assert_eq!(outer(2), 30);
    });
}

#[test]
fn a_program_that_skips_does_not_recur_and_counts() {
    Loaded::each(|loaded| {
        let inner = loaded.long("inner");
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let calls = Program::new(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            inner(1);
        })
        .recursion(Recursion::Skip);
        let ends = Arc::new(AtomicU64::new(0));
        let ended = Arc::clone(&ends);
        let session = Program::session(
            |_, _, _| Session::Exit,
            move |_, _, _| {
                ended.fetch_add(1, Ordering::Relaxed);
            },
        )
        .recursion(Recursion::Skip);
        let link = loaded.attach("inner", [calls, session]).unwrap();
        let outer = loaded.long("outer");
        for call in 1..=10 {
            assert_eq!(outer(1), 20);
            assert_eq!(count.load(Ordering::Relaxed), call);
            // The program's own call is skipped by both.
            assert_eq!(link.skipped(), 2 * call);
            assert_eq!(ends.load(Ordering::Relaxed), call);
        }
    });
}

#[test]
fn calls_that_are_too_deep_run_unhooked_and_are_counted() {
    Loaded::each(|loaded| {
        let down = loaded.long("down");
        let [entries, exits] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let count = |count: &Arc<AtomicU64>| {
            let count = Arc::clone(count);
            move || {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (at_entry, at_exit) = (count(&entries), count(&exits));
        let programs = [Program::new(move |_, _| at_entry()), Program::exit(move |_, _| at_exit())];
        let link = loaded.attach("down", programs).unwrap();
        let depth = u64::from(SIDE_STACK_DEPTH);
        let before = loaded.process.missed().overflowed;
        assert_eq!(down(depth as i64 + 99), depth as i64 + 100);
        // On the ordinary stack there is room for all.
        let overflowed = if loaded.stack_arguments.is_some() { 0 } else { 100 };
        assert_eq!(loaded.process.missed().overflowed - before, overflowed);
        assert_eq!(entries.load(Ordering::Relaxed), depth + 100 - overflowed);
        assert_eq!(exits.load(Ordering::Relaxed), depth + 100 - overflowed);
        drop(link);
    });
}

#[test]
fn threads_come_and_go() {
    Loaded::each(|loaded| {
        let exits = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&exits);
        let count = Program::exit(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let link = loaded.attach("down", count).unwrap();
        let down = &loaded.long("down");
        for _ in 0..100 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| assert_eq!(down(9), 10));
                }
            });
        }
        assert_eq!(exits.load(Ordering::Relaxed), 100 * 4 * 10);
        assert_eq!(loaded.process.missed().without_side_stack, 0);
        drop(link);
        loaded.process.synchronize().unwrap();
    });
}

#[test]
fn what_is_said_of_arguments_is_said_before_programs_are_attached() {
    Loaded::each(|loaded| {
        let _link = loaded.attach("inner", Program::exit(|_, _| {})).unwrap();
        // SAFETY: it has none, and what is above them is readable.
        let refused = unsafe { loaded.process.set_stack_arguments(&loaded.functions, Some(1)) };
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("inner") && error.contains("detach them"), "{error}");
    });
}

/// Threads that switch stacks inside of functions.
#[test]
fn a_function_may_be_left_on_one_stack_and_entered_on_another() {
    let _alone = alone();
    for (name, layout) in LAYOUTS {
        let loaded = Loaded::new(name, layout, Some(STACK_ARGUMENTS));
        let log = Log::default();
        let link = loaded.attach("switching", [log.entry("in"), log.exit("out")]).unwrap();
        // SAFETY: its type in the C source.
        let run = unsafe { loaded.object.function::<extern "C" fn() -> i64>("two_stacks") };
        // Three calls on each of two stacks, by turns, none of them the last on its stack first.
        assert_eq!(run(), 2 * (1 + 2 + 3));
        let events = log.take();
        let of = |what: &str| events.iter().filter(|event| *event == what).count();
        assert_eq!((of("in 0"), of("out 0")), (6, 6), "{events:?}");
        assert_eq!(events[..2], ["in 0", "in 0"], "the second begins before the first ends");
        drop(link);
        assert_eq!(run(), 12);
    }
}
