//! Entry bodies, run by a machine: any layout, vectors, programs and addresses. And the same with any
//! mitigations, followed on their path.

use fentry::addr::Entry;
use fentry::emit::x86_64::{EntryBody, THUNK_JUMP, THUNK_SIZE, entry_thunk};
use fentry::emit::{CookiePlace, EmitError, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::x86_64::jmp_bytes;
use fentry::encode::{CodeBuffer, EncodeError};
use fentry::layout::{EntryLayout, LandingPad, LayoutSpec, SlotKind};
use iced_x86::{Code, Decoder, DecoderOptions};

use super::guard::{checked, emitted, guard};
use super::input::Input;
use super::machine::{Machine, Stop};
use crate::case::walk_entry_body;

const RAX: usize = 0;
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
const R10: usize = 10;
const R11: usize = 11;
/// Argument registers in the order of the psABI: rdi, rsi, rdx, rcx, r8, r9.
const ARGUMENTS: [usize; 6] = [RDI, RSI, RDX, 1, 8, 9];
/// What a callee may change (psABI 3.2.1), in the numbers of encodings.
const CALLER_SAVED: [usize; 9] = [RAX, 1, RDX, RSI, RDI, 8, 9, R10, R11];
/// Bytes from the context to the function's return address, from the table of `Context`.
const CONTEXT_TO_RETURN: u64 = 96;

const VECTORS: [Vectors; 4] = [Vectors::Untouched, Vectors::Xmm, Vectors::Ymm, Vectors::Zmm];
/// As many programs as a function can have.
const MAX_PROGRAMS: usize = fentry::attach::MAX_PROGRAMS;
/// The stack and what is outside of it are in different halves of the address space.
const HALF: u64 = 1 << 63;

/// A function, what is attached to it, and where everything is.
struct Case {
    entry: Entry,
    layout: EntryLayout,
    index: u32,
    vectors: Vectors,
    programs: Vec<ProgramCall>,
    /// Where the body is.
    at: u64,
    /// Where the thunk is, for a function without a slot.
    thunk: u64,
    /// What programs do to the first argument, one value each.
    arguments: Vec<Option<u64>>,
}

fn layout(input: &mut Input<'_>) -> Option<EntryLayout> {
    let flags = input.u8();
    let landing_pad = if flags & 1 == 0 { LandingPad::None } else { LandingPad::Endbr64 };
    let slot = (flags & 2 != 0).then(|| (SlotKind::MovEax, input.u16()));
    let spec = if flags & 4 == 0 {
        // What compilers make, nearly.
        let slot = slot.map(|(kind, before)| (kind, before % 64));
        let site = landing_pad.size() + u16::from(input.u8() & 3);
        let origin = site + 5 + u16::from(input.u8() & 3);
        LayoutSpec { padding: 64, slot, landing_pad, site, site_len: 5, origin }
    } else {
        let (padding, site, site_len) = (input.u16(), input.u16(), input.u16());
        LayoutSpec { padding, slot, landing_pad, site, site_len, origin: input.u16() }
    };
    match EntryLayout::new(spec) {
        Ok(layout) => Some(layout),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn case(input: &mut Input<'_>) -> Option<Case> {
    let layout = layout(input)?;
    let entry = Entry::new(input.u64());
    let half = entry.get() & HALF;
    let mut programs = Vec::new();
    let mut arguments = Vec::new();
    let at = input.address(entry.get());
    let thunk = input.address(at);
    let index = input.u32();
    let vectors = input.choose(&VECTORS);
    for _ in 0..usize::from(input.u8()) % (MAX_PROGRAMS + 1) {
        let flags = input.u8();
        let stride = if flags & 1 == 0 { Stride::Eight } else { Stride::Sixteen };
        let data = match flags & 6 {
            0 => None,
            2 => Some(u64::from(input.u32())),
            _ => Some(input.u64()),
        };
        // Cookies that reach neither the stack nor the end of the address space.
        let column = input.u64() & !(3 << 62) | half;
        let cookie = CookiePlace { column, stride };
        programs.push(ProgramCall { target: input.address(at), data, cookie, session: None });
        arguments.push((flags & 8 != 0).then(|| input.u64()));
    }
    Some(Case { entry, layout, index, vectors, programs, at, thunk, arguments })
}

impl Case {
    fn body(&self) -> EntryBody<'_> {
        let index = match self.layout.return_to_index() {
            Some(return_to_index) => IndexFrom::Slot { return_to_index },
            None => IndexFrom::Thunk,
        };
        EntryBody {
            index,
            return_to_entry: self.layout.return_to_entry(),
            vectors: self.vectors,
            calls: &self.programs,
        }
    }

    /// Emits the body, and sees that a buffer that is too small is refused.
    fn emit(&self) -> Vec<u8> {
        let mut bytes = vec![0; EntryBody::max_size(self.programs.len())];
        let mut code = CodeBuffer::new(&mut bytes, self.at);
        self.body().emit(&mut code).expect("max_size is enough");
        let len = code.position();
        bytes.truncate(len);
        for short in [0, len / 3, len / 2, len - 1] {
            let mut small = vec![0; short];
            let refused = self.body().emit(&mut CodeBuffer::new(&mut small, self.at));
            assert!(
                matches!(refused, Err(EmitError::Encode(EncodeError::Overflow { .. }))),
                "{refused:?}"
            );
        }
        bytes
    }

    /// The machine at the first instruction behind the patch site's call.
    fn machine<'a>(&self, code: Vec<(u64, &'a [u8])>, rip: u64, seed: u8) -> Machine<'a> {
        let stack = (self.entry.get() & HALF ^ HALF) + (1 << 40) + u64::from(seed);
        let mut machine = Machine::new(stack, code);
        for (number, register) in (0..).zip(&mut machine.regs) {
            if number != RSP {
                *register = 0x0101_0101_0101_0101_u64.wrapping_mul(u64::from(seed) + number as u64);
            }
        }
        for (number, vector) in (1..).zip(&mut machine.vectors) {
            vector.fill(seed ^ number);
        }
        machine.rip = rip;
        machine.set_stack_word(stack, self.layout.return_address(self.entry).get());
        machine.set_stack_word(stack.wrapping_add(8), 0xca11_e400_0000_0000 | u64::from(seed));
        if let Some(slot) = self.layout.slot(self.entry) {
            // `mov eax, imm32`: the index is one byte in.
            machine.allow(slot.get().wrapping_add(1), 4, u64::from(self.index));
        }
        for program in &self.programs {
            let place = self.cookie_at(program);
            machine.allow(place, 8, cookie(place));
        }
        machine
    }

    fn cookie_at(&self, program: &ProgramCall) -> u64 {
        let stride = match program.cookie.stride {
            Stride::Eight => 8,
            Stride::Sixteen => 16,
        };
        program.cookie.column + u64::from(self.index) * stride
    }

    /// Runs the programs' calls to the end and compares what each sees.
    fn run(&self, machine: &mut Machine<'_>) {
        let stack = machine.regs[RSP];
        let context = stack.wrapping_sub(CONTEXT_TO_RETURN);
        let entered = machine.regs;
        let vectors = machine.vectors;
        let mut expected = entered;
        let mut calls = Vec::new();
        for (program, change) in self.programs.iter().zip(&self.arguments) {
            let stop = machine.run();
            let Stop::Call { target, from, through_register } = stop else {
                panic!("{stop:?} before every program was called");
            };
            assert_eq!(target, program.target);
            if through_register {
                // A direct call would have ended here, behind no `mov r11, imm64`.
                let direct = from.wrapping_sub(13).wrapping_add(5);
                let distance = target.wrapping_sub(direct).cast_signed();
                assert!(i32::try_from(distance).is_err(), "{target:#x} could be called directly");
            }
            assert_eq!(machine.regs[RSP] % 16, 0, "psABI 3.2.2: aligned before a call");
            assert_eq!(machine.regs[RDI], context);
            assert_eq!(machine.regs[RSI], cookie(self.cookie_at(program)));
            if let Some(data) = program.data {
                assert_eq!(machine.regs[RDX], data);
            }
            self.sees(machine, context, &expected);
            if let Some(value) = change {
                machine.set_stack_word(context, *value);
                expected[RDI] = *value;
            }
            clobber(machine, self.vectors, from);
            calls.push(from);
            machine.return_from_call();
        }
        assert_eq!(machine.run(), Stop::Return);
        assert_eq!(machine.rip, self.layout.return_address(self.entry).get());
        expected[RSP] = stack.wrapping_add(8);
        expected[R11] = machine.regs[R11];
        assert_eq!(machine.regs, expected);
        let width = match self.vectors {
            // What is above `ymm` is not the program's, and not saved.
            Vectors::Ymm => 32,
            _ => 64,
        };
        for (found, before) in machine.vectors.iter().zip(&vectors).take(8) {
            assert_eq!(found[..width], before[..width]);
        }
        // Quiescence looks through stacks for threads that are still inside.
        assert!(
            // At address 0, the word that is put there looks like one.
            !calls.iter().any(|&from| from != 0 && machine.has_below(context, from)),
            "the return address of a call is left behind: {calls:x?}"
        );
    }

    /// Compares the context with the table on its page.
    fn sees(&self, machine: &Machine<'_>, context: u64, registers: &[u64; 16]) {
        let word = |offset| machine.stack_word(context.wrapping_add(offset));
        for (offset, register) in (0..).step_by(8).zip(ARGUMENTS) {
            assert_eq!(word(offset), registers[register]);
        }
        assert_eq!(word(48), registers[RAX]);
        assert_eq!(word(56), registers[R10]);
        let width = match self.vectors {
            Vectors::Untouched => 0,
            Vectors::Xmm => 1,
            Vectors::Ymm => 2,
            _ => 3,
        };
        assert_eq!(word(64), u64::from(self.index) | width << 33);
        assert_eq!(word(72), self.entry.get());
        if width > 0 {
            // Where the stack ends at the call.
            assert_eq!(word(80), machine.regs[RSP]);
        }
        assert_eq!(word(88), registers[RBP]);
        assert_eq!(word(96), self.layout.return_address(self.entry).get());
        assert_eq!(word(104) >> 8, 0x00ca_11e4_0000_0000);
    }
}

/// The cookie at an address: another one at every address.
const fn cookie(place: u64) -> u64 {
    place.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ place
}

/// Does what a program may do to registers and stack.
fn clobber(machine: &mut Machine<'_>, vectors: Vectors, from: u64) {
    for number in CALLER_SAVED {
        machine.regs[number] = 0xdead_0000_0000_0000 | number as u64;
    }
    let width = match vectors {
        Vectors::Xmm => 16,
        Vectors::Ymm => 32,
        Vectors::Zmm => 64,
        _ => 0,
    };
    for vector in &mut machine.vectors {
        vector[..width].fill(0xdd);
    }
    machine.overwrite_below_stack(from);
}

/// Sees that `bytes` are instructions to the last byte, with no branch but calls, and one
/// `ret` with an `int3` behind it at the end.
fn is_straight(bytes: &[u8], at: u64) {
    let mut end = [None; 2];
    let decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
    for instruction in decoder {
        assert!(!instruction.is_invalid(), "{bytes:02x?}");
        if let [_, Some(before)] = end {
            let calls = matches!(before, Code::Call_rel32_64 | Code::Call_rm64);
            assert!(calls || !is_branch(before) || instruction.code() == Code::Int3);
        }
        end = [end[1], Some(instruction.code())];
    }
    assert_eq!(end, [Some(Code::Retnq), Some(Code::Int3)]);
}

fn is_branch(code: Code) -> bool {
    code.flow_control() != iced_x86::FlowControl::Next
}

/// The same body with mitigations, followed on its path.
fn with_mitigations(input: &mut Input<'_>, case: &Case) {
    let (check, hash) = checked(input);
    let Some(guard) = guard(input, case.at, check) else { return };
    let emit = |code: &mut CodeBuffer<'_>| case.body().emit_hardened(code, &guard.hardening);
    let max = EntryBody::max_hardened_size(case.programs.len());
    let Some((bytes, ())) = emitted(case.at, max, emit) else { return };
    let confused = |target| guard.hardening.indirect_thunk() == Some(target);
    let confused = case.programs.iter().any(|program| confused(program.target));
    if !confused && !guard.is_in(case.at, bytes.len()) {
        walk_entry_body(&bytes, case.at, &case.programs, &guard.hardening, hash);
    }
}

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let seed = input.u8();
    let Some(case) = case(&mut input) else { return };
    with_mitigations(&mut input, &case);
    let body = case.emit();
    is_straight(&body, case.at);
    if case.layout.slot_kind().is_some() {
        let mut machine = case.machine(vec![(case.at, &body)], case.at, seed);
        case.run(&mut machine);
        return;
    }
    let mut thunk = [0; THUNK_SIZE];
    entry_thunk(&mut CodeBuffer::new(&mut thunk, case.thunk), case.index).expect("16 bytes");
    {
        // With nothing attached, it goes straight back.
        let mut machine = case.machine(vec![(case.thunk, &thunk)], case.thunk, seed);
        let mut expected = machine.regs;
        assert_eq!(machine.run(), Stop::Return);
        expected[RSP] = expected[RSP].wrapping_add(8);
        expected[R11] = machine.regs[R11];
        assert_eq!(machine.regs, expected);
    }
    let apart = case.at.wrapping_sub(case.thunk).min(case.thunk.wrapping_sub(case.at));
    let Ok(jump) = jmp_bytes(case.thunk.wrapping_add(THUNK_JUMP as u64), case.at) else { return };
    if apart < body.len() as u64 + THUNK_SIZE as u64 {
        return;
    }
    thunk[THUNK_JUMP..THUNK_JUMP + 5].copy_from_slice(&jump);
    let code = vec![(case.thunk, &thunk[..]), (case.at, &body[..])];
    let mut machine = case.machine(code, case.thunk, seed);
    case.run(&mut machine);
}
