//! The atomics that this crate uses: `core`'s, or loom's in a model.
//!
//! One place, so that the code that ships is the code that is modelled.

cfg_if::cfg_if! {
    if #[cfg(loom)] {
        pub mod fault;
        mod model;
        pub mod table;
        pub(crate) use model::{AtomicPtr, AtomicUsize, Lent, fence};
        pub(crate) use table::{AtomicU32, AtomicU64};
        pub(crate) use loom::hint::spin_loop;
        pub(crate) use loom::sync::atomic::Ordering;
    } else {
        pub(crate) use core::hint::spin_loop;
        pub(crate) use core::sync::atomic::{
            AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };

        /// Memory that an owner lends to readers on other cores, between two moments that
        /// atomics announce. It is nothing at all here; in a model it checks that each
        /// [`read`](Self::read) happens between the [`written`](Self::written)s around it.
        #[derive(Debug)]
        pub(crate) struct Lent;

        impl Lent {
            /// Memory that is not lent yet.
            pub(crate) const fn new() -> Self {
                Self
            }

            /// The owner has written the memory, or is free to from here on.
            #[inline(always)]
            pub(crate) const fn written(&self) {}

            /// Another core reads the memory here.
            #[inline(always)]
            pub(crate) const fn read(&self) {}
        }
    }
}
