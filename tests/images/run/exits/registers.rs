//! Every register, at the function's entry and after its return, with programs that clobber
//! all they may.

use core::ptr;

use fentry::emit::{CookiePlace, ProgramCall, Stride, Vectors};
use fentry::encode::x86_64::{NOP5, Reg, jmp_reg, mov_imm64};
use fentry::layout::x86_64::PLAIN;

use super::super::machine::{
    CHANGE, RETURNED, Registers, Seen, State, call, observe, origin, returns_to,
};
use super::super::{
    ARGUMENTS, CALLEE_SAVED, DIRECTION, R10, R11, RAX, RBP, RSP, Random, SHIFTS, levels,
    saved_vectors, turn, widest,
};
use crate::hooks::{FORMS, Form, Ground, Hooks, Programs, give_side_stack, side_stack};

const SIZE: usize = 0x10000;
/// Where the function is: behind what [`Hooks`] writes for one function.
const FUNCTION: u64 = 0x8000;

const RBX: usize = 3;

/// A function with a patch site that goes on in the machine's `origin`.
fn function() -> (Ground, u64) {
    let ground = Ground::new(0, SIZE);
    let entry = ground.0 + FUNCTION;
    ground.emit(entry, |code| {
        code.bytes(&NOP5).unwrap();
        mov_imm64(code, Reg::R11, origin()).unwrap();
        jmp_reg(code, Reg::R11).unwrap();
    });
    (ground, entry)
}

/// Cookie and data of the program at `position`, where exit programs follow entry programs.
const fn told(position: u64) -> (u64, u64) {
    (0xc0_0c1e + position, 0xda7a_0000_0000 + position)
}

static COOKIES: [u64; 6] = {
    let mut cookies = [0; 6];
    let mut position = 0;
    while position < 6 {
        cookies[position] = told(position as u64).0;
        position += 1;
    }
    cookies
};

fn observers() -> [ProgramCall; 6] {
    // The function's index is 0.
    core::array::from_fn(|position| ProgramCall {
        target: observe(),
        data: Some(told(position as u64).1),
        cookie: CookiePlace {
            column: ptr::from_ref(&COOKIES[position]) as u64,
            stride: if position == 1 { Stride::Sixteen } else { Stride::Eight },
        },
        session: None,
    })
}

struct Case {
    form: Form,
    vectors: Vectors,
    entries: usize,
    exits: usize,
    change: bool,
}

impl Case {
    fn run(&self, ground: Ground, entry: u64, random: &mut Random) {
        let all = observers();
        let (entries, exits) = (&all[..self.entries], &all[3..][..self.exits]);
        let programs = Programs { entries, exits, ..Programs::none(self.vectors) };
        let _hooks = Hooks::new(self.form, ground, &PLAIN, &[entry], &programs);
        for shift in SHIFTS {
            let mut given = random.registers();
            let state = State::new(widest(), self.vectors, self.change);
            // SAFETY: the function's own body is the machine's; its programs are `observe`.
            let state = unsafe { call(entry, &mut given, shift, state) };
            self.function_got(&given, &state);
            assert_eq!(state.count as usize, self.entries + self.exits);
            self.entries_saw(&given, &state, entry);
            self.exits_saw(&given, &state, entry);
            self.caller_got(&given, &state);
            let side_stack = side_stack().expect("given before");
            assert_eq!((side_stack.depth(), side_stack.overflowed()), (0, 0));
        }
    }

    /// What argument `number` became after `programs` programs.
    fn changed(&self, given: &Registers, number: usize, programs: usize) -> u64 {
        let given = given.general[ARGUMENTS[number]];
        if self.change { given.wrapping_add(CHANGE * programs as u64) } else { given }
    }

    fn function_got(&self, given: &Registers, state: &State) {
        let got = &state.at_origin;
        let mut expected = given.general;
        for (number, &register) in ARGUMENTS.iter().enumerate() {
            expected[register] = self.changed(given, number, self.entries);
        }
        expected[R11] = got.general[R11];
        if self.form == Form::Frame {
            // Its own copy of its arguments, aligned as the caller's; and a frame pointer.
            assert!(got.general[RSP] < given.general[RSP] - 192, "below the frame");
            expected[RSP] = got.general[RSP] & !0xf | given.general[RSP] & 0xf;
            expected[RBP] = given.general[RSP] - 8;
        }
        if self.form == Form::Called {
            // It has its own frame, aligned, whatever the caller's alignment was; and what a
            // function must keep, not use, is its own.
            expected[RSP] = got.general[RSP] & !0xf | 8;
            expected[RBX] = got.general[RBX];
            expected[RBP] = got.general[RBP];
        }
        assert_eq!(got.general, expected, "registers by number, {:?}", self.form);
        let kept = match self.vectors.min(widest()) {
            _ if self.entries == 0 || self.vectors == Vectors::Untouched => words(widest()),
            kept => words(kept),
        };
        for (number, (got, given)) in got.vectors.iter().zip(&given.vectors).enumerate() {
            assert_eq!(got[..kept], given[..kept], "vector register {number}");
        }
        assert_eq!(got.flags & DIRECTION, 0, "the direction flag");
        assert_eq!(got.stack, given.stack, "arguments on the stack");
    }

    fn entries_saw(&self, given: &Registers, state: &State, entry: u64) {
        for (position, seen) in state.seen[..self.entries].iter().enumerate() {
            let argument = |number| self.changed(given, number, position);
            let [a, b, c, d, e, f] = core::array::from_fn(argument);
            let [rax, r10, rbp] = [RAX, R10, RBP].map(|register| given.general[register]);
            // The library's.
            let own = seen.context[12];
            self.frame_pointer_leads_on(given, seen);
            let (width, saved) = saved_vectors(self.vectors, seen);
            let context = if self.form == Form::Called {
                assert_eq!(seen.address, given.general[RSP] - 104, "the stack arguments follow");
                let state = width << 33;
                [a, b, c, d, e, f, rax, r10, state, entry, saved, rbp, own, returns_to()]
            } else {
                let [rax, r10] = [seen.context[6], seen.context[7]];
                // In the frame form, too, four words below the arguments.
                let (state, frame) = ((width << 1 | 1) << 32, given.general[RSP] - 24);
                [a, b, c, d, e, f, rax, r10, state, entry, saved, frame, own, returns_to()]
            };
            assert_eq!(seen.context, context, "entry program {position}");
            assert_eq!((seen.cookie, seen.data), told(position as u64));
            assert_eq!(seen.rsp & 0xf, 8, "aligned for a call");
            assert_eq!(seen.flags & DIRECTION, 0, "the direction flag");
        }
    }

    /// That a walk along frame pointers goes on in the caller.
    fn frame_pointer_leads_on(&self, given: &Registers, seen: &Seen) {
        let caller = match self.form {
            // There is a frame of its own in between.
            Form::Called => seen.link[1],
            _ => returns_to(),
        };
        assert_eq!(seen.link, [given.general[RBP], caller], "{:?}", self.form);
        if let Form::SideStack | Form::Swap = self.form {
            assert_eq!(seen.rbp, seen.address + 96, "the link is in the context");
        }
    }

    fn exits_saw(&self, given: &Registers, state: &State, entry: u64) {
        let seen = &state.seen[self.entries..][..self.exits];
        for (turn, seen) in seen.iter().enumerate() {
            // They run in reverse.
            let position = 3 + self.exits - 1 - turn;
            // Each adds to what the context says of the arguments. On a side stack, that is what
            // the function got.
            let argument = |number: usize| {
                let argument = match self.form {
                    Form::Called => given.general[ARGUMENTS[number]],
                    _ => self.changed(given, number, self.entries),
                };
                if self.change { argument.wrapping_add(CHANGE * turn as u64) } else { argument }
            };
            let [a, b, c, d, e, f] = core::array::from_fn(argument);
            let rdx = self.changed(given, 2, self.entries);
            let (width, saved) = saved_vectors(self.vectors, seen);
            let (state, slot) = match self.form {
                // Its frame is not found by the slot.
                Form::Called => (width << 1, seen.context[11]),
                _ => (width << 1 | 1, given.general[RSP] - 24),
            };
            let own = seen.context[12];
            self.frame_pointer_leads_on(given, seen);
            let state = state << 32;
            let context =
                [a, b, c, d, e, f, RETURNED, rdx, state, entry, saved, slot, own, returns_to()];
            assert_eq!(seen.context, context, "exit program {position}, {:?}", self.form);
            assert_eq!((seen.cookie, seen.data), told(position as u64));
            assert_eq!(seen.rsp & 0xf, 8, "aligned for a call");
            assert_eq!(seen.flags & DIRECTION, 0, "the direction flag");
        }
    }

    fn caller_got(&self, given: &Registers, state: &State) {
        assert_eq!(state.result, RETURNED);
        for register in CALLEE_SAVED {
            let after = state.after[register];
            assert_eq!(after, given.general[register], "register {register} after the call");
        }
        assert_eq!(state.after[RSP], given.general[RSP] + 8, "rsp after the call");
    }
}

/// Words of a vector register.
fn words(vectors: Vectors) -> usize {
    match vectors {
        Vectors::Untouched => 0,
        Vectors::Xmm => 2,
        Vectors::Ymm => 4,
        _ => 8,
    }
}

#[test]
fn functions_get_what_they_were_given_and_callers_what_was_returned() {
    let _turn = turn();
    let mut random = Random(0x0dd_ba11);
    let (ground, entry) = function();
    give_side_stack(1);
    for form in FORMS {
        for vectors in levels() {
            for (entries, exits) in [(0, 0), (0, 1), (1, 0), (1, 1), (3, 3)] {
                for change in [false, true] {
                    let case = Case { form, vectors, entries, exits, change };
                    case.run(ground, entry, &mut random);
                }
            }
        }
    }
}
