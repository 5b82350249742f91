//! What the integration tests and benchmarks share: C compiled when they run, shared
//! objects loaded from it, and views of this process that do not come from the library.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod compile;
pub mod four;
pub mod hostile;
pub mod object;
pub mod programs;
pub mod signatures;

/// A small deterministic generator (xorshift64*), so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    /// A generator that always gives the same numbers for the same `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// One of `choices`, which is not empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Says, where nobody can miss it, that something was not tested and why.
pub fn skipped(what: &str, why: &str) {
    use std::io::Write;
    // Not `eprintln!`: the test harness captures that, and prints it only on failure.
    let _ = writeln!(std::io::stderr(), "\n******** SKIPPED: {what}: {why} ********");
}

/// The one [`fentry::host::Process`] of a test binary.
pub fn process() -> &'static fentry::host::Process {
    fentry::host::Process::open().expect("this process can be hooked")
}

/// Lets everything retire that can. A stale word on the stack that looks like a return address
/// into an image may keep it, which is no failure: what is retired stays as it is.
pub fn settle(process: &fentry::host::Process) {
    match process.synchronize() {
        Ok(()) | Err(fentry::host::SynchronizeError::Inside { .. }) => {}
        Err(error) => panic!("threads cannot be looked at: {error}"),
    }
}
