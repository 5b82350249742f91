//! One check for each fuzz target: a function of any bytes that panics if something is wrong.

pub mod discover;
pub mod encode;
pub mod entry_body;
pub mod exit_bodies;
mod flow;
mod guard;
pub mod guarded;
mod input;
pub mod layout;
mod machine;
pub mod slot;
