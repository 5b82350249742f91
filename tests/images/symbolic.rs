//! Executes an image on symbols, so that one execution stands for every one.
//!
//! A body has no branches but calls and its return: one path. Registers start with symbols
//! for what they hold, programs do everything that the psABI and their [`Vectors`] allow, and
//! what remains at the return is what the function gets.

use std::collections::{BTreeMap, BTreeSet};

use fentry::emit::Vectors;
use iced_x86::{
    Decoder, DecoderError, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};

/// What a register or a word of memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// What this register held when the body was entered.
    Original(Register),
    /// What a program has written to this argument.
    Argument(usize),
    /// Anything.
    Clobbered,
    Number(u64),
    /// The body's return address, and so many bytes.
    Return(i64),
    /// `rsp` at the body's entry, and so many bytes.
    Entry(i64),
    /// That, rounded down to a multiple of 16 somewhere below, and so many bytes.
    Aligned(i64),
    /// The index, so many times.
    Index(u64),
    /// What stands at `column + distance * index`.
    Cookie {
        column: u64,
        distance: u64,
    },
    /// The lowest bytes of what an argument vector held.
    Vector {
        number: usize,
        bytes: usize,
    },
}

/// One call of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The address behind the call instruction.
    pub next: u64,
    pub target: u64,
    pub through_register: bool,
    pub context: Value,
    pub cookie: Value,
    pub data: Value,
}

/// What a body is told in advance.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub vectors: Vectors,
    /// Bytes from the index in the slot to the return address; `None` for an index in `r11d`.
    pub return_to_index: Option<u16>,
}

/// Registers that a call may change (psABI 3.2.1).
const CALLER_SAVED: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Bytes of the context below the return address.
pub const CONTEXT: i64 = 96;

#[derive(Debug)]
pub struct Machine {
    known: Known,
    registers: BTreeMap<Register, Value>,
    /// How many of its lowest bytes each argument vector still has.
    pub intact: [usize; 8],
    /// From an address's base (whether aligned) and offset to size and value.
    memory: BTreeMap<(bool, i64), (i64, Value)>,
    /// Where the stack was when it was aligned.
    floor: i64,
    /// Registers written by the instruction that is executed.
    written: BTreeSet<Register>,
    pub calls: Vec<Call>,
    returned: bool,
}

impl Machine {
    /// Executes an image.
    pub fn run(bytes: &[u8], address: u64, known: Known) -> Self {
        let general = (0..16).map(|number| Register::RAX + number);
        let mut machine = Self {
            known,
            registers: general.map(|register| (register, Value::Original(register))).collect(),
            intact: [64; 8],
            memory: BTreeMap::from([((false, 0), (8, Value::Return(0)))]),
            floor: 0,
            written: BTreeSet::new(),
            calls: Vec::new(),
            returned: false,
        };
        machine.registers.insert(Register::RSP, Value::Entry(0));
        if known.return_to_index.is_none() {
            machine.registers.insert(Register::R11, Value::Index(1));
        }
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let mut facts = InstructionInfoFactory::new();
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            assert_eq!(decoder.last_error(), DecoderError::None, "at {:#x}", instruction.ip());
            if machine.returned {
                assert_eq!(instruction.mnemonic(), Mnemonic::Int3, "behind the return");
                continue;
            }
            let new = match instruction.encoding() {
                EncodingKind::Legacy => Vectors::Untouched,
                EncodingKind::VEX => Vectors::Ymm,
                _ => Vectors::Zmm,
            };
            assert!(new <= known.vectors, "a CPU of this level lacks {:?}", instruction.code());
            machine.written.clear();
            let before = machine.get(Register::RSP);
            machine.execute(&instruction);
            machine.is_faithful(&instruction, before, &mut facts);
        }
        assert!(machine.returned, "the image ends without a return");
        machine
    }

    pub fn get(&self, register: Register) -> Value {
        self.registers[&register]
    }

    fn set(&mut self, register: Register, value: Value) {
        self.written.insert(register.full_register());
        self.registers.insert(register, value);
    }

    /// Compares what was executed with what the decoder knows of the instruction: no register
    /// was forgotten, and the stack pointer moved as it says.
    fn is_faithful(&self, it: &Instruction, before: Value, facts: &mut InstructionInfoFactory) {
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        };
        let used = facts.info(it).used_registers().iter().filter(|used| writes(used.access()));
        let known: BTreeSet<_> = used.map(|used| used.register().full_register()).collect();
        assert_eq!(self.written, known, "registers written by {it}", it = it.ip());
        let moved = match (before, self.get(Register::RSP)) {
            (Value::Entry(from), Value::Entry(to)) => to - from,
            (Value::Aligned(from), Value::Aligned(to)) => to - from,
            _ => return,
        };
        if it.is_stack_instruction() {
            // A call's push is its program's `ret`'s to take back.
            let pushed = if it.mnemonic() == Mnemonic::Call { -8 } else { 0 };
            assert_eq!(moved + pushed, i64::from(it.stack_pointer_increment()));
        }
    }

    fn execute(&mut self, it: &Instruction) {
        let to = it.op0_register();
        let from = it.op1_register();
        match (it.mnemonic(), it.op0_kind(), it.op1_kind()) {
            (Mnemonic::Push, OpKind::Register, _) => {
                let value = self.get(to);
                let rsp = self.move_stack(-8);
                self.store(rsp, 8, value);
            }
            (Mnemonic::Pop, OpKind::Register, _) => {
                let value = self.load(self.get(Register::RSP), 8);
                self.move_stack(8);
                self.set(to, value);
            }
            (Mnemonic::Mov, OpKind::Register, OpKind::Register) => self.set(to, self.get(from)),
            (Mnemonic::Mov, OpKind::Register, OpKind::Memory) => {
                let value = self.load(self.address(it), to.size() as i64);
                self.set(to.full_register(), value);
            }
            // Below the stack pointer is nothing but the return address of the last call.
            (Mnemonic::Mov, OpKind::Memory, OpKind::Register)
                if it.memory_base() == Register::RSP =>
            {
                assert_eq!((it.memory_displacement64().cast_signed(), from), (-8, Register::RSP));
            }
            (Mnemonic::Mov, OpKind::Memory, OpKind::Immediate32) => {
                self.store(self.address(it), 4, Value::Number(it.immediate(1)));
            }
            (Mnemonic::Mov, OpKind::Memory, OpKind::Register) => {
                let (place, value) = (self.address(it), self.get(from.full_register()));
                match (from.size(), value) {
                    // The index and, in the upper half, what the context says of itself.
                    (8, Value::Index(_)) => {
                        self.store(place, 4, value);
                        self.store(place.plus(4), 4, Value::Number(0));
                    }
                    (8, _) => self.store(place, 8, value),
                    _ => panic!("a narrow store"),
                }
            }
            (Mnemonic::Mov, OpKind::Register, _) => {
                self.set(to.full_register(), Value::Number(it.immediate(1)));
            }
            (Mnemonic::Lea, ..) => self.set(to, self.address(it)),
            (Mnemonic::Xor, OpKind::Register, OpKind::Register) if to == from => {
                self.set(to.full_register(), Value::Number(0));
            }
            (Mnemonic::Add, OpKind::Register, OpKind::Register) => {
                let (Value::Index(a), Value::Index(b)) = (self.get(to), self.get(from)) else {
                    panic!("a sum of {:?} and {:?}", self.get(to), self.get(from));
                };
                self.set(to, Value::Index(a + b));
            }
            (Mnemonic::Add, OpKind::Register, _) if to == Register::RSP => {
                self.move_stack(it.immediate(1).cast_signed());
            }
            (Mnemonic::Sub, OpKind::Register, _) if to == Register::RSP => {
                self.move_stack(-it.immediate(1).cast_signed());
            }
            (Mnemonic::And, OpKind::Register, _) if to == Register::RSP => {
                assert!([-16, -32, -64].contains(&it.immediate(1).cast_signed()));
                let Value::Entry(floor) = self.get(Register::RSP) else {
                    panic!("the stack is aligned twice");
                };
                self.floor = floor;
                self.set(Register::RSP, Value::Aligned(0));
            }
            (Mnemonic::Movups | Mnemonic::Vmovups, OpKind::Memory, OpKind::Register) => {
                let (number, bytes) = (from.number(), from.size());
                let saved = Value::Vector { number, bytes: bytes.min(self.intact[number]) };
                self.store(self.address(it), bytes as i64, saved);
            }
            (Mnemonic::Movups | Mnemonic::Vmovups, OpKind::Register, OpKind::Memory) => {
                let (number, bytes) = (to.number(), to.size());
                let loaded = self.load(self.address(it), bytes as i64);
                let found = match loaded {
                    Value::Vector { number: of, bytes } if of == number => bytes,
                    _ => 0,
                };
                // `movups` leaves the bytes above alone, `vmovups` zeroes them.
                let kept = it.mnemonic() == Mnemonic::Movups && found == bytes;
                self.intact[number] = if kept { self.intact[number].max(found) } else { found };
                self.written.insert(to.full_register());
            }
            (Mnemonic::Vzeroupper, ..) => {
                self.intact = self.intact.map(|bytes| bytes.min(16));
                self.written.extend((0..16).map(|number| Register::ZMM0 + number));
            }
            (Mnemonic::Call, OpKind::NearBranch64, _) => {
                self.call(it.next_ip(), it.near_branch_target(), false);
            }
            (Mnemonic::Call, OpKind::Register, _) => {
                let Value::Number(target) = self.get(to) else {
                    panic!("a call of {:?}", self.get(to));
                };
                self.call(it.next_ip(), target, true);
            }
            (Mnemonic::Ret, ..) => {
                assert_eq!(self.get(Register::RSP), Value::Entry(0), "the stack at the return");
                assert_eq!(self.load(Value::Entry(0), 8), Value::Return(0));
                self.written.insert(Register::RSP);
                self.registers.insert(Register::RSP, Value::Entry(8));
                self.returned = true;
            }
            _ => panic!("an instruction that a body has no use for: {it:?}"),
        }
    }

    fn move_stack(&mut self, by: i64) -> Value {
        let moved = self.get(Register::RSP).plus(by);
        self.set(Register::RSP, moved);
        moved
    }

    /// The address of a memory operand.
    fn address(&self, it: &Instruction) -> Value {
        assert_eq!(it.segment_prefix(), Register::None);
        let base = self.get(it.memory_base());
        let displacement = it.memory_displacement64().cast_signed();
        match (base, it.memory_index()) {
            (base, Register::None) => base.plus(displacement),
            (Value::Number(column), index) => {
                let Value::Index(times) = self.get(index) else {
                    panic!("an index register holds {:?}", self.get(index));
                };
                assert_eq!(displacement, 0);
                let distance = times * u64::from(it.memory_index_scale());
                Value::Cookie { column, distance }
            }
            (base, _) => panic!("an indexed access to {base:?}"),
        }
    }

    fn load(&self, address: Value, bytes: i64) -> Value {
        match address {
            Value::Entry(offset) | Value::Aligned(offset) => {
                let aligned = matches!(address, Value::Aligned(_));
                let found = self.memory.get(&(aligned, offset));
                let &(size, value) = found.unwrap_or_else(|| panic!("{address:?} holds nothing"));
                assert_eq!(size, bytes, "{address:?} is read in another size than it was written");
                value
            }
            // The slot is read where it is, and as wide as an index.
            Value::Return(offset) => {
                assert_eq!(bytes, 4, "an index is 32 bits wide");
                assert_eq!(Some(-offset), self.known.return_to_index.map(i64::from));
                Value::Index(1)
            }
            // As an address it is where the cookie stands, as a value it is the cookie.
            Value::Cookie { .. } => {
                assert_eq!(bytes, 8, "a cookie is 64 bits wide");
                address
            }
            _ => panic!("a load from {address:?}"),
        }
    }

    /// Stores on the stack, above the stack pointer and below the return address.
    fn store(&mut self, address: Value, bytes: i64, value: Value) {
        let (aligned, offset) = match address {
            Value::Entry(offset) => (false, offset),
            Value::Aligned(offset) => (true, offset),
            _ => panic!("a store to {address:?}"),
        };
        let (lowest, top) = match (aligned, self.get(Register::RSP)) {
            (true, Value::Aligned(rsp)) => (rsp, 0),
            (false, Value::Entry(rsp)) => (rsp, 0),
            (false, Value::Aligned(_)) => (self.floor, 0),
            _ => panic!("a store to {address:?} without a frame"),
        };
        assert!(offset >= lowest && offset + bytes <= top, "a store to {address:?}");
        for (&(other, at), &(size, _)) in &self.memory {
            let same = (at, size) == (offset, bytes);
            let apart = at + size <= offset || offset + bytes <= at;
            assert!(other != aligned || same || apart, "{address:?} overlaps what is at {at}");
        }
        self.memory.insert((aligned, offset), (bytes, value));
    }

    /// A program, doing all that it may.
    fn call(&mut self, next: u64, target: u64, through_register: bool) {
        let Value::Aligned(rsp) = self.get(Register::RSP) else {
            panic!("the stack at a call is {:?}", self.get(Register::RSP));
        };
        assert_eq!(rsp % 16, 0, "the stack at a call");
        self.calls.push(Call {
            next,
            target,
            through_register,
            context: self.get(Register::RDI),
            cookie: self.get(Register::RSI),
            data: self.get(Register::RDX),
        });
        for register in CALLER_SAVED {
            self.registers.insert(register, Value::Clobbered);
        }
        self.written.insert(Register::RSP);
        if self.known.vectors != Vectors::Untouched {
            self.intact = [0; 8];
        }
        self.memory.retain(|&(aligned, offset), _| !aligned || offset >= rsp);
        for argument in 0..6 {
            let place = (false, argument as i64 * 8 - CONTEXT);
            self.memory.insert(place, (8, Value::Argument(argument)));
        }
    }

    /// What the context holds `offset` bytes from its start, in so many bytes.
    pub fn context(&self, offset: i64, bytes: i64) -> Value {
        self.load(Value::Entry(offset - CONTEXT), bytes)
    }
}

impl Value {
    fn plus(self, by: i64) -> Self {
        match self {
            Self::Entry(offset) => Self::Entry(offset + by),
            Self::Aligned(offset) => Self::Aligned(offset + by),
            Self::Return(offset) => Self::Return(offset + by),
            _ if by == 0 => self,
            _ => panic!("{self:?} and {by} bytes"),
        }
    }
}
