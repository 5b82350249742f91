//! What it costs to go from shared code to what belongs to one function:
//! `cargo bench --bench dispatch`.
//!
//! First to its program, where there are as many programs as functions: an indirect branch,
//! with what Spectre v2 asks for, against a search of direct ones. Then to its origin: a call
//! in a thunk of its own against a table of calls, which all functions share.

mod support;

#[path = "dispatch/ground.rs"]
mod ground;
#[path = "dispatch/origins.rs"]
mod origins;
#[path = "dispatch/programs.rs"]
mod programs;

fn main() {
    for line in programs::lines().into_iter().chain(origins::lines()) {
        println!("{line}");
    }
}
