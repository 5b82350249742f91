//! Loom models of `fentry::patch`: both protocols and the words of arm64, against cores whose instruction fetch is
//! stale until they synchronise.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --test loom_patch
//! ```
//!
//! The code under test is the crate's; the [machine] that it runs on is the model. Each model
//! has mutants, in which the machine breaks one promise: a synchronisation that synchronises
//! nobody, a store that is split or comes late. A mutant's test fails unless loom finds it.
#![cfg(loom)]

mod breakpoint;
mod machine;
mod one_store;
mod plan;
mod rollback;
mod short_jump;
mod text;
mod two_batches;
mod word;
mod word_machine;
