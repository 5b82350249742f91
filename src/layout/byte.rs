//! Bytes of code, as far as they are always the same.

/// One byte of what stands around an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Byte {
    /// Always this one.
    Is(u8),
    /// The opcode of `mov r32, imm32` for any of the eight registers, `b8` to `bf`: clang 21
    /// and later say with the register how many arguments the function has.
    MovImm32,
    /// Part of a hash.
    Hash,
    /// Anything: part of an address or of a displacement.
    Any,
}

impl Byte {
    /// Whether `byte` can stand here.
    #[must_use]
    pub const fn admits(self, byte: u8) -> bool {
        match self {
            Self::Is(this) => this == byte,
            Self::MovImm32 => byte & 0xf8 == 0xb8,
            Self::Hash | Self::Any => true,
        }
    }
}

/// The `N` bytes that `text` writes, with a space after each: two hexadecimal digits, `b+` for
/// [`Byte::MovImm32`], `hh` for [`Byte::Hash`], `..` for [`Byte::Any`].
///
/// # Panics
/// If `text` is not that. Every caller is a constant, so the compiler says it.
pub(super) const fn pattern<const N: usize>(text: &str) -> [Byte; N] {
    const fn digit(of: u8) -> u8 {
        match of {
            b'0'..=b'9' => of - b'0',
            b'a'..=b'f' => of - b'a' + 10,
            _ => panic!("neither a hexadecimal digit nor a known pair"),
        }
    }
    let text = text.as_bytes();
    assert!(text.len() + 1 == 3 * N, "not as many bytes as the array has");
    let mut all = [Byte::Any; N];
    let mut i = 0;
    while i < N {
        all[i] = match (text[3 * i], text[3 * i + 1]) {
            (b'.', b'.') => Byte::Any,
            (b'h', b'h') => Byte::Hash,
            (b'b', b'+') => Byte::MovImm32,
            (high, low) => Byte::Is(digit(high) << 4 | digit(low)),
        };
        i += 1;
    }
    all
}
