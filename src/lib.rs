//! Function-entry trampolines.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "std")]
extern crate std;

pub mod addr;
pub mod attach;
pub mod emit;
pub mod encode;
#[cfg(feature = "std")]
pub mod host;
pub mod layout;
pub mod metadata;
pub mod patch;

mod sync;
