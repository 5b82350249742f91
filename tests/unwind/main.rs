//! Stacks with emitted code on them, walked by the C runtime's unwinder: backtraces, C++
//! exceptions, Rust panics.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "../support/mod.rs"]
mod support;

mod entry;
mod exits;
mod walk;
