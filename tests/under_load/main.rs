//! Attaching and detaching while threads run the functions: nothing crashes, no result is
//! wrong, and what is counted is exact.
#![cfg(all(feature = "std", target_os = "linux"))]

mod deaf;
mod fleet;
mod fork;
mod inside;
mod modules;
#[path = "../support/mod.rs"]
mod support;
mod threads;
mod traced;
