//! Registers, as DWARF numbers them (psABI 3.6.2).

pub(super) const RBX: u8 = 3;
pub(super) const RBP: u8 = 6;
pub(super) const RSP: u8 = 7;
pub(super) const RETURN_ADDRESS: u8 = 16;
