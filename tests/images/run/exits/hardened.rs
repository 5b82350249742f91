//! The bodies with every set of mitigations do what plain ones do, and go through what they were
//! told of.

use fentry::emit::x86_64::{Hardening, Preamble};
use fentry::emit::{Context, ExitContext, Mitigations, ProgramCall};

use super::programs::{call_of, entries, exits, take_events};
use super::{DRIVEN, Functions, check_drive, widest};
use crate::hooks::{
    Form, Ground, Hooks, Programs, give_side_stack, make_side_stack, place, side_stack,
};
use crate::mitigated::{COUNT, Thunks};

/// The forms that can be hardened.
const FORMS: [Form; 2] = [Form::SideStack, Form::Frame];

/// Places in the ground behind what [`Hooks`] writes for the functions here.
const THUNKS: u64 = 0x20000;
const NEAR: u64 = 0x21000;
const COUNTS: u64 = 0x30000;
/// What no direct call reaches is so far away, where the kernel keeps to it.
const AWAY: u64 = 8 << 30;
/// Bytes between the entries of two programs.
const ENTRY: u64 = 0x80;

/// Functions, and what mitigations need, within reach of them.
struct Lab {
    functions: Functions,
    ground: Ground,
    thunks: Thunks,
    far: Ground,
}

impl Lab {
    fn new(name: &str) -> Self {
        let functions = Functions::load(name);
        let ground = Ground(functions.0.address("ground") as u64);
        let thunks = Thunks { at: ground.0 + THUNKS, counts: ground.0 + COUNTS };
        ground.make_writable(thunks.counts);
        ground.write(thunks.at, &thunks.code());
        let far = Ground::new(ground.0 - AWAY, 0x1000);
        assert!(far.0.abs_diff(ground.0) > 1 << 32, "{:#x} and {:#x}", far.0, ground.0);
        Self { functions, ground, thunks, far }
    }

    fn each_case(&self, mut each: impl FnMut(&Case<'_>)) {
        for (hardening, preamble) in self.thunks.each_hardening() {
            for form in FORMS {
                for near in [true, false] {
                    each(&Case { lab: self, form, hardening, preamble, near });
                }
            }
        }
    }
}

struct Case<'a> {
    lab: &'a Lab,
    form: Form,
    hardening: Hardening,
    preamble: Preamble,
    /// Whether programs are within a direct call's reach.
    near: bool,
}

impl Case<'_> {
    /// Hooks the functions with these names. Programs are entered through what passes the check.
    fn hook(&self, names: &[&str], programs: &Programs<'_>) -> Hooks {
        let Lab { functions, ground, far, .. } = self.lab;
        let mut at = if self.near { ground.0 + NEAR } else { far.0 };
        let ground = if self.near { *ground } else { *far };
        let mut led = |calls: &[ProgramCall]| -> Vec<ProgramCall> {
            let lead = |call: &ProgramCall| {
                at += ENTRY;
                ProgramCall { target: ground.lead(at, &self.preamble, call.target), ..*call }
            };
            calls.iter().map(lead).collect()
        };
        let (entries, modify) = (led(programs.entries), led(programs.modify));
        let programs = Programs {
            entries: &entries,
            modify: &modify,
            exits: &led(programs.exits),
            hardening: self.hardening,
            ..*programs
        };
        functions.hook(self.form, names, &programs)
    }

    fn name(&self) -> String {
        let Self { form, hardening, near, .. } = self;
        format!("{form:?}, {:?}, near: {near}", hardening.mitigations())
    }
}

/// A program that might skip the function, and never does.
extern "C" fn pass(_: &mut Context, _: u64, _: u64) -> u64 {
    0
}

#[test]
fn every_kind_of_value_arrives_and_returns() {
    let lab = Lab::new("exits-hardened-values");
    let unhooked = lab.functions.drive(-3);
    let vectors = widest();
    let pass: extern "C" fn(_, _, _) -> u64 = pass;
    let programs = Programs {
        entries: &entries(vectors),
        modify: &[call_of(pass as usize as u64, 0)],
        exits: &exits(vectors),
        ..Programs::none(vectors)
    };
    let mut cases = 0;
    lab.each_case(|case| {
        let side_stack = give_side_stack(4);
        let hooks = case.hook(&DRIVEN, &programs);
        check_drive(&lab.functions, &hooks, -3, &unhooked);
        assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0), "{}", case.name());
        assert_eq!(side_stack.abandoned(), 0, "{}", case.name());
        cases += 1;
    });
    // Of two mitigations that exclude each other, three pairs; four others; and a check, of which
    // there are three, or none. In two forms, near and far.
    assert_eq!(cases, 3 * 16 * (1 + 3) * 2 * 2);
}

const SKIPPED: u64 = 5;
const DECLINED: u64 = 6;
const NEITHER: u64 = 7;

/// An entry program whose session tells the exit program of the argument, or declines it.
extern "C" fn tell(context: &mut Context, _: u64, _: u64, session: &mut u64) -> u64 {
    *session = 2 * context.args()[0];
    u64::from(context.args()[0] == DECLINED)
}

extern "C" fn skip(context: &mut Context, _: u64, _: u64) -> u64 {
    if context.args()[0] == SKIPPED { 77 } else { 0 }
}

/// Adds what the session says.
extern "C" fn told(context: &mut ExitContext, _: u64, _: u64, session: &mut u64) {
    let [low, high] = context.returned();
    context.set_returned([low + 1000 * *session, high]);
}

/// Adds the same every time.
extern "C" fn always(context: &mut ExitContext, _: u64, _: u64) {
    let [low, high] = context.returned();
    context.set_returned([low + 100, high]);
}

/// What `f_leaf` then returns for an argument, and how many programs run.
fn expected(argument: u64) -> (u64, u64) {
    match argument {
        // One before it, the first that may skip it, and both behind it.
        SKIPPED => (77 + 100 + 1000 * 2 * SKIPPED, 4),
        // One behind it.
        DECLINED => (DECLINED + 1 + 100, 4),
        _ => (argument + 1 + 100 + 1000 * 2 * argument, 5),
    }
}

#[test]
fn bodies_act_on_what_programs_return_and_go_through_thunks() {
    let lab = Lab::new("exits-hardened-counts");
    let leaf = lab.functions.driver("f_leaf");
    let tell: extern "C" fn(_, _, _, _) -> u64 = tell;
    let [skip, told, always] = [
        skip as extern "C" fn(_, _, _) -> u64 as usize,
        told as extern "C" fn(_, _, _, _) as usize,
        always as extern "C" fn(_, _, _) as usize,
    ]
    .map(|program| call_of(program as u64, 0));
    let tell = ProgramCall { session: Some(3), ..call_of(tell as usize as u64, 0) };
    let told = ProgramCall { session: Some(3), ..told };
    lab.each_case(|case| {
        let has = |mitigation| case.hardening.mitigations().contains(mitigation);
        let mut side_stack = place(Some(make_side_stack), widest());
        if let (Some(make), true) = (&mut side_stack.make, case.near) {
            make.target = lab.ground.lead(lab.ground.0 + NEAR, &Preamble::Endbr64, make.target);
        }
        let programs = Programs {
            side_stack,
            entries: &[tell],
            modify: &[skip, skip],
            exits: &[always, told],
            ..Programs::none(widest())
        };
        let _hooks = case.hook(&["f_leaf"], &programs);
        let run = || {
            for (position, argument) in [NEITHER, SKIPPED, DECLINED].into_iter().enumerate() {
                // SAFETY: writable words, and no other thread runs the images.
                unsafe { lab.thunks.restart() };
                let result = leaf(argument as i64) as u64;
                // SAFETY: as above.
                let [depth, returns, indirect] = unsafe { lab.thunks.counts() };
                let (expected, mut calls) = expected(argument);
                assert_eq!(result, expected, "{argument}: {}", case.name());
                // This thread's first call makes its side stack.
                calls += u64::from(case.form == Form::SideStack && position == 0);
                let shift = if has(Mitigations::CALL_DEPTH) { 5 * calls } else { 0 };
                assert_eq!(depth, COUNT >> shift, "{argument}: {}", case.name());
                let returned = if has(Mitigations::RETURN_THUNK) { 2 } else { 0 };
                assert_eq!(returns, returned, "{argument}: {}", case.name());
                let through = has(Mitigations::RETPOLINE) && !case.near;
                let through = if through { calls } else { 0 };
                assert_eq!(indirect, through, "{argument}: {}", case.name());
            }
            assert!(side_stack_is_empty());
        };
        std::thread::scope(|scope| {
            scope.spawn(run);
        });
    });
}

/// Whether this thread is in no hooked function, as far as its side stack says.
fn side_stack_is_empty() -> bool {
    side_stack().is_none_or(|side_stack| side_stack.depth() == 0)
}

#[test]
fn calls_that_nest_overflow_or_are_left_take_every_path() {
    let lab = Lab::new("exits-hardened-paths");
    let [down, tail, catches, jumps] = ["drive_down", "drive_tail", "drive_catches", "drive_jumps"]
        .map(|driver| lab.functions.driver(driver));
    let vectors = widest();
    let programs =
        Programs { entries: &entries(vectors), exits: &exits(vectors), ..Programs::none(vectors) };
    let names = ["f_down", "f_leaf", "f_first", "f_middle", "f_last", "f_catches", "f_jumps"];
    lab.each_case(|case| {
        let on_side_stack = case.form == Form::SideStack;
        let _hooks = case.hook(&names, &programs);
        // Entries and exits, and what becomes of the side stack.
        let ran = || {
            let events = take_events();
            let exits = events.iter().filter(|event| event.exit).count();
            (events.len() - exits, exits)
        };
        let side_stack = give_side_stack(64);
        assert_eq!((tail(4), ran()), (15 * 1000 + 5, (4, 4)), "{}", case.name());
        assert_eq!((catches(20), ran()), (200, (22, 1)), "{}", case.name());
        assert_eq!((jumps(20), ran()), (21, (22, 1)), "{}", case.name());
        let left = if on_side_stack { 2 * 21 } else { 0 };
        assert_eq!((side_stack.abandoned(), side_stack.overflowed()), (left, 0), "{}", case.name());
        assert!(side_stack_is_empty());

        let side_stack = give_side_stack(10);
        let hooked = if on_side_stack { 10 } else { 102 };
        assert_eq!((down(100), ran()), (5051, (hooked, hooked)), "{}", case.name());
        assert_eq!(side_stack.overflowed(), if on_side_stack { 92 } else { 0 }, "{}", case.name());
        assert!(side_stack_is_empty());
    });
}
