//! Loom models of `fentry::attach`: the engine attaches, detaches, switches, retires and forgets
//! while cores call the functions.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --test loom_engine
//! ```
//!
//! The engine, its tables, its images and its batches are the crate's; the [machine] is the
//! model. Its cores do what the emitted code does, step by step: fetch the patch site, enter
//! the image that it leads to, load the slot, load each program's cookie from the tables, call
//! the program, return. So what is modelled is everything between two calls of the embedder.
//!
//! * [`tables`]: records and columns grow under readers, and indexes and lanes are used again.
//! * [`retire`]: no program runs once it is retired, and no core is in an image that was freed.
//! * [`exits`]: the same for programs at the exit, to whose thunk a core will return.
//! * [`switch`]: programs that are switched off and on.
//!
//! Each has mutants, in which the machine breaks one promise or the operator's stores come
//! late; a mutant's test fails unless loom finds it.
//!
//! Most models are explored without a bound on preemptions. Where there is one, the model says
//! so. Not modelled: torn instructions, which are `loom_patch`'s; the branches of emitted code
//! that seldom run, side stacks among them; replacements, modified returns and sessions; and
//! that loom keeps only the last seven values of an atomic for a core that lags behind.
#![cfg(loom)]

mod body;
mod exits;
mod machine;
mod operator;
mod parts;
mod plan;
mod retire;
mod switch;
mod tables;
