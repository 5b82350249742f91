//! Where exit thunks of neighbouring indexes stand.

use crate::emit::x86_64::EXIT_THUNK_SIZE;
use crate::metadata::Zeroed;

/// Thunks of one block.
pub(super) const THUNKS: u32 = 32;
/// Bytes of one block.
pub(super) const BLOCK_SIZE: usize = THUNKS as usize * EXIT_THUNK_SIZE;

/// The thunks of neighbouring indexes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ThunkBlock {
    /// Where they are; 0 if there are none.
    pub address: u64,
    /// Which of them have been emitted, one bit each.
    pub emitted: u32,
    /// Which of their functions have stopped leading to them since all was quiescent.
    pub left: u32,
}

static_assertions::const_assert_eq!(size_of::<ThunkBlock>(), 16);

// SAFETY: three integers.
unsafe impl Zeroed for ThunkBlock {}

/// The block of an index, the bit of its thunk there, and how many bytes into it.
pub(super) const fn place(index: u32) -> (u32, u32, u64) {
    let within = index % THUNKS;
    (index / THUNKS, 1 << within, within as u64 * EXIT_THUNK_SIZE as u64)
}
