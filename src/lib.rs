//! Function-entry trampolines.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "std")]
extern crate std;

pub mod addr;
pub mod attach;
pub mod emit;
pub mod encode;
// A model has no process to host: what runs in it is loom's.
#[cfg(all(feature = "std", not(loom)))]
pub mod host;
pub mod layout;
pub mod metadata;
pub mod patch;

mod sync;

#[cfg(loom)]
pub use sync::fault;
