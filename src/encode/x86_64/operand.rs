//! What instructions work on.

/// A general-purpose register, by its number in an encoding. The instruction says whether
/// all 64 bits of it are meant or the lower 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub enum Reg {
    Rax = 0,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Reg {
    /// Every register, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// The register's number in an encoding, 0 to 15.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A vector register: `xmm`, `ymm` or `zmm` with this number, as the instruction says.
///
/// 0 to 15: the ones that exist with and without AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vector(u8);

impl Vector {
    /// The vector register with this number; `None` from 16 on.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < 16 { Some(Self(number)) } else { None }
    }

    /// The register's number in an encoding, 0 to 15.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What the index of a memory operand is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scale {
    /// 1 byte for each step of the index.
    One = 0,
    /// 2 bytes.
    Two = 1,
    /// 4 bytes.
    Four = 2,
    /// 8 bytes.
    Eight = 3,
}

/// A memory operand: `[base + index * scale + disp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mem {
    /// The register that holds the address everything else is added to.
    pub base: Reg,
    /// The register that is multiplied and added, any but [`Reg::Rsp`], and its factor.
    pub index: Option<(Reg, Scale)>,
    /// Bytes that are added, sign-extended.
    pub disp: i32,
}

impl Mem {
    /// `[base + disp]`.
    #[must_use]
    pub const fn at(base: Reg, disp: i32) -> Self {
        Self { base, index: None, disp }
    }

    /// The operand `bytes` further on; the displacement wraps around at the ends of its range.
    #[must_use]
    pub const fn plus(self, bytes: i32) -> Self {
        Self { disp: self.disp.wrapping_add(bytes), ..self }
    }

    /// This operand with `index * scale` added, in place of an index it may have had.
    ///
    /// With `rsp` as the index, encoding the operand is
    /// [`IndexIsRsp`](crate::encode::EncodeError::IndexIsRsp).
    #[must_use]
    pub const fn indexed(self, index: Reg, scale: Scale) -> Self {
        Self { index: Some((index, scale)), ..self }
    }
}

/// What a conditional jump asks of the flags, by its number in the opcode (Intel SDM
/// volume 1, appendix B). "Above" and "below" compare unsigned numbers, "greater" and "less"
/// signed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Condition {
    /// `jo`: OF is set.
    Overflow = 0,
    /// `jno`: OF is clear.
    NotOverflow,
    /// `jb`: CF is set.
    Below,
    /// `jae`: CF is clear.
    AboveOrEqual,
    /// `je`: ZF is set.
    Equal,
    /// `jne`: ZF is clear.
    NotEqual,
    /// `jbe`: CF or ZF is set.
    BelowOrEqual,
    /// `ja`: CF and ZF are clear.
    Above,
    /// `js`: SF is set.
    Sign,
    /// `jns`: SF is clear.
    NotSign,
    /// `jp`: PF is set.
    Parity,
    /// `jnp`: PF is clear.
    NotParity,
    /// `jl`: SF and OF differ.
    Less,
    /// `jge`: SF and OF are equal.
    GreaterOrEqual,
    /// `jle`: ZF is set, or SF and OF differ.
    LessOrEqual,
    /// `jg`: ZF is clear, and SF and OF are equal.
    Greater,
}

impl Condition {
    /// Every condition, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Overflow,
        Self::NotOverflow,
        Self::Below,
        Self::AboveOrEqual,
        Self::Equal,
        Self::NotEqual,
        Self::BelowOrEqual,
        Self::Above,
        Self::Sign,
        Self::NotSign,
        Self::Parity,
        Self::NotParity,
        Self::Less,
        Self::GreaterOrEqual,
        Self::LessOrEqual,
        Self::Greater,
    ];
}
