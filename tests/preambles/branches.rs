//! Every set of mitigations, at every place in a cache line, as a decoder sees it.

use fentry::emit::x86_64::{CallDepth, Check, Generation, Hardening, Symbols};
use fentry::emit::{HardeningError, Mitigations};
use fentry::encode::CodeBuffer;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};

use crate::emitted;

const INDIRECT_THUNK: u64 = 0x50_0000;
const RETURN_THUNK: u64 = 0x50_0100;
const TARGET: u64 = 0x50_0200;
const COUNT: u64 = 0x50_0300;
const ALL: Symbols = Symbols {
    indirect_thunk: Some(INDIRECT_THUNK),
    return_thunk: Some(RETURN_THUNK),
    call_depth: Some(CallDepth::RipRelative(COUNT)),
    check: Check::FineIbt { hash: 7, generation: Generation::Original, paranoid: false },
};

const NOT_HERE: Mitigations = Mitigations::SIGNED_RETURNS;

/// Every set of mitigations that can be asked for on x86-64.
fn sets() -> impl Iterator<Item = Mitigations> {
    (0..=Mitigations::all().bits())
        .map(Mitigations::from_bits_retain)
        .filter(|set| !set.intersects(NOT_HERE))
        .filter(|set| !set.contains(Mitigations::RETPOLINE | Mitigations::LFENCE))
}

fn decode(bytes: &[u8], at: u64) -> Vec<Instruction> {
    let instructions: Vec<_> =
        Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).into_iter().collect();
    assert!(instructions.iter().all(|instruction| !instruction.is_invalid()), "{bytes:02x?}");
    instructions
}

/// One set, at one place.
struct Case {
    set: Mitigations,
    at: u64,
    hardening: Hardening,
}

impl Case {
    fn has(&self, mitigation: Mitigations) -> bool {
        self.set.contains(mitigation)
    }

    /// Takes the nops that `ITS` puts before what stands in the upper half of a line.
    fn without_nops<'a>(&self, instructions: &'a [Instruction]) -> &'a [Instruction] {
        let nop = |instruction: &Instruction| instruction.mnemonic() == Mnemonic::Nop;
        let nops = instructions.iter().take_while(|instruction| nop(instruction)).count();
        assert!(nops == 0 || self.has(Mitigations::ITS), "{:?} at {:#x}", self.set, self.at);
        instructions.split_at(nops).1
    }

    /// That the last byte of the opcode is in the upper half of a cache line, where that is
    /// asked for.
    fn placed(&self, branch: &Instruction) {
        if self.has(Mitigations::ITS) {
            let last = branch.ip() + branch.len() as u64 - 1;
            assert_eq!(last & 0x20, 0x20, "{:?} at {:#x}: {branch:?}", self.set, self.at);
        }
    }

    /// Takes the stop behind what does not go on.
    fn stop(&self, rest: &[Instruction]) {
        let codes: Vec<_> = rest.iter().map(Instruction::code).collect();
        let expected: &[Code] = if self.has(Mitigations::SLS) { &[Code::Int3] } else { &[] };
        assert_eq!(codes, expected, "{:?} at {:#x}", self.set, self.at);
    }

    fn emit(
        &self,
        emit: impl Fn(&Hardening, &mut CodeBuffer<'_>) -> Result<(), fentry::emit::EmitError>,
    ) -> Vec<Instruction> {
        let (bytes, ()) = emitted(self.at, |code| emit(&self.hardening, code));
        assert!(bytes.len() <= Hardening::MAX_SIZE, "{:?} at {:#x}", self.set, self.at);
        // A byte less is refused, and what is refused says so.
        let mut short = vec![0; bytes.len() - 1];
        let mut code = CodeBuffer::new(&mut short, self.at);
        assert!(emit(&self.hardening, &mut code).is_err());
        decode(&bytes, self.at)
    }

    fn returns(&self) {
        let instructions = self.emit(Hardening::emit_return);
        let instructions = if self.has(Mitigations::RETURN_THUNK) {
            &instructions[..]
        } else {
            self.without_nops(&instructions)
        };
        let (leave, rest) = instructions.split_first().unwrap();
        if self.has(Mitigations::RETURN_THUNK) {
            assert_eq!(leave.code(), Code::Jmp_rel32_64);
            assert_eq!(leave.near_branch_target(), RETURN_THUNK);
        } else {
            assert_eq!(leave.code(), Code::Retnq);
            self.placed(leave);
        }
        self.stop(rest);
    }

    fn jumps(&self) {
        let instructions = self.emit(|hardening, code| hardening.emit_jump(code, TARGET));
        let (jump, rest) = instructions.split_first().unwrap();
        assert_eq!((jump.code(), jump.near_branch_target()), (Code::Jmp_rel32_64, TARGET));
        self.stop(rest);
    }

    fn calls(&self) {
        let instructions = self.emit(|hardening, code| hardening.emit_call(code, TARGET));
        let [call] = self.counted(&instructions) else { panic!("{instructions:?}") };
        assert_eq!((call.code(), call.near_branch_target()), (Code::Call_rel32_64, TARGET));
    }

    /// Takes the count before a call.
    fn counted<'a>(&self, instructions: &'a [Instruction]) -> &'a [Instruction] {
        if !self.has(Mitigations::CALL_DEPTH) {
            return instructions;
        }
        let (count, rest) = instructions.split_first().unwrap();
        assert_eq!((count.code(), count.len()), (Code::Sar_rm64_imm8, 9));
        assert_eq!(count.segment_prefix(), Register::GS);
        assert_eq!((count.ip_rel_memory_address(), count.immediate8()), (COUNT, 5));
        rest
    }

    /// Takes the branch through `r11`.
    fn through_r11<'a>(
        &self,
        instructions: &'a [Instruction],
        [direct, indirect]: [Code; 2],
    ) -> &'a [Instruction] {
        let mut rest = instructions;
        if !self.has(Mitigations::RETPOLINE) {
            rest = self.without_nops(rest);
        }
        if self.has(Mitigations::LFENCE) {
            assert_eq!(rest[0].code(), Code::Lfence);
            rest = &rest[1..];
        }
        let (branch, rest) = rest.split_first().unwrap();
        if self.has(Mitigations::RETPOLINE) {
            assert_eq!((branch.code(), branch.near_branch_target()), (direct, INDIRECT_THUNK));
        } else {
            assert_eq!((branch.code(), branch.op0_register()), (indirect, Register::R11));
            self.placed(branch);
        }
        rest
    }

    /// Takes the check of an indirect call or jump.
    fn checked<'a>(&self, instructions: &'a [Instruction]) -> &'a [Instruction] {
        if !self.has(Mitigations::CFI) {
            return instructions;
        }
        let (check, rest) = instructions.split_at(3);
        let check: Vec<_> = check.iter().map(Instruction::code).collect();
        assert_eq!(check, [Code::Mov_r32_imm32, Code::Sub_rm64_imm8, Code::Nop_rm32]);
        rest
    }

    fn indirect_jumps(&self) {
        const JUMPS: [Code; 2] = [Code::Jmp_rel32_64, Code::Jmp_rm64];
        let instructions = self.emit(Hardening::emit_computed_jump);
        self.stop(self.through_r11(&instructions, JUMPS));
        let instructions = self.emit(Hardening::emit_indirect_jump);
        self.stop(self.through_r11(self.checked(&instructions), JUMPS));
    }

    fn indirect_calls(&self) {
        let instructions = self.emit(Hardening::emit_indirect_call);
        let rest = self.counted(self.checked(&instructions));
        let rest = self.through_r11(rest, [Code::Call_rel32_64, Code::Call_rm64]);
        assert_eq!(rest.len(), 0, "{:?} at {:#x}", self.set, self.at);
    }
}

#[test]
fn every_set_at_every_place() {
    let mut sets_seen = 0;
    for set in sets() {
        sets_seen += 1;
        let hardening = Hardening::new(set, ALL).unwrap();
        assert_eq!(hardening.mitigations(), set);
        for at in 0x40_0000..0x40_0040 {
            let case = Case { set, at, hardening };
            case.returns();
            case.jumps();
            case.calls();
            case.indirect_jumps();
            case.indirect_calls();
        }
    }
    // Seven flags, and a quarter of the sets has two that exclude each other.
    assert_eq!(sets_seen, 96);
}

#[test]
fn what_is_not_asked_for_is_not_used() {
    // Told everything, and asked for nothing: plain branches.
    let hardening = Hardening::new(Mitigations::empty(), ALL).unwrap();
    assert_eq!(emitted(0x40_0000, |code| hardening.emit_return(code)).0, [0xc3]);
    let call = emitted(0x40_0000, |code| hardening.emit_indirect_call(code)).0;
    assert_eq!(call, [0x41, 0xff, 0xd3]);
    let plain = Hardening::NONE;
    assert_eq!(emitted(0x40_0000, |code| plain.emit_indirect_jump(code)).0, [0x41, 0xff, 0xe3]);
}

#[test]
fn the_count_by_a_number() {
    let symbols = Symbols { call_depth: Some(CallDepth::Absolute(-0x40)), ..Symbols::NONE };
    let hardening = Hardening::new(Mitigations::CALL_DEPTH, symbols).unwrap();
    let (bytes, ()) = emitted(0x40_0000, |code| hardening.emit_call(code, 0x40_0014));
    let expected = [
        0x65, 0x48, 0xc1, 0x3c, 0x25, 0xc0, 0xff, 0xff, 0xff, 0x05, // sarq $5, %gs:-0x40
        0xe8, 0x05, 0x00, 0x00, 0x00, // call +5
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    for mitigation in [
        Mitigations::RETPOLINE,
        Mitigations::RETURN_THUNK,
        Mitigations::CALL_DEPTH,
        Mitigations::CFI,
    ] {
        let error = HardeningError::Untold { mitigations: mitigation };
        let set = mitigation | Mitigations::SLS | Mitigations::ITS;
        assert_eq!(Hardening::new(set, Symbols::NONE), Err(error));
    }
    assert_eq!(
        Hardening::new(Mitigations::RETPOLINE | Mitigations::CFI, Symbols::NONE)
            .unwrap_err()
            .to_string(),
        "no address or hash was given for RETPOLINE | CFI; fill in its field, or leave the \
         mitigation out"
    );
    assert_eq!(
        Hardening::new(Mitigations::RETPOLINE | Mitigations::LFENCE, ALL),
        Err(HardeningError::RetpolineAndLfence)
    );
    assert_eq!(
        Hardening::new(Mitigations::all(), ALL),
        Err(HardeningError::OtherArchitecture { mitigations: NOT_HERE })
    );
}

#[test]
fn a_thunk_out_of_reach_is_an_error() {
    let symbols = Symbols { indirect_thunk: Some(0x7f00_0000_0000), ..Symbols::NONE };
    let hardening = Hardening::new(Mitigations::RETPOLINE, symbols).unwrap();
    let mut bytes = [0; 64];
    let mut code = CodeBuffer::new(&mut bytes, 0x40_0000);
    let error = hardening.emit_indirect_call(&mut code).unwrap_err();
    assert!(error.to_string().contains("2 GiB"), "{error}");
}
