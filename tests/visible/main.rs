//! Emitted code, as `perf` and `gdb` show it.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "../support/mod.rs"]
mod support;

mod debugger;
mod perf;
mod victim;
