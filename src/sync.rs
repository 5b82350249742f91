//! The atomics that this crate uses: `core`'s, or loom's in a model.
//!
//! One place, so that the code that ships is the code that is modelled.

cfg_if::cfg_if! {
    if #[cfg(loom)] {
        pub(crate) use loom::hint::spin_loop;
        pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};
    } else {
        pub(crate) use core::hint::spin_loop;
        pub(crate) use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};
    }
}
