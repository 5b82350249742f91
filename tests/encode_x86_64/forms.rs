//! Every function of the encoder with the encoding it must choose, by the shape of its
//! operands.

use fentry::encode::x86_64::{self as x, Condition, Mem, Reg, Vector};
use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::{Code, Register};

use crate::check::{Expected, Operand};

type Emitted = Result<(), EncodeError>;

/// A decoder's name of register `number` of the class that begins with `first`.
pub fn register(first: Register, number: u8) -> Register {
    first + u32::from(number)
}

fn operand(first: Register, number: u8) -> Operand {
    Operand::Register(register(first, number))
}

fn reg(number: u8) -> Reg {
    Reg::ALL[usize::from(number)]
}

fn vector(number: u8) -> Vector {
    Vector::new(number).expect("tests stay below 16")
}

/// 1 where one of the registers needs a REX prefix.
fn rex(numbers: &[u8]) -> usize {
    usize::from(numbers.iter().any(|&number| number >= 8))
}

/// A function of no operand.
pub struct Plain {
    pub emit: fn(&mut CodeBuffer<'_>) -> Emitted,
    pub code: Code,
    pub size: usize,
}

pub const PLAIN: [Plain; 6] = [
    Plain { emit: x::ret, code: Code::Retnq, size: 1 },
    Plain { emit: x::int3, code: Code::Int3, size: 1 },
    Plain { emit: x::endbr64, code: Code::Endbr64, size: 4 },
    Plain { emit: x::ud2, code: Code::Ud2, size: 2 },
    Plain { emit: x::lfence, code: Code::Lfence, size: 3 },
    Plain { emit: x::vzeroupper, code: Code::VEX_Vzeroupper, size: 3 },
];

impl Plain {
    pub fn expected(&self) -> Expected {
        Expected { code: self.code, size: self.size, operands: [Operand::None; 2] }
    }
}

/// A function of one register.
pub struct One {
    pub emit: fn(&mut CodeBuffer<'_>, Reg) -> Emitted,
    pub code: Code,
    /// Without REX.
    size: usize,
}

pub const ONE: [One; 4] = [
    One { emit: x::push, code: Code::Push_r64, size: 1 },
    One { emit: x::pop, code: Code::Pop_r64, size: 1 },
    One { emit: x::call_reg, code: Code::Call_rm64, size: 2 },
    One { emit: x::jmp_reg, code: Code::Jmp_rm64, size: 2 },
];

impl One {
    pub fn expected(&self, a: Reg) -> Expected {
        Expected {
            code: self.code,
            size: self.size + rex(&[a.number()]),
            operands: [operand(Register::RAX, a.number()), Operand::None],
        }
    }
}

/// A function of two registers.
pub struct Two {
    pub emit: fn(&mut CodeBuffer<'_>, Reg, Reg) -> Emitted,
    pub code: Code,
    first: Register,
}

pub const TWO: [Two; 4] = [
    Two { emit: x::mov_reg_reg, code: Code::Mov_rm64_r64, first: Register::RAX },
    Two { emit: x::add_reg, code: Code::Add_rm64_r64, first: Register::RAX },
    Two { emit: x::test_reg, code: Code::Test_rm64_r64, first: Register::RAX },
    Two { emit: x::xor_reg32, code: Code::Xor_rm32_r32, first: Register::EAX },
];

impl Two {
    pub fn expected(&self, a: Reg, b: Reg) -> Expected {
        let (a, b) = (a.number(), b.number());
        let prefix = if self.first == Register::RAX { 1 } else { rex(&[a, b]) };
        Expected {
            code: self.code,
            size: 2 + prefix,
            operands: [operand(self.first, a), operand(self.first, b)],
        }
    }
}

/// A function of a register and a sign-extended immediate, with the codes of its forms with
/// 8 bits, with 32 bits on `rax`, and with 32 bits.
pub struct Arithmetic {
    pub emit: fn(&mut CodeBuffer<'_>, Reg, i32) -> Emitted,
    codes: [Code; 3],
}

pub const ARITHMETIC: [Arithmetic; 4] = [
    Arithmetic {
        emit: x::add_imm,
        codes: [Code::Add_rm64_imm8, Code::Add_RAX_imm32, Code::Add_rm64_imm32],
    },
    Arithmetic {
        emit: x::sub_imm,
        codes: [Code::Sub_rm64_imm8, Code::Sub_RAX_imm32, Code::Sub_rm64_imm32],
    },
    Arithmetic {
        emit: x::and_imm,
        codes: [Code::And_rm64_imm8, Code::And_RAX_imm32, Code::And_rm64_imm32],
    },
    Arithmetic {
        emit: x::cmp_imm,
        codes: [Code::Cmp_rm64_imm8, Code::Cmp_RAX_imm32, Code::Cmp_rm64_imm32],
    },
];

impl Arithmetic {
    pub fn expected(&self, a: Reg, value: i32) -> Expected {
        let [short, rax, long] = self.codes;
        let (code, size) = match (i8::try_from(value), a) {
            (Ok(_), _) => (short, 4),
            (Err(_), Reg::Rax) => (rax, 6),
            (Err(_), _) => (long, 7),
        };
        let value = i64::from(value).cast_unsigned();
        let operands = [operand(Register::RAX, a.number()), Operand::Immediate(value)];
        Expected { code, size, operands }
    }
}

/// A function that loads a constant; the value is cut to what the function takes.
pub struct Constant {
    pub emit: fn(&mut CodeBuffer<'_>, Reg, u64) -> Emitted,
    pub code: Code,
    first: Register,
    size: fn(u8) -> usize,
    /// What the decoder must report of a value.
    value: fn(u64) -> u64,
}

/// The lower half of a value.
fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

pub const CONSTANT: [Constant; 3] = [
    Constant {
        emit: |code, reg, value| x::mov_imm32(code, reg, low(value)),
        code: Code::Mov_r32_imm32,
        first: Register::EAX,
        size: |reg| 5 + rex(&[reg]),
        value: |value| u64::from(low(value)),
    },
    Constant {
        emit: |code, reg, value| x::mov_imm32_sign(code, reg, low(value).cast_signed()),
        code: Code::Mov_rm64_imm32,
        first: Register::RAX,
        size: |_| 7,
        value: |value| i64::from(low(value).cast_signed()).cast_unsigned(),
    },
    Constant {
        emit: x::mov_imm64,
        code: Code::Mov_r64_imm64,
        first: Register::RAX,
        size: |_| 10,
        value: |value| value,
    },
];

impl Constant {
    pub fn expected(&self, a: Reg, value: u64) -> Expected {
        Expected {
            code: self.code,
            size: (self.size)(a.number()),
            operands: [operand(self.first, a.number()), Operand::Immediate((self.value)(value))],
        }
    }
}

/// What stands before the opcode of a function with a memory operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    Rex,
    RexW,
    RexW0f,
    Rex0f,
    Vex,
    Evex,
}

/// A function of a memory operand and perhaps a register.
pub struct Memory {
    pub emit: fn(&mut CodeBuffer<'_>, u8, Mem) -> Emitted,
    pub code: Code,
    pub lead: Lead,
    /// The register's class; [`Register::None`] where there is no register.
    pub first: Register,
    /// Whether the register is written and the memory read.
    load: bool,
}

const fn load(
    emit: fn(&mut CodeBuffer<'_>, u8, Mem) -> Emitted,
    code: Code,
    lead: Lead,
    first: Register,
) -> Memory {
    Memory { emit, code, lead, first, load: true }
}

const fn store(
    emit: fn(&mut CodeBuffer<'_>, u8, Mem) -> Emitted,
    code: Code,
    lead: Lead,
    first: Register,
) -> Memory {
    Memory { emit, code, lead, first, load: false }
}

pub const MEMORY: [Memory; 19] = [
    load(|c, r, m| x::mov_load64(c, reg(r), m), Code::Mov_r64_rm64, Lead::RexW, Register::RAX),
    load(|c, r, m| x::mov_load32(c, reg(r), m), Code::Mov_r32_rm32, Lead::Rex, Register::EAX),
    store(|c, r, m| x::mov_store64(c, m, reg(r)), Code::Mov_rm64_r64, Lead::RexW, Register::RAX),
    store(|c, r, m| x::mov_store32(c, m, reg(r)), Code::Mov_rm32_r32, Lead::Rex, Register::EAX),
    load(|c, r, m| x::lea(c, reg(r), m), Code::Lea_r64_m, Lead::RexW, Register::RAX),
    load(|c, r, m| x::cmp_load64(c, reg(r), m), Code::Cmp_r64_rm64, Lead::RexW, Register::RAX),
    load(|c, r, m| x::cmp_load32(c, reg(r), m), Code::Cmp_r32_rm32, Lead::Rex, Register::EAX),
    load(|c, r, m| x::add_load32(c, reg(r), m), Code::Add_r32_rm32, Lead::Rex, Register::EAX),
    store(|c, _, m| x::call_mem(c, m), Code::Call_rm64, Lead::Rex, Register::None),
    store(|c, _, m| x::jmp_mem(c, m), Code::Jmp_rm64, Lead::Rex, Register::None),
    store(
        |c, r, m| x::cmpxchg64(c, m, reg(r)),
        Code::Cmpxchg_rm64_r64,
        Lead::RexW0f,
        Register::RAX,
    ),
    store(|c, _, m| x::inc_mem64(c, m), Code::Inc_rm64, Lead::RexW, Register::None),
    store(|c, _, m| x::dec_mem64(c, m), Code::Dec_rm64, Lead::RexW, Register::None),
    load(
        |c, r, m| x::movups_load(c, vector(r), m),
        Code::Movups_xmm_xmmm128,
        Lead::Rex0f,
        Register::XMM0,
    ),
    store(
        |c, r, m| x::movups_store(c, m, vector(r)),
        Code::Movups_xmmm128_xmm,
        Lead::Rex0f,
        Register::XMM0,
    ),
    load(
        |c, r, m| x::vmovups256_load(c, vector(r), m),
        Code::VEX_Vmovups_ymm_ymmm256,
        Lead::Vex,
        Register::YMM0,
    ),
    store(
        |c, r, m| x::vmovups256_store(c, m, vector(r)),
        Code::VEX_Vmovups_ymmm256_ymm,
        Lead::Vex,
        Register::YMM0,
    ),
    load(
        |c, r, m| x::vmovups512_load(c, vector(r), m),
        Code::EVEX_Vmovups_zmm_k1z_zmmm512,
        Lead::Evex,
        Register::ZMM0,
    ),
    store(
        |c, r, m| x::vmovups512_store(c, m, vector(r)),
        Code::EVEX_Vmovups_zmmm512_k1z_zmm,
        Lead::Evex,
        Register::ZMM0,
    ),
];

impl Memory {
    /// The numbers that the register operand can take.
    pub fn registers(&self) -> core::ops::Range<u8> {
        if self.first == Register::None { 0..1 } else { 0..16 }
    }

    pub fn expected(&self, number: u8, mem: Mem) -> Expected {
        let (index, scale) = match mem.index {
            Some((index, scale)) => (operand_name(index), 1 << scale as u32),
            None => (Register::None, 1),
        };
        let memory =
            Operand::Memory { base: operand_name(mem.base), index, scale, displacement: mem.disp };
        let operands = if self.first == Register::None {
            [memory, Operand::None]
        } else if self.load {
            [operand(self.first, number), memory]
        } else {
            [memory, operand(self.first, number)]
        };
        Expected { code: self.code, size: self.size(number, mem), operands }
    }

    /// The least size that the rules of the SDM allow.
    fn size(&self, number: u8, mem: Mem) -> usize {
        let number = number % self.registers().end;
        let base = mem.base.number();
        let index = mem.index.map_or(0, |(index, _)| index.number());
        let lead = match self.lead {
            Lead::Rex => rex(&[number, base, index]),
            Lead::RexW => 1,
            Lead::RexW0f => 2,
            Lead::Rex0f => 1 + rex(&[number, base, index]),
            Lead::Vex => 2 + rex(&[base, index]),
            Lead::Evex => 4,
        };
        let sib = usize::from(mem.index.is_some() || matches!(mem.base, Reg::Rsp | Reg::R12));
        let step = if self.lead == Lead::Evex { 64 } else { 1 };
        let displacement = if mem.disp == 0 && !matches!(mem.base, Reg::Rbp | Reg::R13) {
            0
        } else if mem.disp % step == 0 && i8::try_from(mem.disp / step).is_ok() {
            1
        } else {
            4
        };
        lead + 1 + 1 + sib + displacement
    }
}

fn operand_name(reg: Reg) -> Register {
    register(Register::RAX, reg.number())
}

/// A function of a target whose displacement has 32 bits.
pub struct Near {
    pub emit: fn(&mut CodeBuffer<'_>, u64) -> Emitted,
    pub code: Code,
    pub size: u64,
}

const fn branch(emit: fn(&mut CodeBuffer<'_>, u64) -> Emitted, code: Code, size: u64) -> Near {
    Near { emit, code, size }
}

/// All but `lea_rip`.
pub const NEAR: [Near; 18] = [
    branch(x::call, Code::Call_rel32_64, 5),
    branch(x::jmp, Code::Jmp_rel32_64, 5),
    branch(|c, to| x::jcc(c, Condition::Overflow, to), Code::Jo_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::NotOverflow, to), Code::Jno_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Below, to), Code::Jb_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::AboveOrEqual, to), Code::Jae_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Equal, to), Code::Je_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::NotEqual, to), Code::Jne_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::BelowOrEqual, to), Code::Jbe_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Above, to), Code::Ja_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Sign, to), Code::Js_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::NotSign, to), Code::Jns_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Parity, to), Code::Jp_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::NotParity, to), Code::Jnp_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Less, to), Code::Jl_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::GreaterOrEqual, to), Code::Jge_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::LessOrEqual, to), Code::Jle_rel32_64, 6),
    branch(|c, to| x::jcc(c, Condition::Greater, to), Code::Jg_rel32_64, 6),
];

impl Near {
    pub fn expected(&self, target: u64) -> Expected {
        let operands = [Operand::Branch(target), Operand::None];
        Expected { code: self.code, size: self.size as usize, operands }
    }
}

/// The 8-bit form of a conditional jump, by its condition's number.
#[allow(dead_code, reason = "the fuzz checks share this file, and have no use for these")]
pub const SHORT: [Code; 16] = [
    Code::Jo_rel8_64,
    Code::Jno_rel8_64,
    Code::Jb_rel8_64,
    Code::Jae_rel8_64,
    Code::Je_rel8_64,
    Code::Jne_rel8_64,
    Code::Jbe_rel8_64,
    Code::Ja_rel8_64,
    Code::Js_rel8_64,
    Code::Jns_rel8_64,
    Code::Jp_rel8_64,
    Code::Jnp_rel8_64,
    Code::Jl_rel8_64,
    Code::Jge_rel8_64,
    Code::Jle_rel8_64,
    Code::Jg_rel8_64,
];

/// What `lea_rip` must become.
pub fn expected_lea_rip(dst: Reg, target: u64) -> Expected {
    let operands = [operand(Register::RAX, dst.number()), Operand::RipRelative(target)];
    Expected { code: Code::Lea_r64_m, size: 7, operands }
}
