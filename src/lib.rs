//! Function-entry trampolines: run programs at the entry of any number of functions, and
//! switch that on and off while every core is running them.
//!
//! # The problem
//! Suppose that you want to know which functions of a live program are called, how often and
//! with what. Changing a function's first instruction to a jump is easy; three things are not.
//!
//! * *Whose entry is it?* The code that runs the programs is entered from thousands of
//!   functions. One trampoline for each knows by being there, but takes memory and time for
//!   each. One for all must find out, and a search on every call is slow.
//! * *Who is executing it?* Other cores fetch the instruction while it is rewritten, and a
//!   core that decodes half of the old one and half of the new one is lost.
//! * *Who is still inside?* Code that was detached cannot be freed while a thread may return
//!   into it.
//!
//! # The answer
//! The compiler leaves *padding* before each function and a *patch site*, a nop, at its entry
//! (`-fpatchable-function-entry=21,16`). Four bytes of the padding hold the function's *index*:
//!
//! ```text
//!            as compiled             attached
//! entry-16   90 90 90 90 90          b8 07 00 00 00     slot: mov eax, 7; the index is 7
//! entry-11   90 x 11                 90 x 11            padding that is not used
//! entry      f3 0f 1e fa             f3 0f 1e fa        landing pad (endbr64), if there is one
//! entry+4    0f 1f 44 00 08          e8 xx xx xx xx     patch site: a nop, or call body
//! entry+9    ...                     ...                origin: the function's own code
//! ```
//!
//! The site *calls* a *body* that all functions with the same programs share. Its return
//! address says where the slot is, the slot holds the index, and the index is the position of
//! the function's *record* in a table: two loads, and no search. The body saves what the
//! function may read, calls each program directly, restores, and returns into the function.
//! Every return meets its call, so return prediction and shadow stacks stay right.
//!
//! A batch of sites is rewritten in three passes, each of which leaves instructions that any
//! core can execute, with all cores synchronised after each. What was detached *retires*: it is
//! freed when every thread has been seen outside.
//!
//! # The way of the data, and the rooms
//!
//! ```text
//! sites -> layout -> record -> emit -> patch -> (running) -> retire
//! ```
//!
//! | | room | what is there |
//! |---|---|---|
//! | sites | `host::discover` | which functions have a patch site, and their names |
//! | layout | [`layout`] | where slot, landing pad, patch site and origin are; the addresses' types are in [`addr`] |
//! | record | [`metadata`] | the index in the slot; the table of records, which grows without moving one |
//! | emit | [`emit`], by way of [`encode`] | the bodies and thunks, and the [`Context`](emit::Context) that programs get |
//! | patch | [`patch`] | the two protocols that change instructions under running cores |
//! | attach, retire | [`attach`] | the [`Engine`](attach::Engine): program sets, batches, what may be freed when |
//! | all of it | `host` | the process that traces itself: `Process`, `Program`, `Link` |
//!
//! A room uses only those before it, and none but `host` knows an operating system. Everything
//! that can fail before text is written is done before, so a batch lands whole or not at all,
//! and its error names the functions that stopped it.
//!
//! # Where to start
//! To trace your own process, read `host` and the README, which has an example. To put the
//! library into a kernel, a hypervisor or a runtime, implement [`attach::Embedder`]: how text
//! is read and written, how cores are synchronised, where images and tables go. The guide to
//! that is [`attach::embedding`].
//!
//! # Features
//! * `std` (default): the room `host`, for Linux on x86-64. Without it the crate is `no_std`,
//!   allocates nothing, and needs no libc.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "std")]
extern crate std;

pub mod addr;
pub mod attach;
pub mod emit;
pub mod encode;
pub mod layout;
pub mod metadata;
pub mod patch;

mod sync;

// The one place that asks for a target: emitters and encoders compile on every host, but only
// this one can be a process that patches itself. A model has no process: what runs in it is
// loom's.
cfg_if::cfg_if! {
    if #[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64", not(loom)))] {
        #[cfg_attr(docsrs, doc(cfg(feature = "std")))]
        pub mod host;
    }
}

#[cfg(loom)]
pub use sync::{fault, table::load_cookie};

/// The README's example compiles.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
mod readme {}
