//! The core of `fentry` in a Linux kernel: the part of the module that is Rust.
//!
//! ```text
//!  debugfs files -> module/shim.c -> this library -> fentry::attach::Engine
//!                                         |                    |
//!                                         |   embedder traits  |
//!                                         +<-------------------+
//!                                         |
//!                                    module/kernel.c -> what the kernel exports
//! ```
//!
//! * [`embedder`]: the engine's traits, over the functions of [`kernel`].
//! * [`functions`]: what stands around a patch site, and what is refused.
//! * [`tracer`]: one selection of functions, attached to and detached from as a whole.
//! * [`exits`]: how long calls take.
//! * [`exports`]: what the C part of the module calls.
#![no_std]

pub mod array;
pub mod embedder;
pub mod exits;
pub mod exports;
pub mod functions;
pub mod images;
pub mod kernel;
pub mod tracer;
