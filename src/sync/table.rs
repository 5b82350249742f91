//! The atomics of tables, in a model: as large as `core`'s, and zero while nobody has touched
//! them.
//!
//! A [`Column`](crate::metadata::Column) is zeroed memory that is taken for atomics, and
//! emitted code finds its elements by their addresses. Loom's atomics are larger, and all
//! zeroes are none of them. So what stands in the memory here is a number, under which one of
//! loom's is kept until the execution ends; 0 is an atomic that is not made yet, whose value is
//! 0. Loom then also fails whoever is first to touch one and whoever touches it later, if
//! nothing orders the two.

use core::cell::Cell;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use loom::sync::atomic::Ordering;

use super::fault::{Fault, Kept, LATE, is};
use super::model::weakened;

loom::lazy_static! {
    /// Every atomic of the execution, each at its number less one.
    static ref KEPT: Mutex<Vec<Arc<Kept>>> = Mutex::new(Vec::new());
}

/// The atomic whose number is `number`, and its number, which it gets if it has none.
fn find(number: u64) -> (u64, Arc<Kept>) {
    let mut all = KEPT.lock().unwrap();
    match (number as usize).checked_sub(1) {
        Some(at) => (number, Arc::clone(&all[at])),
        None => {
            all.push(Arc::new(Kept::new(0)));
            (all.len() as u64, Arc::clone(&all[all.len() - 1]))
        }
    }
}

fn load(number: u64, order: Ordering) -> u64 {
    let (_, kept) = find(number);
    let own = LATE.with(|late| {
        let late = late.borrow();
        late.iter().rev().find(|&&(of, ..)| of == number).map(|&(_, _, value)| value)
    });
    own.unwrap_or_else(|| kept.load(weakened(order)))
}

fn store(number: u64, value: u64, order: Ordering) {
    let (_, kept) = find(number);
    if is(Fault::Late) {
        LATE.with(|late| late.borrow_mut().push((number, kept, value)));
    } else {
        kept.store(value, weakened(order));
    }
}

macro_rules! atomic {
    ($name:ident, $value:ident) => {
        /// As `core`'s, of the same size.
        #[derive(Debug)]
        #[repr(transparent)]
        pub struct $name(Cell<$value>);

        // SAFETY: loom runs the threads of a model one at a time, and switches between them
        // in its own operations only, none of which is under way while the cell is accessed.
        unsafe impl Sync for $name {}

        impl $name {
            /// Its number, which it has from now on.
            fn number(&self) -> u64 {
                let (number, _) = find(self.0.get().into());
                self.0.set(number as $value);
                number
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                load(self.number(), order) as $value
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                store(self.number(), value.into(), order);
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        let atomic = Self(Cell::new(0));
        atomic.store(value, Ordering::Relaxed);
        atomic
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        let (_, kept) = find(self.number());
        kept.fetch_add(value, weakened(order))
    }
}

impl AtomicU32 {
    pub(crate) fn swap(&self, value: u32, order: Ordering) -> u32 {
        if is(Fault::Late) {
            let old = self.load(order);
            self.store(value, order);
            return old;
        }
        let (_, kept) = find(self.number());
        kept.swap(value.into(), weakened(order)) as u32
    }

    pub(crate) fn fetch_or(&self, value: u32, order: Ordering) -> u32 {
        if is(Fault::Late) || is(Fault::Overwrite) {
            let old = self.load(order);
            self.store(if is(Fault::Overwrite) { value } else { old | value }, order);
            return old;
        }
        let (_, kept) = find(self.number());
        kept.fetch_or(value.into(), weakened(order)) as u32
    }
}

/// Loads the cookie at `address`, as emitted code does: in one access that orders nothing.
///
/// # Safety
/// A cookie of a [`Record`](crate::metadata::Record) or of a column of cookies is there, and
/// its memory is committed.
#[must_use]
pub unsafe fn load_cookie(address: u64) -> u64 {
    // SAFETY: a cookie is an `AtomicU64` of this module; the rest is the caller's contract.
    let cookie = unsafe { &*(address as *const AtomicU64) };
    cookie.load(Ordering::Relaxed)
}
