//! The preambles of FineIBT, generation by generation.

use super::byte::{Byte, pattern};

/// A FineIBT preamble: 16 bytes before the entry that an indirect call lands on, and 4 at the
/// entry, where a direct call goes and an `endbr64` was.
///
/// Callers count on the 16 (`fineibt_prefix_size`), so that is where it is, whatever the
/// alignment. The bytes are from Linux's arch/x86/kernel/alternative.c of the versions named.
/// A "paranoid" kernel (`cfi=fineibt,paranoid`) has the same preambles: its callers check the
/// hash, too, and read it where [`hash`](Self::hash) says.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct FineIbt {
    name: &'static str,
    forms: &'static [[Byte; Self::SIZE as usize]],
    hash: i32,
}

impl FineIbt {
    /// Bytes before the entry.
    pub const BEFORE: u16 = 16;

    /// Bytes in all, four of them at the entry.
    pub const SIZE: u16 = 20;

    /// Linux 6.2 to 6.14: `sub r10d, hash; je entry; ud2; nop`.
    pub const ORIGINAL: Self = Self {
        name: "FineIBT (6.2)",
        forms: &[pattern("f3 0f 1e fa 41 81 ea hh hh hh hh 74 03 0f 0b 90 66 0f 1f 00")],
        hash: -9,
    };

    /// The shorter form of 2025, Linux 6.15: `sub r10d, hash; jne` into the subtraction, whose
    /// byte EA raises #UD.
    pub const SHORT: Self = Self {
        name: "FineIBT (6.15)",
        forms: &[pattern("f3 0f 1e fa 41 81 ea hh hh hh hh 75 f9 0f 1f 00 66 0f 1f 00")],
        hash: -9,
    };

    /// [`SHORT`](Self::SHORT) with a check of branch history, for functions of one argument:
    /// `cmovne rdi, r10; jne`, whose displacement is the first byte at the entry, and `cmc` to
    /// whoever begins there.
    pub const SHORT_BHI_1: Self = Self {
        name: "FineIBT with BHI, one argument (6.15)",
        forms: &[pattern("f3 0f 1e fa 41 81 ea hh hh hh hh 49 0f 45 fa 75 f5 0f 1f 00")],
        hash: -9,
    };

    /// [`SHORT`](Self::SHORT) with a check of branch history for any other number of arguments,
    /// in a stub: `call __bhi_args[n]`.
    pub const SHORT_BHI: Self = Self {
        name: "FineIBT with BHI (6.15)",
        forms: &[pattern("f3 0f 1e fa 41 81 ea hh hh hh hh e8 .. .. .. .. 66 0f 1f 00")],
        hash: -9,
    };

    /// Linux 7.2: `sub eax, hash; jne` to the last byte of the nop at the entry, D6, which
    /// raises #UD.
    pub const UDB: Self = Self {
        name: "FineIBT (7.2)",
        forms: &[pattern("f3 0f 1e fa 2d hh hh hh hh 2e 0f 85 03 00 00 00 0f 1f 40 d6")],
        hash: -11,
    };

    /// [`UDB`](Self::UDB) with a check of branch history, for functions of one argument:
    /// `cmovne rdi, rax; jne`. A prefix stands before the second, as in 7.2, or before the
    /// first, as posted in August 2025.
    pub const UDB_BHI_1: Self = Self {
        name: "FineIBT with BHI, one argument (7.2)",
        forms: &[
            pattern("f3 0f 1e fa 2d hh hh hh hh 48 0f 45 f8 2e 75 03 0f 1f 40 d6"),
            pattern("f3 0f 1e fa 2d hh hh hh hh 2e 48 0f 45 f8 75 03 0f 1f 40 d6"),
        ],
        hash: -11,
    };

    /// [`UDB`](Self::UDB) with a check of branch history for any other number of arguments, in
    /// a stub: `call __bhi_args[n]`, with two prefixes to fill.
    pub const UDB_BHI: Self = Self {
        name: "FineIBT with BHI (7.2)",
        forms: &[pattern("f3 0f 1e fa 2d hh hh hh hh 2e 2e e8 .. .. .. .. 0f 1f 40 d6")],
        hash: -11,
    };

    /// All of them. No bytes are two of them.
    pub const ALL: &'static [Self] = &[
        Self::ORIGINAL,
        Self::SHORT,
        Self::SHORT_BHI_1,
        Self::SHORT_BHI,
        Self::UDB,
        Self::UDB_BHI_1,
        Self::UDB_BHI,
    ];

    /// What it is called, and the first Linux that has it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes from the entry to the hash, which is four bytes long; negative.
    #[must_use]
    pub const fn hash(&self) -> i32 {
        self.hash
    }

    /// The bytes that it can be, from 16 before the entry on.
    #[must_use]
    pub const fn forms(&self) -> &'static [[Byte; Self::SIZE as usize]] {
        self.forms
    }
}
