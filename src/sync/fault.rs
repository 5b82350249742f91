//! Faults that a model puts into this crate's synchronisation, to show that it finds them.
//!
//! A model that passes says little until it is known what it would catch. So each has
//! mutants: the same code, with one thread's synchronisation weakened.

use core::cell::{Cell, RefCell};
use std::sync::Arc;
use std::vec::Vec;

use loom::sync::atomic::Ordering;

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
    /// Its stores to tables are seen by nobody else until another fault, or none, is injected.
    Late,
    /// Its `fetch_or`s lose what they were to add to.
    Overwrite,
}

loom::thread_local! {
    static FAULT: Cell<Fault> = Cell::new(Fault::None);
}

/// One of loom's atomics that stands for one in a table, whichever width that has.
pub(super) type Kept = loom::sync::atomic::AtomicU64;

loom::thread_local! {
    /// What [`Fault::Late`] holds back of the calling thread's stores, oldest first.
    pub(super) static LATE: RefCell<Vec<(u64, Arc<Kept>, u64)>> = RefCell::new(Vec::new());
}

/// Makes the stores that were held back.
fn catch_up() {
    for (_, kept, value) in LATE.with(RefCell::take) {
        kept.store(value, Ordering::Release);
    }
}

/// Makes `fault` the calling thread's, until the next or until the model's execution ends.
pub fn inject(fault: Fault) {
    FAULT.with(|cell| cell.set(fault));
    catch_up();
}

/// Whether `fault` is the calling thread's.
pub(super) fn is(fault: Fault) -> bool {
    FAULT.with(|cell| cell.get() == fault)
}
