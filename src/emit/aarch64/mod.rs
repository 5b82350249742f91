//! Code for arm64: entry bodies, what entries begin with, and branches with mitigations.
//!
//! Registers are those of the procedure call standard (AAPCS64, section 6.1.1): `x16` and `x17`
//! are free between a call and the callee's first instruction, and `x9` to `x15` in any call.

mod branch;
mod check;
mod context;
mod entry;
mod preamble;

pub use branch::Hardening;
pub use check::{Check, TARGET};
pub use context::Context;
pub use entry::{EntryBody, SITE_KEEP, SITE_LEN, THUNK_JUMP, THUNK_SIZE, Vectors, entry_thunk};
pub use preamble::{LandingPad, Preamble};
