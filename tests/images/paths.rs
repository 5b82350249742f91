//! Follows every path through an image, and keeps account of the stack and of what registers
//! held at the beginning.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register, UsedRegister,
};

/// What a register or a word of the stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// What this register held at the beginning.
    Original(Register),
    /// `rsp` at the beginning, and so many bytes.
    Stack(i64),
    /// A multiple of 16 somewhere below, and so many bytes.
    Aligned(i64),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    registers: BTreeMap<Register, Value>,
    /// By distance from `rsp` at the beginning.
    stack: BTreeMap<i64, Value>,
    /// Which instruction has set the flags.
    flags: Option<Code>,
}

/// How a path ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    pub by: Mnemonic,
    pub rsp: Value,
    pub flags: Option<Code>,
    /// Whether the return address was written on the way.
    pub led: bool,
    /// Registers that do not hold what they held.
    pub changed: BTreeSet<Register>,
}

/// All that was found on the paths through one image.
#[derive(Default)]
pub struct Walk {
    pub instructions: BTreeMap<u64, Instruction>,
    seen: BTreeSet<(u64, State)>,
    ends: BTreeSet<End>,
    /// Direct and indirect calls.
    pub calls: BTreeSet<u64>,
    pub indirect: usize,
    /// A jump there is a return.
    pub return_thunk: Option<u64>,
    /// A call of this is an indirect one.
    pub indirect_thunk: Option<u64>,
}

impl Walk {
    /// Decodes an image; fails on a byte that is no instruction.
    pub fn decode(bytes: &[u8], address: u64) -> Self {
        let mut walk = Self::default();
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            assert_eq!(decoder.last_error(), DecoderError::None, "at {:#x}", instruction.ip());
            walk.instructions.insert(instruction.ip(), instruction);
        }
        walk
    }

    /// Follows every path from `start`, and returns how they end.
    pub fn from(&mut self, start: u64) -> BTreeSet<End> {
        let general = (0..16).map(|number| Register::RAX + number);
        let mut registers: BTreeMap<_, _> =
            general.map(|register| (register, Value::Original(register))).collect();
        registers.insert(Register::RSP, Value::Stack(0));
        let begin = State { registers, stack: BTreeMap::new(), flags: None };
        let mut facts = InstructionInfoFactory::new();
        let mut open = vec![(start, begin)];
        self.ends.clear();
        while let Some((ip, state)) = open.pop() {
            if !self.seen.insert((ip, state.clone())) {
                continue;
            }
            let instruction = *self.instructions.get(&ip).unwrap_or_else(|| panic!("{ip:#x}"));
            let mut state = state;
            state.step(&instruction, facts.info(&instruction).used_registers());
            let next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => open.push((next, state)),
                // The failure of a paranoid check: `lock` and this branch, which is no instruction.
                FlowControl::ConditionalBranch
                    if instruction.near_branch_target() == next.wrapping_sub(3) =>
                {
                    open.push((next, state));
                }
                FlowControl::ConditionalBranch => {
                    open.push((next, state.clone()));
                    open.push((instruction.near_branch_target(), state));
                }
                FlowControl::UnconditionalBranch
                    if Some(instruction.near_branch_target()) == self.return_thunk =>
                {
                    self.ends.insert(state.end(Mnemonic::Ret));
                }
                FlowControl::UnconditionalBranch => {
                    open.push((instruction.near_branch_target(), state));
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    let rsp = state.registers[&Register::RSP];
                    assert!(
                        matches!(rsp, Value::Aligned(at) if at % 16 == 0),
                        "{rsp:?} at {ip:#x}"
                    );
                    let target = instruction.near_branch_target();
                    let direct = instruction.flow_control() == FlowControl::Call;
                    if direct && Some(target) != self.indirect_thunk {
                        self.calls.insert(target);
                    } else {
                        self.indirect += 1;
                    }
                    open.push((next, state));
                }
                FlowControl::Return | FlowControl::IndirectBranch => {
                    self.ends.insert(state.end(instruction.mnemonic()));
                }
                // The search for a frame that is not there.
                FlowControl::Interrupt => assert_eq!(instruction.mnemonic(), Mnemonic::Int3),
                // The failure of a check.
                FlowControl::Exception => assert_eq!(instruction.mnemonic(), Mnemonic::Ud2),
                other => panic!("{other:?} at {ip:#x}"),
            }
        }
        core::mem::take(&mut self.ends)
    }

    /// Everything was on some path, or is fill.
    pub fn all_was_seen(&self) {
        for (ip, instruction) in &self.instructions {
            let seen = self.seen.range((*ip, State::least())..).next();
            let seen = seen.is_some_and(|(at, _)| at == ip);
            assert!(seen || instruction.mnemonic() == Mnemonic::Int3, "nothing runs {ip:#x}");
        }
    }
}

impl State {
    /// The first in order, to begin a search with.
    fn least() -> Self {
        Self { registers: BTreeMap::new(), stack: BTreeMap::new(), flags: None }
    }

    fn end(&self, by: Mnemonic) -> End {
        let same = |register| self.registers[&register] == Value::Original(register);
        let general = (0..16).map(|number| Register::RAX + number);
        let changed = general.filter(|&register| register != Register::RSP && !same(register));
        let rsp = self.registers[&Register::RSP];
        let led = matches!(rsp, Value::Stack(at) if self.stack.contains_key(&at));
        End { by, rsp, flags: self.flags, led, changed: changed.collect() }
    }

    /// The address of a memory operand, where it is on the stack; or in the frame, at which `rbx`
    /// points, as if the frame were far above the stack.
    fn place(&self, instruction: &Instruction) -> Option<i64> {
        const FRAME: i64 = 1 << 40;
        let displacement = instruction.memory_displacement64().cast_signed();
        let base = instruction.memory_base();
        match self.registers.get(&base) {
            _ if instruction.memory_index() != Register::None => None,
            Some(Value::Stack(at)) => Some(at + displacement),
            Some(Value::Other) if base == Register::RBX => Some(FRAME + displacement),
            _ => None,
        }
    }

    fn moved(value: Value, by: i64) -> Value {
        match value {
            Value::Stack(at) => Value::Stack(at + by),
            Value::Aligned(at) => Value::Aligned(at + by),
            _ => Value::Other,
        }
    }

    fn step(&mut self, instruction: &Instruction, used: &[UsedRegister]) {
        let target = instruction.op0_register();
        let rsp = self.registers[&Register::RSP];
        let immediate = || instruction.immediate(1).cast_signed();
        let result = match (instruction.mnemonic(), instruction.op1_kind()) {
            (Mnemonic::Push, _) => {
                let below = Self::moved(rsp, -8);
                if let Value::Stack(at) = below {
                    self.stack.insert(at, self.registers[&target]);
                }
                self.registers.insert(Register::RSP, below);
                return;
            }
            (Mnemonic::Pop, _) => {
                let Value::Stack(at) = rsp else { panic!("a pop from {rsp:?}") };
                self.registers.insert(Register::RSP, Value::Stack(at + 8));
                let value = self.stack.get(&at).copied().unwrap_or(Value::Other);
                self.registers.insert(target, value);
                return;
            }
            // Where it returns to is looked at with the end of the path.
            (Mnemonic::Ret, _) => return,
            (Mnemonic::Call, _) => {
                let callers = [0, 1, 2, 6, 7, 8, 9, 10, 11];
                for register in callers.map(|number: u32| Register::RAX + number) {
                    self.registers.insert(register, Value::Other);
                }
                return;
            }
            (Mnemonic::Add, OpKind::Register | OpKind::Memory) => Value::Other,
            (Mnemonic::Add, _) => Self::moved(self.registers[&target.full_register()], immediate()),
            (Mnemonic::Sub, _) => {
                Self::moved(self.registers[&target.full_register()], -immediate())
            }
            (Mnemonic::And, _)
                if target == Register::RSP && [-16, -32, -64].contains(&immediate()) =>
            {
                Value::Aligned(0)
            }
            (Mnemonic::Lea, _) => match self.registers.get(&instruction.memory_base()) {
                Some(Value::Stack(_)) => self.place(instruction).map_or(Value::Other, Value::Stack),
                _ => Value::Other,
            },
            (Mnemonic::Mov, OpKind::Register) if instruction.op0_kind() == OpKind::Memory => {
                if let Some(at) = self.place(instruction) {
                    let value = self.registers.get(&instruction.op1_register());
                    self.stack.insert(at, value.copied().unwrap_or(Value::Other));
                }
                return;
            }
            (Mnemonic::Mov, _) if instruction.op0_kind() == OpKind::Memory => {
                if let Some(at) = self.place(instruction) {
                    self.stack.insert(at, Value::Other);
                }
                return;
            }
            (Mnemonic::Mov, OpKind::Register) => self.registers[&instruction.op1_register()],
            (Mnemonic::Mov, OpKind::Memory) => {
                let at = self.place(instruction);
                at.and_then(|at| self.stack.get(&at).copied()).unwrap_or(Value::Other)
            }
            _ => Value::Other,
        };
        if instruction.rflags_modified() != 0 {
            self.flags = Some(instruction.code());
        }
        let written = |register: &&UsedRegister| {
            matches!(register.access(), OpAccess::Write | OpAccess::ReadWrite)
        };
        for register in used.iter().filter(written) {
            let register = register.register().full_register();
            if register.is_gpr64() {
                self.registers.insert(register, result);
            }
        }
    }
}
