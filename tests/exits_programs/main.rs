//! Whole programs with programs at the entry and the exit of each of their functions: they
//! compute what they compute without, and every call that begins ends or is accounted for.

#[path = "../support/mod.rs"]
mod support;

// What the example `trace` traces: SQLite, and a model that knows its answers.
#[path = "../../examples/trace/model.rs"]
mod model;
#[path = "../../examples/trace/questions.rs"]
mod questions;
#[path = "../../examples/trace/random.rs"]
mod random;
#[path = "../../examples/trace/shop.rs"]
mod shop;

mod counts;
mod left;
mod sqlite;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: what is missed is counted for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
