//! Executes entry and exit: functions that gcc has compiled, hooked in each form, must return
//! what they return unhooked.

mod depth;
mod hardened;
mod programs;
mod registers;
mod signals;
mod thunk;

use core::ops::Range;

use fentry::layout::x86_64::PLAIN;

use crate::hooks::{
    FORMS, Form, Ground, Hooks, Programs, SIDE_STACKS, give_side_stack, make_side_stack, place,
    side_stack,
};
use crate::support::compile::{Build, Compiler, shared_object};
use crate::support::object::Object;
use programs::{Event, entries, exits, take_events};

use super::{levels, widest};
use fentry::emit::Vectors;

/// What `drive` calls, each once.
const DRIVEN: [&str; 16] = [
    "f_int",
    "f_many",
    "f_wide",
    "f_float",
    "f_doubles10",
    "f_x87",
    "f_complex",
    "f_complex_x87",
    "f_longs",
    "f_pair",
    "f_mixed",
    "f_mixed_back",
    "f_big",
    "f_variadic",
    "f_void",
    "f_leaf",
];

/// A copy of the functions that no other test writes into.
struct Functions(Object);

impl Functions {
    fn load(name: &str) -> Self {
        Self(Object::load(&shared_object(&Build {
            name,
            source: include_str!("functions.c"),
            extension: "c",
            compiler: Compiler::Gcc,
            flags: &["-O2", "-fcf-protection=none", "-fpatchable-function-entry=21,16"],
        })))
    }

    /// Hooks the functions with these names; each has its place as its index.
    fn hook(&self, form: Form, names: &[&str], programs: &Programs<'_>) -> Hooks {
        let entries: Vec<u64> = names.iter().map(|name| self.0.address(name) as u64).collect();
        Hooks::new(form, Ground(self.0.address("ground") as u64), &PLAIN, &entries, programs)
    }

    /// A driver of one number.
    fn driver(&self, name: &str) -> impl Fn(i64) -> i64 + use<> {
        // SAFETY: the functions that are asked for here have this type.
        let driver = unsafe { self.0.function::<unsafe extern "C" fn(i64) -> i64>(name) };
        // SAFETY: the drivers take any number; hooks keep to the C ABI.
        move |number| unsafe { driver(number) }
    }

    /// What all functions of `drive` return, for this number.
    fn drive(&self, number: i64) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        // SAFETY: it writes less than 512 bytes.
        let len = unsafe {
            self.0.function::<unsafe extern "C" fn(*mut u8, i64) -> i64>("drive")(
                bytes.as_mut_ptr(),
                number,
            )
        };
        bytes.truncate(len.try_into().expect("a length"));
        bytes
    }
}

/// Every entry has its exit, inside the exits of the calls around it, with the same arguments.
fn check_pairs(events: &[Event]) {
    let mut open: Vec<Event> = Vec::new();
    for event in events {
        if event.exit {
            let entry = open.pop().expect("an exit follows an entry");
            assert_eq!(*event, Event { exit: true, ..entry });
        } else {
            open.push(*event);
        }
    }
    assert_eq!(open, []);
}

/// Runs `drive` hooked and compares with what it returned unhooked.
fn check_drive(functions: &Functions, hooks: &Hooks, number: i64, unhooked: &[u8]) {
    assert_eq!(functions.drive(number), unhooked, "what hooked functions return");
    let events = take_events();
    check_pairs(&events);
    let indexes: Vec<u32> =
        events.iter().filter(|event| !event.exit).map(|event| event.index).collect();
    assert_eq!(indexes, (0..15).collect::<Vec<_>>(), "every function once");
    for event in &events {
        let name = DRIVEN[event.index as usize];
        assert_eq!(event.function, functions.0.address(name) as u64, "{name}");
        assert!(!hooks.is_own(event.caller), "{name} returns to its caller");
    }
    let [a, b, ..] = events[0].args.map(|argument| argument as i32);
    assert_eq!((i64::from(a), b), (number, 5), "the arguments of f_int");
}

#[test]
fn every_kind_of_value_arrives_and_returns() {
    let functions = Functions::load("exits-values");
    let unhooked = [1, -3, 1000].map(|number| functions.drive(number));
    assert!(unhooked[0] != unhooked[1] && unhooked[1] != unhooked[2], "they tell numbers apart");
    // The notes are taken by Rust code, which uses vector registers.
    for vectors in levels().filter(|&vectors| vectors > Vectors::Untouched) {
        for form in FORMS {
            let side_stack = give_side_stack(4);
            let programs = Programs {
                entries: &entries(vectors),
                exits: &exits(vectors),
                ..Programs::none(vectors)
            };
            let hooks = functions.hook(form, &DRIVEN, &programs);
            for (number, unhooked) in [1, -3, 1000].into_iter().zip(&unhooked) {
                check_drive(&functions, &hooks, number, unhooked);
            }
            assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0), "{form:?}");
            assert_eq!(side_stack.abandoned(), 0, "{form:?}");
            drop(hooks);
            assert_eq!(functions.drive(1), unhooked[0]);
            assert_eq!(take_events(), [], "nothing is hooked any more");
        }
    }
}

#[test]
fn wide_vectors_arrive_and_return() {
    let functions = Functions::load("exits-vectors");
    let kinds = [(Vectors::Ymm, "m256", 4), (Vectors::Zmm, "m512", 8)];
    for (needed, kind, count) in kinds {
        if widest() < needed {
            println!("SKIPPED: {kind}: this CPU has no such registers");
            continue;
        }
        let drive = |number| {
            let mut values = [0.0_f64; 8];
            // SAFETY: the CPU has the registers, and it writes `count` doubles.
            unsafe {
                functions
                    .0
                    .function::<unsafe extern "C" fn(*mut f64, f64)>(&format!("drive_{kind}"))(
                    values.as_mut_ptr(),
                    number,
                )
            };
            values
        };
        let unhooked = drive(2.5);
        assert!(unhooked[..count].iter().all(|value| *value != 0.0), "{unhooked:?}");
        for form in FORMS {
            give_side_stack(1);
            let vectors = widest();
            let programs = Programs {
                entries: &entries(vectors),
                exits: &exits(vectors),
                ..Programs::none(vectors)
            };
            let _hooks = functions.hook(form, &[&format!("f_{kind}")], &programs);
            assert_eq!(drive(2.5), unhooked, "{form:?}");
            let events = take_events();
            assert_eq!(events.len(), 2, "{form:?}");
            check_pairs(&events);
        }
    }
}

#[test]
fn an_exit_program_changes_what_is_returned() {
    let functions = Functions::load("exits-change");
    let change = programs::call_of(programs::change as extern "C" fn(_, _, _) as usize as u64, 0);
    let leaf = functions.driver("f_leaf");
    // SAFETY: its type in the C source, whose two words are returned in two registers.
    let longs = unsafe { functions.0.function::<extern "C" fn(i64, i64) -> i128>("f_longs") };
    for form in FORMS {
        give_side_stack(1);
        let exits = [change, change];
        let programs = Programs { exits: &exits, ..Programs::none(Vectors::Xmm) };
        let _hooks = functions.hook(form, &["f_leaf", "f_longs"], &programs);
        assert_eq!(leaf(5), 2_000_006, "{form:?}");
        let [low, high] = [longs(7, 9), longs(7, 9) >> 64].map(|half| half as i64);
        assert_eq!([low, high], [2_000_009, 9], "{form:?}");
    }
}

#[test]
fn threads_have_a_side_stack_each_made_at_their_first_call() {
    let functions = Functions::load("exits-threads");
    let unhooked: Vec<Vec<u8>> = (0..50).map(|number| functions.drive(number)).collect();
    let down = functions.driver("drive_down");
    for form in FORMS {
        let vectors = widest();
        let programs = Programs {
            side_stack: place(Some(make_side_stack), vectors),
            entries: &entries(vectors),
            exits: &exits(vectors),
            ..Programs::none(vectors)
        };
        let names = [&DRIVEN[..], &["f_down"]].concat();
        let hooks = functions.hook(form, &names, &programs);
        let run = |numbers: Range<i64>| {
            assert!(side_stack().is_none(), "a new thread");
            for number in numbers {
                check_drive(&functions, &hooks, number, &unhooked[number as usize]);
                assert_eq!(down(30), 30 * 31 / 2 + 1);
                let events = take_events();
                assert_eq!(events.len(), 2 * 32);
                check_pairs(&events);
            }
            let side_stack = side_stack();
            assert_eq!(side_stack.is_some(), SIDE_STACKS.contains(&form));
            assert!(side_stack.is_none_or(|side_stack| side_stack.depth() == 0));
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| run(0..50));
            }
        });
    }
}
