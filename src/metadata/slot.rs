//! The slot codec: an index as the bytes of an instruction, and back.

use crate::layout::{SlotKind, aarch64};

/// What a compiler leaves where an x86-64 slot goes: one-byte nops.
const NOPS: [u8; 5] = [0x90; 5];

/// `mov eax, imm32` (Intel SDM volume 2, MOV, `B8+rd id`).
const MOV_EAX: u8 = 0xb8;

/// What the bytes of a slot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotState {
    /// The one-byte nops that compilers fill padding with (gcc 12, clang 16 and 19): free
    /// for an index.
    Vacant,
    /// An index.
    Index(u32),
    /// Something else, which must not be overwritten.
    Foreign,
}

impl SlotState {
    /// Bytes of the longest slot.
    pub const MAX_SIZE: usize = 5;

    /// Reads a slot of `kind`, of which the first [`SlotKind::size`] bytes count.
    ///
    /// That a slot holds *an* index does not say that it is one of the caller's: compare it.
    #[must_use]
    pub const fn read(kind: SlotKind, bytes: [u8; Self::MAX_SIZE]) -> Self {
        match kind {
            SlotKind::MovEax => match bytes {
                NOPS => Self::Vacant,
                [MOV_EAX, a, b, c, d] => Self::Index(u32::from_le_bytes([a, b, c, d])),
                _ => Self::Foreign,
            },
            SlotKind::Word => match bytes {
                [a, b, c, d, _] if matches!([a, b, c, d], aarch64::NOP) => Self::Vacant,
                [a, b, c, d, _] => Self::Index(u32::from_le_bytes([a, b, c, d])),
            },
        }
    }

    /// The bytes of a slot of `kind` that holds `index`.
    #[must_use]
    pub const fn bytes(kind: SlotKind, index: u32) -> [u8; Self::MAX_SIZE] {
        match kind {
            SlotKind::MovEax => {
                let [a, b, c, d] = index.to_le_bytes();
                [MOV_EAX, a, b, c, d]
            }
            SlotKind::Word => {
                let [a, b, c, d] = index.to_le_bytes();
                [a, b, c, d, 0]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_survives_the_slot() {
        for index in [0, 1, 0x90, 0x9090_9090, 0xb8b8_b8b8, u32::MAX - 1, u32::MAX] {
            let bytes = SlotState::bytes(SlotKind::MovEax, index);
            assert_eq!(SlotState::read(SlotKind::MovEax, bytes), SlotState::Index(index));
        }
        // `mov eax, 0x12345678`, from the manual's encoding.
        let bytes = SlotState::bytes(SlotKind::MovEax, 0x1234_5678);
        assert_eq!(bytes, [0xb8, 0x78, 0x56, 0x34, 0x12]);
    }

    #[test]
    fn only_nops_are_vacant_and_only_mov_eax_is_an_index() {
        let read = |bytes| SlotState::read(SlotKind::MovEax, bytes);
        assert_eq!(read([0x90; 5]), SlotState::Vacant);
        assert_eq!(read([0x0f, 0x1f, 0x44, 0, 0]), SlotState::Foreign);
        for position in 0..5 {
            for byte in (0..=0xff).filter(|&byte| byte != 0x90) {
                let mut bytes = [0x90; 5];
                bytes[position] = byte;
                if position == 0 && byte == 0xb8 {
                    assert_eq!(read(bytes), SlotState::Index(0x9090_9090));
                } else {
                    assert_eq!(read(bytes), SlotState::Foreign, "{bytes:02x?}");
                }
            }
        }
    }
}
