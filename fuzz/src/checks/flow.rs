//! A processor that knows the few instructions that guarded branches consist of, and panics on
//! all others. It follows every branch, and says where it left the code that it was given.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

/// More instructions than any path has.
const PATIENCE: usize = 4096;

/// Where the path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At an instruction that raises #UD.
    Trap,
    /// At an address outside of the code.
    Left(u64),
    /// Behind a `ret` with nothing on the stack.
    Return,
}

/// Pieces of code with their addresses, registers and flags.
pub struct Flow<'a> {
    pub code: Vec<(u64, &'a [u8])>,
    /// Numbered as in encodings.
    pub regs: [u64; 16],
    /// Return addresses.
    pub stack: Vec<u64>,
    /// What may be read besides the code.
    pub readable: Vec<(u64, u64)>,
    /// How often `gs:` memory was shifted.
    pub counts: u32,
    /// Where a jump goes on at `r11`.
    pub indirect_thunk: Option<u64>,
    /// Where a jump returns.
    pub return_thunk: Option<u64>,
    zero: bool,
    carry: bool,
}

const R11: usize = 11;

impl<'a> Flow<'a> {
    pub fn new(code: Vec<(u64, &'a [u8])>) -> Self {
        Self {
            code,
            regs: [0; 16],
            stack: Vec::new(),
            readable: Vec::new(),
            counts: 0,
            indirect_thunk: None,
            return_thunk: None,
            zero: false,
            carry: false,
        }
    }

    /// The code from `at` to the end of its piece.
    fn bytes(&self, at: u64) -> Option<&'a [u8]> {
        self.code.iter().find_map(|&(start, bytes)| {
            let offset = usize::try_from(at.wrapping_sub(start)).ok()?;
            bytes.get(offset..).filter(|rest| !rest.is_empty())
        })
    }

    /// Runs from `at` to where the path ends.
    pub fn run(&mut self, mut at: u64) -> Stop {
        for _ in 0..PATIENCE {
            if Some(at) == self.indirect_thunk {
                at = self.regs[R11];
            } else if Some(at) == self.return_thunk {
                match self.stack.pop() {
                    Some(back) => at = back,
                    None => return Stop::Return,
                }
            }
            let Some(bytes) = self.bytes(at) else { return Stop::Left(at) };
            let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
            if instruction.is_invalid() || instruction.code() == Code::Ud2 {
                return Stop::Trap;
            }
            match self.step(&instruction) {
                Some(next) => at = next,
                None => return Stop::Return,
            }
        }
        panic!("no end in sight at {at:#x}");
    }

    /// Executes one instruction; says where it goes on, unless it returns to nobody.
    fn step(&mut self, instruction: &Instruction) -> Option<u64> {
        let next = instruction.next_ip();
        match instruction.code() {
            Code::Endbr64 | Code::Lfence | Code::Nopd | Code::Nopw | Code::Cmc => {}
            Code::Nop_rm16 | Code::Nop_rm32 => {}
            Code::Sar_rm64_imm8 => {
                assert_eq!(
                    (instruction.segment_prefix(), instruction.immediate8()),
                    (Register::GS, 5)
                );
                self.counts += 1;
            }
            Code::Mov_r32_imm32 | Code::Mov_r64_imm64 | Code::Mov_r32_rm32 | Code::Mov_r64_rm64 => {
                let value = self.value(instruction, 1);
                self.set(instruction.op0_register(), value);
            }
            Code::Lea_r64_m => {
                let value = self.address(instruction);
                self.set(instruction.op0_register(), value);
            }
            Code::Add_rm64_r64 => {
                let sum = self.value(instruction, 0).wrapping_add(self.value(instruction, 1));
                self.set(instruction.op0_register(), sum);
            }
            Code::Add_r32_rm32 => {
                let sum = self.value(instruction, 0).wrapping_add(self.value(instruction, 1));
                self.zero = sum & 0xffff_ffff == 0;
                self.set(instruction.op0_register(), sum);
            }
            Code::Sub_EAX_imm32 | Code::Sub_rm32_imm32 | Code::Sub_rm64_imm8 => {
                let difference = self.compare(instruction);
                self.set(instruction.op0_register(), difference);
            }
            Code::Cmp_EAX_imm32 | Code::Cmp_rm32_imm32 | Code::Cmp_r32_rm32 => {
                self.compare(instruction);
            }
            Code::Cmovne_r64_rm64 => {
                if !self.zero {
                    let value = self.value(instruction, 1);
                    self.set(instruction.op0_register(), value);
                }
            }
            Code::Je_rel8_64 | Code::Je_rel32_64 => {
                return Some(self.branch(instruction, self.zero));
            }
            Code::Jne_rel8_64 | Code::Jne_rel32_64 => {
                return Some(self.branch(instruction, !self.zero));
            }
            Code::Jae_rel32_64 => return Some(self.branch(instruction, !self.carry)),
            Code::Jmp_rel32_64 => return Some(instruction.near_branch_target()),
            Code::Jmp_rm64 => return Some(self.value(instruction, 0)),
            Code::Call_rel32_64 => {
                self.stack.push(next);
                return Some(instruction.near_branch_target());
            }
            Code::Call_rm64 => {
                self.stack.push(next);
                return Some(self.value(instruction, 0));
            }
            Code::Retnq => return self.stack.pop(),
            other => panic!("{other:?} at {:#x}", instruction.ip()),
        }
        Some(next)
    }

    fn branch(&self, instruction: &Instruction, taken: bool) -> u64 {
        if taken { instruction.near_branch_target() } else { instruction.next_ip() }
    }

    /// Sets the flags of a subtraction, and says what comes of it.
    fn compare(&mut self, instruction: &Instruction) -> u64 {
        let (left, right) = (self.value(instruction, 0), self.value(instruction, 1));
        let wide = instruction.op0_register().size() == 8;
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        self.zero = left & mask == right & mask;
        self.carry = (left & mask) < (right & mask);
        left.wrapping_sub(right)
    }

    fn address(&self, instruction: &Instruction) -> u64 {
        if instruction.is_ip_rel_memory_operand() {
            return instruction.ip_rel_memory_address();
        }
        let of = |register: Register| match register {
            Register::None => 0,
            register => self.regs[register.number()],
        };
        of(instruction.memory_base())
            .wrapping_add(
                of(instruction.memory_index())
                    .wrapping_mul(u64::from(instruction.memory_index_scale())),
            )
            .wrapping_add(instruction.memory_displacement64())
    }

    fn value(&self, instruction: &Instruction, operand: u32) -> u64 {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                let value = self.regs[register.number()];
                if register.size() == 8 { value } else { value & 0xffff_ffff }
            }
            OpKind::Memory => {
                let at = self.address(instruction);
                if let Some(&(_, value)) = self.readable.iter().find(|&&(place, _)| place == at) {
                    return value;
                }
                let bytes = self.bytes(at).unwrap_or_else(|| panic!("{at:#x} is read"));
                let word = bytes.first_chunk().unwrap_or_else(|| panic!("{at:#x} is read"));
                u64::from(u32::from_le_bytes(*word))
            }
            _ => instruction.immediate(operand),
        }
    }

    fn set(&mut self, register: Register, value: u64) {
        let value = if register.size() == 8 { value } else { value & 0xffff_ffff };
        self.regs[register.number()] = value;
    }
}
