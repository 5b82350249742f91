//! Faults that a model puts into this crate's synchronisation, to show that it finds them.
//!
//! A model that passes says little until it is known what it would catch. So each has
//! mutants: the same code, with one thread's synchronisation weakened.

use core::cell::Cell;

/// What is wrong with the synchronisation of one thread of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    None,
    /// Its full fences do nothing.
    Fences,
    /// Its acquire fences do nothing.
    AcquireFences,
    /// Its loads do not acquire.
    Acquire,
    /// Its stores, and its read-modify-writes, do not release.
    Release,
    /// It finds every counter at zero when it loads one, so it waits for nobody.
    Wait,
}

loom::thread_local! {
    static FAULT: Cell<Fault> = Cell::new(Fault::None);
}

/// Makes `fault` the calling thread's, until the model's execution ends.
pub fn inject(fault: Fault) {
    FAULT.with(|cell| cell.set(fault));
}

/// Whether `fault` is the calling thread's.
pub(super) fn is(fault: Fault) -> bool {
    FAULT.with(|cell| cell.get() == fault)
}
