//! Follows every path through an image, and keeps account of the stack and of what registers
//! held at the beginning.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedRegister,
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
    /// What some memory held, and so many bytes: an address on a side stack.
    Loaded(i64),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    registers: BTreeMap<Register, Value>,
    /// By distance from `rsp` at the beginning.
    stack: BTreeMap<i64, Value>,
    /// Which instruction has set the flags.
    flags: Option<Code>,
    /// If they say that memory and a register are equal, what that place then holds.
    compared: Option<(i64, Value)>,
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
    /// The image's address.
    address: u64,
    /// Where paths may meet: behind jumps.
    meetings: BTreeSet<u64>,
    /// What was held there, to follow nothing twice.
    met: BTreeSet<(u64, State)>,
    seen: BTreeSet<u64>,
    ends: BTreeSet<End>,
    /// A jump there is a return.
    pub return_thunk: Option<u64>,
}

impl Walk {
    /// Decodes an image; fails on a byte that is no instruction.
    pub fn decode(bytes: &[u8], address: u64) -> Self {
        let mut walk = Self { address, ..Self::default() };
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            assert_eq!(decoder.last_error(), DecoderError::None, "at {:#x}", instruction.ip());
            walk.meetings.insert(instruction.near_branch_target());
            walk.instructions.insert(instruction.ip(), instruction);
        }
        walk
    }

    /// The instructions as they stand, of an image that may reach across the end of addresses.
    pub fn in_order(&self) -> impl Iterator<Item = &Instruction> {
        let from = self.instructions.range(self.address..);
        from.chain(self.instructions.range(..self.address)).map(|(_, instruction)| instruction)
    }

    /// Follows every path from `start`, and returns how they end.
    pub fn from(&mut self, start: u64) -> BTreeSet<End> {
        let general = (0..16).map(|number| Register::RAX + number);
        let mut registers: BTreeMap<_, _> =
            general.map(|register| (register, Value::Original(register))).collect();
        registers.insert(Register::RSP, Value::Stack(0));
        let begin = State { registers, stack: BTreeMap::new(), flags: None, compared: None };
        let mut facts = InstructionInfoFactory::new();
        let mut open = vec![(start, begin)];
        self.ends.clear();
        while let Some((ip, state)) = open.pop() {
            if self.meetings.contains(&ip) && !self.met.insert((ip, state.clone())) {
                continue;
            }
            self.seen.insert(ip);
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
                    let (mut straight, mut jumped) = (state.clone(), state);
                    match instruction.condition_code() {
                        ConditionCode::e => jumped.learn_equality(),
                        ConditionCode::ne => straight.learn_equality(),
                        _ => {}
                    }
                    open.push((next, straight));
                    open.push((instruction.near_branch_target(), jumped));
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
            let seen = self.seen.contains(ip);
            assert!(seen || instruction.mnemonic() == Mnemonic::Int3, "nothing runs {ip:#x}");
        }
    }
}

impl State {
    fn end(&self, by: Mnemonic) -> End {
        let same = |register| self.registers[&register] == Value::Original(register);
        let general = (0..16).map(|number| Register::RAX + number);
        let changed = general.filter(|&register| register != Register::RSP && !same(register));
        let rsp = self.registers[&Register::RSP];
        let led = matches!(rsp, Value::Stack(at) if self.stack.contains_key(&at));
        End { by, rsp, flags: self.flags, led, changed: changed.collect() }
    }

    /// The address of a memory operand, where it is on the stack; or on the side stack, as if that
    /// were far above it.
    fn place(&self, instruction: &Instruction) -> Option<i64> {
        const SIDE_STACK: i64 = 1 << 40;
        let displacement = instruction.memory_displacement64().cast_signed();
        match self.registers.get(&instruction.memory_base()) {
            _ if instruction.memory_index() != Register::None => None,
            Some(Value::Stack(at)) => Some(at + displacement),
            Some(Value::Loaded(at)) => Some(SIDE_STACK + at + displacement),
            _ => None,
        }
    }

    fn learn_equality(&mut self) {
        self.stack.extend(self.compared);
    }

    fn moved(value: Value, by: i64) -> Value {
        match value {
            Value::Stack(at) => Value::Stack(at + by),
            Value::Aligned(at) => Value::Aligned(at + by),
            Value::Loaded(at) => Value::Loaded(at + by),
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
                Some(&base) if instruction.memory_index() == Register::None => {
                    Self::moved(base, instruction.memory_displacement64().cast_signed())
                }
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
                let base = self.registers.get(&instruction.memory_base());
                match self.place(instruction) {
                    Some(at) => self.stack.get(&at).copied().unwrap_or(Value::Other),
                    None if base == Some(&Value::Other) => Value::Loaded(0),
                    None => Value::Other,
                }
            }
            _ => Value::Other,
        };
        if instruction.rflags_modified() != 0 {
            self.flags = Some(instruction.code());
            let compared = (instruction.code() == Code::Cmp_r64_rm64)
                .then(|| Some((self.place(instruction)?, self.registers[&target])));
            self.compared = compared.flatten();
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
