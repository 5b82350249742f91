//! The hash in a preamble that is there already: finding it and putting another in its place.

use core::fmt;

use super::check::Generation;
use super::preamble::{FineIbt, Kcfi, Preamble};
use crate::emit::kcfi;
use crate::layout::FineIbt as Place;

/// Where a preamble keeps its hash.
///
/// ```
/// use fentry::emit::kcfi;
/// use fentry::emit::x86_64::HashPlace;
///
/// // mov eax, 0x12345678 and eleven nops, as clang makes them for Linux.
/// let mut before_entry = [0x90; 16];
/// before_entry[..5].copy_from_slice(&[0xb8, 0x78, 0x56, 0x34, 0x12]);
/// let place = HashPlace::Kcfi { padding: 11 };
///
/// let old = place.read(&before_entry)?;
/// place.replace(&mut before_entry, kcfi::rehash(old, 0xffff_0000))?;
/// assert_eq!(before_entry[..5], [0xb8, 0x78, 0x56, 0xcb, 0xed]);
/// # Ok::<(), fentry::emit::x86_64::PreambleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HashPlace {
    /// In a kCFI preamble.
    Kcfi {
        /// Bytes between the hash and the entry.
        padding: u8,
    },
    /// In a FineIBT preamble.
    FineIbt(Generation),
}

/// Why there is no hash to be read or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PreambleError {
    /// There are fewer bytes than the preamble has before the entry.
    TooShort {
        /// How many there are.
        found: usize,
        /// How many the preamble has.
        expected: u16,
    },
    /// A byte before the hash is not the one that stands there in a preamble of this kind.
    OtherByte {
        /// Bytes from it to the entry.
        before_entry: u16,
        /// The byte.
        found: u8,
        /// What stands there in such a preamble.
        expected: u8,
    },
    /// The new hash, or its negation in the callers, would be a landing pad.
    LandingPad {
        /// The new hash.
        hash: u32,
    },
}

impl fmt::Display for PreambleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooShort { found, expected } => write!(
                f,
                "a preamble of this kind has {expected} bytes before the entry, and {found} were \
                 given; read all of them"
            ),
            Self::OtherByte { before_entry, found, expected } => write!(
                f,
                "{before_entry} bytes before the entry stands {found:#04x}, and in a preamble of \
                 this kind {expected:#04x}; ask the kernel or the compiler which kind it makes"
            ),
            Self::LandingPad { hash } => write!(
                f,
                "the hash {hash:#010x} or its negation is a landing pad, so that indirect \
                 branches could enter the middle of an instruction; make it another with \
                 `without_landing_pad` or `rehash`"
            ),
        }
    }
}

impl core::error::Error for PreambleError {}

impl Preamble {
    /// Where this preamble keeps its hash; `None` where it has none.
    #[must_use]
    pub const fn hash_place(&self) -> Option<HashPlace> {
        match *self {
            Self::None | Self::Endbr64 => None,
            Self::Kcfi(Kcfi { padding, .. }) => Some(HashPlace::Kcfi { padding }),
            Self::FineIbt(FineIbt { generation, .. }) => Some(HashPlace::FineIbt(generation)),
        }
    }
}

/// Bytes from the hash to the entry.
const fn before(place: &Place) -> u16 {
    place.hash().unsigned_abs() as u16
}

/// `mov r32, imm32` of one of the first eight registers, but for the register.
const MOV: u8 = 0xb8;
/// The bits of it that say which register.
const REGISTER: u8 = 7;
/// `sub r10d, imm32` behind a landing pad.
const SUB_R10D: [u8; 7] = [0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x81, 0xea];
/// `sub eax, imm32` behind a landing pad.
const SUB_EAX: [u8; 5] = [0xf3, 0x0f, 0x1e, 0xfa, 0x2d];

impl HashPlace {
    /// Bytes from the first of the hash's four to the entry.
    #[must_use]
    pub const fn to_entry(self) -> u16 {
        match self {
            Self::Kcfi { padding } => padding as u16 + 4,
            Self::FineIbt(Generation::Original | Generation::Short) => before(&Place::SHORT),
            Self::FineIbt(Generation::Udb) => before(&Place::UDB),
        }
    }

    /// What stands before the hash.
    const fn lead(self) -> &'static [u8] {
        match self {
            Self::Kcfi { .. } => &[MOV],
            Self::FineIbt(Generation::Original | Generation::Short) => &SUB_R10D,
            Self::FineIbt(Generation::Udb) => &SUB_EAX,
        }
    }

    /// The hash of the preamble whose bytes up to the entry `before_entry` ends with.
    ///
    /// # Errors
    /// [`PreambleError::TooShort`], and [`PreambleError::OtherByte`] where the bytes are not
    /// a preamble of this kind.
    pub fn read(self, before_entry: &[u8]) -> Result<u32, PreambleError> {
        let end = before_entry.len();
        let expected = self.to_entry() + self.lead().len() as u16;
        let too_short = PreambleError::TooShort { found: end, expected };
        let start = end.checked_sub(usize::from(expected)).ok_or(too_short)?;
        let (_, preamble) = before_entry.split_at_checked(start).ok_or(too_short)?;
        let mut left = expected;
        for (&found, &expected) in preamble.iter().zip(self.lead()) {
            let same = match self {
                Self::Kcfi { .. } => found & !REGISTER == expected,
                Self::FineIbt(_) => found == expected,
            };
            if !same {
                return Err(PreambleError::OtherByte { before_entry: left, found, expected });
            }
            left -= 1;
        }
        match preamble.get(self.lead().len()..).and_then(<[u8]>::first_chunk) {
            Some(hash) => Ok(u32::from_le_bytes(*hash)),
            None => Err(too_short),
        }
    }

    /// Puts `hash` in the place of the one in the preamble, whose bytes up to the entry
    /// `before_entry` ends with, and returns the old one. The bytes are a copy, or of text that
    /// nobody executes: no core may see half of a hash.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`PreambleError::LandingPad`]. Then nothing is
    /// changed.
    pub fn replace(self, before_entry: &mut [u8], hash: u32) -> Result<u32, PreambleError> {
        let old = self.read(before_entry)?;
        if kcfi::without_landing_pad(hash) != hash {
            return Err(PreambleError::LandingPad { hash });
        }
        let end = before_entry.len();
        let to_entry = usize::from(self.to_entry());
        if let Some(start) = end.checked_sub(to_entry)
            && let Some(place) = before_entry.get_mut(start..).and_then(<[u8]>::first_chunk_mut)
        {
            *place = hash.to_le_bytes();
        }
        Ok(old)
    }
}
