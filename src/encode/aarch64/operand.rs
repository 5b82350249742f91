//! What instructions work on.

/// A general-purpose register, by its number in an encoding. The instruction says whether all
/// 64 bits of it are meant or the lower 32. Number 31, which is the stack pointer or zero as the
/// instruction has it, is not one of these: see [`Base`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub enum Reg {
    X0 = 0,
    X1,
    X2,
    X3,
    X4,
    X5,
    X6,
    X7,
    X8,
    X9,
    X10,
    X11,
    X12,
    X13,
    X14,
    X15,
    X16,
    X17,
    X18,
    X19,
    X20,
    X21,
    X22,
    X23,
    X24,
    X25,
    X26,
    X27,
    X28,
    X29,
    X30,
}

impl Reg {
    /// The frame pointer, `x29` (AAPCS64, section 6.1.1).
    pub const FP: Self = Self::X29;
    /// The link register, `x30`.
    pub const LR: Self = Self::X30;

    /// Every register, in the order of their numbers.
    pub const ALL: [Self; 31] = [
        Self::X0,
        Self::X1,
        Self::X2,
        Self::X3,
        Self::X4,
        Self::X5,
        Self::X6,
        Self::X7,
        Self::X8,
        Self::X9,
        Self::X10,
        Self::X11,
        Self::X12,
        Self::X13,
        Self::X14,
        Self::X15,
        Self::X16,
        Self::X17,
        Self::X18,
        Self::X19,
        Self::X20,
        Self::X21,
        Self::X22,
        Self::X23,
        Self::X24,
        Self::X25,
        Self::X26,
        Self::X27,
        Self::X28,
        Self::X29,
        Self::X30,
    ];

    /// The register's number in an encoding, 0 to 30.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The number where an encoding has its destination or first operand.
    pub(super) const fn low(self) -> u32 {
        self as u32
    }

    /// The number where an encoding has its source or base.
    pub(super) const fn middle(self) -> u32 {
        (self as u32) << 5
    }

    /// The number where an encoding has its second source.
    pub(super) const fn high(self) -> u32 {
        (self as u32) << 16
    }
}

/// The base of an address, or an operand that may be the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// The stack pointer.
    Sp,
    /// A general-purpose register.
    Reg(Reg),
}

impl Base {
    /// Its number in an encoding, 0 to 31.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Sp => 31,
            Self::Reg(reg) => reg.number(),
        }
    }

    pub(super) const fn low(self) -> u32 {
        self.number() as u32
    }

    pub(super) const fn middle(self) -> u32 {
        (self.number() as u32) << 5
    }
}

/// A SIMD and floating-point register: all 128 bits, `q0` to `q31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vector(u8);

impl Vector {
    /// The register with this number; `None` from 32 on.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < 32 { Some(Self(number)) } else { None }
    }

    /// The register's number in an encoding, 0 to 31.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What a conditional branch asks of the flags, by its number in the encoding (DDI 0487,
/// C1.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Condition {
    /// `eq`: Z is set.
    Equal = 0,
    /// `ne`: Z is clear.
    NotEqual,
    /// `hs`: C is set; unsigned higher or same.
    HigherOrSame,
    /// `lo`: C is clear; unsigned lower.
    Lower,
    /// `mi`: N is set.
    Negative,
    /// `pl`: N is clear.
    NotNegative,
    /// `vs`: V is set.
    Overflow,
    /// `vc`: V is clear.
    NotOverflow,
    /// `hi`: C is set and Z is clear; unsigned higher.
    Higher,
    /// `ls`: C is clear or Z is set; unsigned lower or same.
    LowerOrSame,
    /// `ge`: N and V are equal.
    GreaterOrEqual,
    /// `lt`: N and V differ.
    Less,
    /// `gt`: Z is clear, and N and V are equal.
    Greater,
    /// `le`: Z is set, or N and V differ.
    LessOrEqual,
}

impl Condition {
    /// Every condition, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Equal,
        Self::NotEqual,
        Self::HigherOrSame,
        Self::Lower,
        Self::Negative,
        Self::NotNegative,
        Self::Overflow,
        Self::NotOverflow,
        Self::Higher,
        Self::LowerOrSame,
        Self::GreaterOrEqual,
        Self::Less,
        Self::Greater,
        Self::LessOrEqual,
    ];
}
