//! A processor that knows the few instructions an entry body may consist of, and panics on
//! all others. What it is given to run, it reads through a decoder.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

/// Bytes of the stack, above and below where a function is entered.
const STACK: u64 = 64 << 10;
/// More instructions than any body has.
const PATIENCE: usize = 4096;

const R11: usize = 11;
const RSP: usize = 4;

/// Why the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Before a call: the stack pointer is still the caller's, and `target` is where it goes.
    Call { target: u64, from: u64, through_register: bool },
    /// Behind the `ret` that belongs to the call which entered the code.
    Return,
}

pub struct Machine<'a> {
    /// Numbered as in encodings.
    pub regs: [u64; 16],
    pub vectors: [[u8; 64]; 16],
    pub rip: u64,
    /// Where each piece of code is, and its bytes.
    code: Vec<(u64, &'a [u8])>,
    /// What may be read besides the stack: address, bytes, value.
    readable: Vec<(u64, usize, u64)>,
    stack: Vec<u8>,
    stack_base: u64,
    /// The stack pointer at the entry: the code may write below it and nowhere else.
    entered: u64,
}

impl<'a> Machine<'a> {
    /// A machine whose stack is around `stack_pointer`.
    pub fn new(stack_pointer: u64, code: Vec<(u64, &'a [u8])>) -> Self {
        let mut regs = [0; 16];
        regs[RSP] = stack_pointer;
        Self {
            regs,
            vectors: [[0; 64]; 16],
            rip: 0,
            code,
            readable: Vec::new(),
            stack: vec![0x5c; STACK as usize],
            stack_base: stack_pointer.wrapping_sub(STACK / 2),
            entered: stack_pointer,
        }
    }

    /// Lets the code read `size` bytes at `address`, which are `value`.
    pub fn allow(&mut self, address: u64, size: usize, value: u64) {
        self.readable.push((address, size, value));
    }

    /// The word on the stack at `address`.
    pub fn stack_word(&self, address: u64) -> u64 {
        let bytes = self.stack.get(self.place(address)..).and_then(<[u8]>::first_chunk);
        u64::from_le_bytes(*bytes.expect("on the stack"))
    }

    pub fn set_stack_word(&mut self, address: u64, value: u64) {
        let place = self.place(address);
        self.stack[place..place + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Leaves on the stack what a called function may: its own return address, `from`, and
    /// below it anything.
    pub fn overwrite_below_stack(&mut self, from: u64) {
        let place = self.place(self.regs[RSP]);
        self.stack[..place].fill(0xe7);
        self.set_stack_word(self.regs[RSP].wrapping_sub(8), from);
    }

    /// Whether `word` stands on the stack, aligned, below `end`.
    pub fn has_below(&self, end: u64, word: u64) -> bool {
        let first = self.stack_base.wrapping_neg() as usize % 8;
        let below = self.stack.get(first..self.place(end)).unwrap_or(&[]);
        below.chunks_exact(8).any(|found| found == word.to_le_bytes())
    }

    fn place(&self, address: u64) -> usize {
        let place = address.wrapping_sub(self.stack_base);
        assert!(place <= STACK - 64, "{address:#x} is not on the stack");
        place as usize
    }

    /// Runs until the code calls something or returns.
    pub fn run(&mut self) -> Stop {
        for _ in 0..PATIENCE {
            let instruction = self.fetch();
            if let Some(stop) = self.execute(&instruction) {
                return stop;
            }
        }
        panic!("no end after {PATIENCE} instructions");
    }

    /// Goes on behind the call it stopped before.
    pub fn return_from_call(&mut self) {
        let call = self.fetch();
        self.rip = call.next_ip();
    }

    fn fetch(&self) -> Instruction {
        let rip = self.rip;
        let (start, bytes) = self
            .code
            .iter()
            .find(|(start, bytes)| rip.wrapping_sub(*start) < bytes.len() as u64)
            .unwrap_or_else(|| panic!("{rip:#x} is not in the code"));
        let bytes = &bytes[rip.wrapping_sub(*start) as usize..];
        let instruction = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
        assert!(!instruction.is_invalid(), "no instruction at {rip:#x}: {bytes:02x?}");
        instruction
    }

    fn execute(&mut self, instruction: &Instruction) -> Option<Stop> {
        let next = instruction.next_ip();
        let to = instruction.op0_register();
        let from = instruction.op1_register();
        match instruction.code() {
            Code::Push_r64 => {
                self.regs[RSP] = self.regs[RSP].wrapping_sub(8);
                let value = self.regs[to.number()];
                self.write(self.regs[RSP], &value.to_le_bytes());
            }
            Code::Pop_r64 => {
                let value = self.read(self.regs[RSP], 8);
                self.regs[RSP] = self.regs[RSP].wrapping_add(8);
                self.regs[to.number()] = value;
            }
            Code::Mov_rm64_r64 if to != Register::None => {
                self.regs[to.number()] = self.regs[from.number()];
            }
            Code::Mov_rm64_r64 => {
                let value = self.regs[from.number()];
                self.write(self.address(instruction), &value.to_le_bytes());
            }
            Code::Mov_rm32_imm32 => {
                let value = instruction.immediate32();
                self.write(self.address(instruction), &value.to_le_bytes());
            }
            Code::Mov_rm64_imm32 if to == Register::None => {
                self.write(self.address(instruction), &instruction.immediate(1).to_le_bytes());
            }
            Code::Mov_r64_rm64 => {
                self.regs[to.number()] = self.read(self.address(instruction), 8);
            }
            Code::Mov_r32_rm32 => {
                self.regs[to.number()] = self.read(self.address(instruction), 4);
            }
            Code::Mov_r32_imm32 => {
                self.regs[to.number()] = u64::from(instruction.immediate32());
            }
            Code::Mov_r64_imm64 => self.regs[to.number()] = instruction.immediate64(),
            Code::Lea_r64_m => self.regs[to.number()] = self.address(instruction),
            Code::Xor_rm32_r32 => {
                let low = (self.regs[to.number()] ^ self.regs[from.number()]) & 0xffff_ffff;
                self.regs[to.number()] = low;
            }
            Code::Add_rm64_r64 => {
                let sum = self.regs[to.number()].wrapping_add(self.regs[from.number()]);
                self.regs[to.number()] = sum;
            }
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 => {
                let sum = self.regs[to.number()].wrapping_add(instruction.immediate(1));
                self.regs[to.number()] = sum;
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 => {
                let difference = self.regs[to.number()].wrapping_sub(instruction.immediate(1));
                self.regs[to.number()] = difference;
            }
            Code::And_rm64_imm8 | Code::And_rm64_imm32 => {
                self.regs[to.number()] &= instruction.immediate(1);
            }
            Code::Movups_xmmm128_xmm
            | Code::VEX_Vmovups_ymmm256_ymm
            | Code::EVEX_Vmovups_zmmm512_k1z_zmm => {
                let value = self.vectors[from.number()];
                self.write(self.address(instruction), &value[..from.size()]);
            }
            Code::Movups_xmm_xmmm128 => self.load_vector(instruction, false),
            Code::VEX_Vmovups_ymm_ymmm256 | Code::EVEX_Vmovups_zmm_k1z_zmmm512 => {
                self.load_vector(instruction, true);
            }
            Code::VEX_Vzeroupper => {
                for vector in &mut self.vectors {
                    vector[16..].fill(0);
                }
            }
            Code::Nopd | Code::Nop_rm32 => {}
            Code::Jmp_rel32_64 => {
                self.rip = instruction.near_branch_target();
                return None;
            }
            Code::Call_rel32_64 => {
                let target = instruction.near_branch_target();
                return Some(Stop::Call { target, from: next, through_register: false });
            }
            Code::Call_rm64 if to != Register::None => {
                assert_eq!(to.number(), R11, "a call through another register than r11");
                let target = self.regs[R11];
                return Some(Stop::Call { target, from: next, through_register: true });
            }
            Code::Retnq => {
                assert_eq!(self.regs[RSP], self.entered, "a ret meets another call than its own");
                self.rip = self.read(self.regs[RSP], 8);
                self.regs[RSP] = self.regs[RSP].wrapping_add(8);
                return Some(Stop::Return);
            }
            other => panic!("{other:?} is no instruction of an entry body"),
        }
        self.rip = next;
        None
    }

    /// Loads a vector register; the bits above those that were loaded become zero or stay.
    fn load_vector(&mut self, instruction: &Instruction, zero_rest: bool) {
        let register = instruction.op0_register();
        let place = self.place(self.address(instruction));
        let vector = &mut self.vectors[register.number()];
        if zero_rest {
            vector.fill(0);
        }
        let size = register.size();
        vector[..size].copy_from_slice(&self.stack[place..place + size]);
    }

    fn address(&self, instruction: &Instruction) -> u64 {
        assert_eq!(instruction.segment_prefix(), Register::None);
        let register = |register: Register| match register {
            Register::None => 0,
            register => self.regs[register.number()],
        };
        let index = register(instruction.memory_index());
        register(instruction.memory_base())
            .wrapping_add(index.wrapping_mul(u64::from(instruction.memory_index_scale())))
            .wrapping_add(instruction.memory_displacement64())
    }

    fn read(&self, address: u64, size: usize) -> u64 {
        let known = self.readable.iter().find(|known| (known.0, known.1) == (address, size));
        if let Some(&(_, _, value)) = known {
            return value;
        }
        let word = self.stack_word(address);
        match size {
            4 => word & 0xffff_ffff,
            8 => word,
            _ => panic!("{size} bytes are read at {address:#x}"),
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let place = self.place(address);
        // What is below, nobody keeps; what is no address of code may be put there, into the red
        // zone (psABI 3.2.2).
        let erases = bytes == self.regs[RSP].to_le_bytes() && address >= self.regs[RSP] - 128;
        assert!(address >= self.regs[RSP] || erases, "{address:#x} is below the stack pointer");
        let end = address.wrapping_add(bytes.len() as u64);
        assert!(end <= self.entered, "{address:#x} is the caller's");
        self.stack[place..place + bytes.len()].copy_from_slice(bytes);
    }
}
