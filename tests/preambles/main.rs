//! Preambles, checked calls and mitigations: their bytes against listings made by hand and
//! against compilers, what holds for every one of them, and what happens when they run.

mod aarch64;
mod branches;
mod clang;
mod golden;
mod hashes;
#[cfg(target_os = "linux")]
mod run;
mod rustc;

use fentry::emit::x86_64::{
    Arity, Bhi, Check, FineIbt, Generation, Hardening, Kcfi, Preamble, Symbols,
};
use fentry::emit::{EmitError, Mitigations};
use fentry::encode::CodeBuffer;

const GENERATIONS: [Generation; 3] = [Generation::Original, Generation::Short, Generation::Udb];

/// What `emit` emits for `address`, and what it returns.
fn emitted<T>(
    address: u64,
    emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<T, EmitError>,
) -> (Vec<u8>, T) {
    let mut bytes = [0; 512];
    let mut code = CodeBuffer::new(&mut bytes, address);
    let result = emit(&mut code).expect("the buffer is large and the targets are near");
    (code.written().to_vec(), result)
}

const fn kcfi(hash: u32, arity: Option<Arity>, padding: u8, endbr64: bool) -> Preamble {
    Preamble::Kcfi(Kcfi { hash, arity, padding, endbr64 })
}

const fn fineibt(hash: u32, generation: Generation, bhi: Bhi) -> Preamble {
    Preamble::FineIbt(FineIbt { hash, generation, bhi })
}

/// The hardening of indirect calls with `check` and nothing else.
fn checked(check: Check) -> Hardening {
    let symbols = Symbols { check, ..Symbols::NONE };
    Hardening::new(Mitigations::CFI, symbols).expect("the check is told")
}
