//! Where things stand around a function's entry: pure arithmetic.
//!
//! Two kinds of values describe an entry. A [`Config`] says what the compiler or the kernel was
//! asked for: how much padding, which CFI, a landing pad or not. An [`EntryLayout`] says, in
//! bytes relative to the entry, where the slot, the landing pad, the patch site and the origin
//! are; [`Config::layout`] makes one of the other. Every offset is *absolute from the entry*:
//! "bytes of padding" and "bytes before the entry" differ as soon as a compiler puts a CFI
//! preamble there, and offsets counted from anything else have already been wrong once (Linux
//! 7.2.7: "x86/cfi: Fix FineIBT hash offset in `cfi_get_func_hash()`").
//!
//! A new compiler option or CFI scheme is a new value, never a new code path:
//!
//! ```text
//!            -16        -11            0      4          9
//!  plain      | b8 index | 90 x 11     | site (5)  | origin
//!  IBT        | b8 index | 90 x 11     | endbr64 | site (5) | origin
//!             ^ slot                   ^ entry
//! ```
//!
//! [`named`] draws all that are known, byte by byte. There are four ways to a [`Config`]: its
//! own methods, the options of a compiler ([`Options`]), the `.config` of a kernel
//! ([`Kernel`]), and the bytes around an entry ([`detect`]).

pub mod aarch64;
mod byte;
mod config;
mod detect;
mod entry;
mod error;
mod fineibt;
mod kernel;
pub mod named;
mod options;
mod part;
mod place;
pub mod x86_64;

pub use byte::Byte;
pub use config::{Arch, CallDepth, Config, Kcfi};
pub use detect::{Around, detect};
pub use entry::{EntryLayout, LayoutSpec};
pub use error::LayoutError;
pub use fineibt::FineIbt;
pub use kernel::{Kernel, KernelError};
pub use options::{Compiler, Function, Options, OptionsError};
pub use part::{LandingPad, Part, Parts, SlotKind, What};
