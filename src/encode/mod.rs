//! Instruction encoders into a caller's buffer.
//!
//! Every instruction is a plain `const fn` that appends to a [`CodeBuffer`]: it allocates
//! nothing, and either appends the whole instruction or reports an [`EncodeError`] and
//! appends nothing. The buffer knows the address its first byte will run at, so branches
//! take absolute targets, and an image can be emitted anywhere before it is copied to its
//! place. An architecture is a module that compiles on every host.

pub mod aarch64;
pub mod x86_64;

use core::fmt;

/// Why an instruction was not emitted. The buffer is as it was before the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The buffer has no room for the instruction.
    Overflow {
        /// Bytes that were to be appended.
        needed: usize,
        /// Bytes that the buffer had left.
        remaining: usize,
    },
    /// A 32-bit displacement does not reach the target.
    OutOfRange {
        /// Address of the instruction after the one that refers to the target: what the
        /// displacement is counted from.
        from: u64,
        /// Address of the target.
        to: u64,
    },
    /// An 8-bit displacement does not reach the target.
    OutOfShortRange {
        /// Address of the instruction after the branch: what the displacement is counted from.
        from: u64,
        /// Address of the target.
        to: u64,
    },
    /// A memory operand has `rsp` as its index, which no encoding can express.
    IndexIsRsp {
        /// Address at which the instruction was to stand.
        at: u64,
    },
    /// An arm64 instruction does not reach the target.
    OutOfReach {
        /// Address of the instruction, or of its page where it deals in pages: what the
        /// distance is counted from.
        from: u64,
        /// Address of the target.
        to: u64,
        /// Bytes that it reaches back, and one step less forward.
        reach: u64,
        /// Bytes that the distance is a multiple of.
        step: u64,
    },
    /// An arm64 instruction cannot hold the number.
    Immediate {
        /// The number.
        value: i64,
        /// The least that it can hold.
        min: i64,
        /// The most that it can hold.
        max: i64,
        /// What the number is a multiple of.
        step: i64,
    },
    /// An arm64 load or store uses one register twice in a way that has no defined outcome.
    Unpredictable {
        /// Address at which the instruction was to stand.
        at: u64,
    },
    /// There is no single nop of this length.
    NopLength {
        /// The length that was asked for, in bytes.
        len: usize,
    },
}

/// Signed distance from `from` to `to`, both modulo 2^64, as branches compute it.
const fn distance(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from).cast_signed()
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Overflow { needed, remaining } => write!(
                f,
                "{needed} bytes do not fit into the {remaining} that the code buffer has left; \
                 give it a larger buffer"
            ),
            Self::OutOfRange { from, to } => write!(
                f,
                "the target {to:#x} is {} bytes from {from:#x}, and a 32-bit displacement \
                 reaches from -2147483648 to 2147483647; emit the image within 2 GiB of {to:#x}",
                distance(from, to)
            ),
            Self::OutOfShortRange { from, to } => write!(
                f,
                "the target {to:#x} is {} bytes from {from:#x}, and a short jump reaches from \
                 -128 to 127; use a near jump",
                distance(from, to)
            ),
            Self::IndexIsRsp { at } => write!(
                f,
                "the memory operand of the instruction at {at:#x} has rsp as its index, which \
                 cannot be encoded; make rsp the base, or index with another register"
            ),
            Self::OutOfReach { from, to, reach, step } => write!(
                f,
                "the target {to:#x} is {} bytes from {from:#x}, and the instruction reaches {reach} \
                 in steps of {step}; emit the image nearer to {to:#x}",
                distance(from, to)
            ),
            Self::Immediate { value, min, max, step } => write!(
                f,
                "the instruction cannot hold {value}: it can hold {min} to {max} in steps of {step}; \
                 put the value into a register first"
            ),
            Self::Unpredictable { at } => write!(
                f,
                "the load or store at {at:#x} would load a register twice, or one that its \
                 address changes; use another register"
            ),
            Self::NopLength { len } => write!(
                f,
                "no single nop is {len} bytes long; ask for 1 to {} bytes at a time",
                x86_64::NOP_MAX
            ),
        }
    }
}

impl core::error::Error for EncodeError {}

/// Code in the making: a caller's bytes, filled from the front, and the address at which the
/// first of them will run.
///
/// ```
/// use fentry::encode::{CodeBuffer, x86_64};
///
/// let mut bytes = [0; 16];
/// let mut code = CodeBuffer::new(&mut bytes, 0x1000);
/// x86_64::endbr64(&mut code)?;
/// x86_64::jmp(&mut code, 0x2000)?;
/// assert_eq!(code.here(), 0x1009);
/// assert_eq!(code.written(), [0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0xf7, 0x0f, 0x00, 0x00]);
/// # Ok::<(), fentry::encode::EncodeError>(())
/// ```
#[derive(Debug)]
pub struct CodeBuffer<'a> {
    bytes: &'a mut [u8],
    /// Never more than `bytes.len()`.
    position: usize,
    address: u64,
}

impl<'a> CodeBuffer<'a> {
    /// An empty buffer over `bytes`, whose first byte will run at `address`.
    ///
    /// Addresses are modulo 2^64, as the instruction pointer is.
    #[must_use]
    pub const fn new(bytes: &'a mut [u8], address: u64) -> Self {
        Self { bytes, position: 0, address }
    }

    /// Bytes appended so far.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// Address at which the next byte that is appended will run.
    #[must_use]
    pub const fn here(&self) -> u64 {
        self.address.wrapping_add(self.position as u64)
    }

    /// Bytes that can still be appended.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// What was appended so far.
    #[must_use]
    pub const fn written(&self) -> &[u8] {
        match self.bytes.split_at_checked(self.position) {
            Some((written, _)) => written,
            None => self.bytes,
        }
    }

    /// Appends `bytes` as they are.
    ///
    /// # Errors
    /// [`EncodeError::Overflow`] when they do not all fit; then none is appended.
    pub const fn bytes(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        match self.reserve(bytes.len()) {
            Ok(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Appends the lowest `len` bytes of `value`, the lowest first.
    const fn little_endian(&mut self, value: u128, len: usize) -> Result<(), EncodeError> {
        match self.reserve(len) {
            Ok(mut place) => {
                let mut rest = value;
                while let Some((byte, after)) = place.split_first_mut() {
                    *byte = (rest & 0xff) as u8;
                    rest >>= 8;
                    place = after;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the next `len` bytes for the caller to fill.
    const fn reserve(&mut self, len: usize) -> Result<&mut [u8], EncodeError> {
        let overflow = EncodeError::Overflow { needed: len, remaining: self.remaining() };
        let Some((_, free)) = self.bytes.split_at_mut_checked(self.position) else {
            return Err(overflow);
        };
        let Some((place, _)) = free.split_at_mut_checked(len) else {
            return Err(overflow);
        };
        self.position += len;
        Ok(place)
    }
}
