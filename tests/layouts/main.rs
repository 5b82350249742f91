//! What stands around an entry: the values against a model, the drawings in the documentation
//! against the values, and all of it against what compilers and a distribution's kernel made.
//!
//! * [`model`] has a twin of the arithmetic that colours bytes one by one.
//! * [`drawn`] draws `src/layout/named.md`; with `UPDATE_LAYOUTS=1` it writes the file.
//! * [`asked`] has what no compiler and no kernel that can be had here makes.
//! * [`compiled`] compiles one file over and over, and looks at what came of it.
//! * [`kernel`] takes the functions of a whole kernel, with [`image`] and [`kallsyms`].
//! * [`emitted`] looks at the preambles that the library emits.
//! * [`detected`] asks the detector about bytes that are made from the values, and damaged.

#[path = "../support/mod.rs"]
mod support;

mod asked;
mod compiled;
mod detected;
mod drawn;
mod emitted;
mod image;
mod kallsyms;
mod kernel;
mod model;
