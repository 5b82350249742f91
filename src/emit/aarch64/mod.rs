//! Code for arm64: what entries begin with, and branches with mitigations.
//!
//! Registers are those of the procedure call standard (AAPCS64, section 6.1.1): `x16` and `x17`
//! are free between a call and the callee's first instruction, and `x9` to `x15` in any call.

mod branch;
mod preamble;

pub use branch::{Hardening, TARGET};
pub use preamble::{Check, LandingPad, Preamble};
