//! Executes images on this machine: a hand-made function whose patch site calls a body, called
//! with every register full, and programs that leave nothing as it was.

mod code;
#[cfg(feature = "std")]
mod exits;
mod machine;

use std::sync::{Mutex, MutexGuard, PoisonError};

use fentry::addr::Entry;
use fentry::emit::x86_64::{Check, EntryBody};
use fentry::emit::{Context, CookiePlace, IndexFrom, Mitigations, ProgramCall, Stride, Vectors};
use fentry::layout::EntryLayout;
use fentry::layout::x86_64::{IBT, IBT_UNPADDED, PLAIN, PLAIN_UNPADDED};

use crate::mitigated::COUNT;
use code::Hooked;
use machine::{CHANGE, RETURNED, Registers, Seen, State, call, observe, returns_to};

/// The machine's state is one for the process.
static TURN: Mutex<()> = Mutex::new(());

const LAYOUTS: [EntryLayout; 4] = [PLAIN, IBT, PLAIN_UNPADDED, IBT_UNPADDED];
const INDEX: u32 = 5;
/// `rsp` of a caller that keeps to the psABI, and of one that does not.
const SHIFTS: [usize; 2] = [0, 8];
/// Where `rdi`, `rsi`, `rdx`, `rcx`, `r8` and `r9` are among registers by number.
const ARGUMENTS: [usize; 6] = [7, 6, 2, 1, 8, 9];
const RAX: usize = 0;
const RSP: usize = 4;
const RBP: usize = 5;
const R10: usize = 10;
const R11: usize = 11;
const CALLEE_SAVED: [usize; 6] = [3, 5, 12, 13, 14, 15];
const DIRECTION: u64 = 1 << 10;

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The widest vector registers that this CPU has.
fn widest() -> Vectors {
    if std::is_x86_feature_detected!("avx512f") {
        Vectors::Zmm
    } else if std::is_x86_feature_detected!("avx") {
        Vectors::Ymm
    } else {
        Vectors::Xmm
    }
}

fn levels() -> impl Iterator<Item = Vectors> {
    let has = |&level: &Vectors| {
        let has = level <= widest();
        if !has {
            println!("SKIPPED: images that save {level:?}: this CPU has no such registers");
        }
        has
    };
    [Vectors::Untouched, Vectors::Xmm, Vectors::Ymm, Vectors::Zmm].into_iter().filter(has)
}

/// Numbers without a pattern, the same in every run (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn registers(&mut self) -> Registers {
        Registers {
            general: [(); 16].map(|()| self.next()),
            vectors: [(); 8].map(|()| [(); 8].map(|()| self.next())),
            flags: 0,
            stack: [(); 4].map(|()| self.next()),
        }
    }
}

/// Cookies of lane 0 in records, and of the other lanes in columns; and programs' data.
struct Cookies {
    records: Vec<[u64; 2]>,
    columns: Vec<Vec<u64>>,
}

impl Cookies {
    fn new(random: &mut Random, programs: usize) -> Self {
        let mut column = || (0..=INDEX).map(|_| random.next()).collect::<Vec<_>>();
        let columns = (1..programs).map(|_| column()).collect();
        Self { records: column().into_iter().map(|cookie| [cookie, !cookie]).collect(), columns }
    }

    /// Of the program at `position`.
    fn place(&self, position: usize) -> CookiePlace {
        match position {
            0 => CookiePlace { column: self.records.as_ptr() as u64, stride: Stride::Sixteen },
            _ => CookiePlace {
                column: self.columns[position - 1].as_ptr() as u64,
                stride: Stride::Eight,
            },
        }
    }

    fn value(&self, position: usize) -> u64 {
        match position {
            0 => self.records[INDEX as usize][0],
            _ => self.columns[position - 1][INDEX as usize],
        }
    }
}

/// By turns none, 32 and 64 bits.
fn data(position: usize) -> Option<u64> {
    match position % 3 {
        0 => None,
        1 => Some(0xffff_0000 + position as u64),
        _ => Some(0xffff_0000_0000_0000 + position as u64),
    }
}

/// One function, its image and its programs.
struct Case {
    layout: EntryLayout,
    vectors: Vectors,
    programs: usize,
    near: bool,
    change: bool,
    mitigations: Mitigations,
}

impl Case {
    fn run(&self, random: &mut Random) {
        let cookies = Cookies::new(random, self.programs);
        let mut hooked = Hooked::new(&self.layout, INDEX, self.mitigations, check());
        let target = if self.near { hooked.near(observe()) } else { observe() };
        let call_of = |position| ProgramCall {
            target,
            data: data(position),
            cookie: cookies.place(position),
            session: None,
        };
        let calls: Vec<_> = (0..self.programs).map(call_of).collect();
        let direct = hooked.hook(&EntryBody {
            index: self.index(),
            return_to_entry: self.layout.return_to_entry(),
            vectors: self.vectors,
            calls: &calls,
        });
        assert_eq!(direct, self.near, "which kind of call was tested");
        for shift in SHIFTS {
            let mut given = random.registers();
            let state = State::new(widest(), self.vectors, self.change);
            // SAFETY: a hand-made function whose own body is the machine's; its programs are
            // the machine's `observe`.
            let state = unsafe { call(hooked.entry(), &mut given, shift, state) };
            self.function_got(&given, &state);
            self.programs_saw(&given, &state, &cookies, hooked.entry());
        }
        self.mitigated(hooked.counts());
    }

    /// What was counted on the way, by mitigations that can be seen to work.
    fn mitigated(&self, [depth, returns, indirect]: [u64; 3]) {
        let runs = SHIFTS.len();
        let calls = self.programs * runs;
        let has = |mitigation| self.mitigations.contains(mitigation);
        let shifted = if has(Mitigations::CALL_DEPTH) { 5 * calls } else { 0 };
        assert_eq!(depth, COUNT.checked_shr(shifted as u32).unwrap_or(0), "the count of calls");
        assert_eq!(returns, if has(Mitigations::RETURN_THUNK) { runs as u64 } else { 0 });
        let through = has(Mitigations::RETPOLINE) && !self.near;
        assert_eq!(indirect, if through { calls as u64 } else { 0 });
    }

    fn index(&self) -> IndexFrom {
        match self.layout.return_to_index() {
            Some(return_to_index) => IndexFrom::Slot { return_to_index },
            None => IndexFrom::Thunk,
        }
    }

    /// What argument `number` became after `programs` programs.
    fn changed(&self, given: &Registers, number: usize, programs: usize) -> u64 {
        let given = given.general[ARGUMENTS[number]];
        if self.change { given.wrapping_add(CHANGE * programs as u64) } else { given }
    }

    fn function_got(&self, given: &Registers, state: &State) {
        let mut expected = given.general;
        for (number, &register) in ARGUMENTS.iter().enumerate() {
            expected[register] = self.changed(given, number, self.programs);
        }
        let got = &state.at_origin;
        expected[R11] = got.general[R11];
        assert_eq!(got.general, expected, "registers by number");
        let kept = match self.vectors {
            Vectors::Xmm => 2,
            Vectors::Ymm => 4,
            _ => match widest() {
                Vectors::Xmm => 2,
                Vectors::Ymm => 4,
                _ => 8,
            },
        };
        for (number, (got, given)) in got.vectors.iter().zip(&given.vectors).enumerate() {
            assert_eq!(got[..kept], given[..kept], "vector register {number}");
        }
        assert_eq!(got.flags & DIRECTION, 0, "the direction flag");
        assert_eq!(got.stack, given.stack, "arguments on the stack");

        assert_eq!(state.result, RETURNED);
        for register in CALLEE_SAVED {
            let after = state.after[register];
            assert_eq!(after, given.general[register], "register {register} after the call");
        }
        assert_eq!(state.after[RSP], given.general[RSP] + 8, "rsp after the call");
    }

    fn programs_saw(&self, given: &Registers, state: &State, cookies: &Cookies, entry: u64) {
        assert_eq!(state.count, self.programs as u64, "programs that ran");
        for (position, seen) in state.seen[..self.programs].iter().enumerate() {
            let mut context = [0; 14];
            for (number, argument) in context[..6].iter_mut().enumerate() {
                *argument = self.changed(given, number, position);
            }
            context[6] = given.general[RAX];
            context[7] = given.general[R10];
            // Where vectors are saved, if they are, is where the stack ends at the call.
            let (width, saved) = saved_vectors(self.vectors, seen);
            context[8] = u64::from(INDEX) | width << 33;
            context[9] = entry;
            context[10] = saved;
            context[11] = given.general[RBP];
            context[12] = self.layout.origin(Entry::new(entry)).get();
            context[13] = returns_to();
            let expected = Seen {
                context,
                cookie: cookies.value(position),
                data: data(position).unwrap_or(seen.data),
                // Its own return address is below 16 aligned bytes.
                rsp: seen.rsp & !0xf | 8,
                flags: seen.flags & !DIRECTION,
                // Below the function's return address there are the body's and ten words.
                address: given.general[RSP] - 104,
                // It ends as a frame of the function's would begin.
                rbp: given.general[RSP] - 16,
                link: [context[11], context[12]],
            };
            assert_eq!(*seen, expected, "what program {position} saw");
        }
    }
}

#[test]
fn functions_get_what_they_were_given_and_programs_see_it() {
    let _turn = turn();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for layout in LAYOUTS {
        for vectors in levels() {
            for programs in [1, 3, 16] {
                for (near, change) in [(true, false), (false, false), (true, true)] {
                    let mitigations = Mitigations::empty();
                    Case { layout, vectors, programs, near, change, mitigations }.run(&mut random);
                }
            }
        }
    }
}

/// With the hash that happens to stand before the machine's `observe`: whatever the check
/// compares, it finds equal.
fn check() -> Check {
    // SAFETY: code of this process; functions before it are there.
    let hash = unsafe {
        core::ptr::with_exposed_provenance::<u32>(observe() as usize - 4).read_unaligned()
    };
    Check::Kcfi { hash, padding: 0 }
}

#[test]
fn hardened_bodies_do_what_plain_ones_do() {
    let _turn = turn();
    let mut random = Random(0x0f1e_2d3c_4b5a_6978);
    for bits in 0..1 << 7 {
        let mitigations = Mitigations::from_bits_retain(bits);
        if mitigations.contains(Mitigations::RETPOLINE | Mitigations::LFENCE) {
            continue;
        }
        for layout in [IBT, IBT_UNPADDED] {
            for near in [true, false] {
                let vectors = Vectors::Xmm;
                Case { layout, vectors, programs: 3, near, change: true, mitigations }
                    .run(&mut random);
            }
        }
    }
}

#[test]
fn a_function_without_programs_gets_what_it_was_given() {
    let _turn = turn();
    let mut random = Random(0x0123_4567_89ab_cdef);
    for layout in LAYOUTS {
        let case = Case {
            layout,
            vectors: Vectors::Untouched,
            programs: 0,
            near: true,
            change: false,
            mitigations: Mitigations::empty(),
        };
        let hooked = Hooked::new(&layout, INDEX, Mitigations::empty(), Check::None);
        let mut given = random.registers();
        let state = State::new(widest(), Vectors::Untouched, false);
        // SAFETY: as above; its site holds a nop, or calls a thunk that returns.
        let state = unsafe { call(hooked.entry(), &mut given, 0, state) };
        case.function_got(&given, &state);
        assert_eq!(state.count, 0);
    }
}

static SHOWN: Mutex<Vec<[u64; 13]>> = Mutex::new(Vec::new());

/// What a context says of saved vectors: their width, and where they are, which is undefined
/// where there are none.
fn saved_vectors(vectors: Vectors, seen: &machine::Seen) -> (u64, u64) {
    match vectors {
        Vectors::Untouched => (0, seen.context[10]),
        Vectors::Xmm => (1, seen.rsp + 8),
        Vectors::Ymm => (2, seen.rsp + 8),
        _ => (3, seen.rsp + 8),
    }
}

/// A program in Rust, which asks the context for everything and reverses the arguments.
unsafe extern "C" fn reverse(context: *mut Context, cookie: u64, data: u64) {
    // SAFETY: an image gives a context that nobody else has.
    let context = unsafe { &mut *context };
    let [a, b, c, d, e, f] = *context.args();
    // SAFETY: the machine passes four words on the stack.
    let stack = [0, 3].map(|position| unsafe { context.stack_argument(position) });
    let [g, h] = stack;
    let (index, function) = (context.index().into(), context.function().get());
    let shown = [a, b, c, d, e, f, g, h, index, function, context.caller().get(), cookie, data];
    SHOWN.lock().unwrap().push(shown);
    context.args_mut().reverse();
}

#[test]
fn a_program_in_rust_reads_the_context_and_changes_arguments() {
    let _turn = turn();
    let mut random = Random(0xfeed_face_cafe_beef);
    let cookies = Cookies::new(&mut random, 1);
    let mut hooked = Hooked::new(&PLAIN, INDEX, Mitigations::empty(), Check::None);
    let target = reverse as unsafe extern "C" fn(_, _, _) as usize as u64;
    let calls = [ProgramCall { target, data: Some(77), cookie: cookies.place(0), session: None }];
    hooked.hook(&crate::body(&PLAIN, widest(), &calls));
    let mut given = random.registers();
    let state = State::new(widest(), widest(), false);
    // SAFETY: as above; `reverse` may do what compiled code does.
    let state = unsafe { call(hooked.entry(), &mut given, 8, state) };

    let args = ARGUMENTS.map(|register| given.general[register]);
    let [a, b, c, d, e, f] = args;
    let [g, _, _, h] = given.stack;
    let index = INDEX.into();
    let cookie = cookies.value(0);
    let shown = [a, b, c, d, e, f, g, h, index, hooked.entry(), returns_to(), cookie, 77];
    assert_eq!(*SHOWN.lock().unwrap(), [shown]);
    let got = ARGUMENTS.map(|register| state.at_origin.general[register]);
    assert_eq!(got, [f, e, d, c, b, a]);
    assert_eq!(state.at_origin.vectors, given.vectors.map(widened));
}

/// What of a vector register this CPU has.
fn widened(vector: [u64; 8]) -> [u64; 8] {
    let words = match widest() {
        Vectors::Xmm => 2,
        Vectors::Ymm => 4,
        _ => 8,
    };
    core::array::from_fn(|word| if word < words { vector[word] } else { 0 })
}
