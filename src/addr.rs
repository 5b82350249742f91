//! Addresses that must not be mixed up.
//!
//! Around one function there are five places, and all of them are "an address":
//! taking one for another is the classic bug of this field (Linux 7.2.7: "x86/cfi: Fix
//! FineIBT hash offset in `cfi_get_func_hash()`"). Each has a type of its own here, and
//! only [`EntryLayout`](crate::layout::EntryLayout) turns one into another.
//!
//! Addresses are 64 bits wide on every host, so that code for one architecture can be
//! planned and checked on another.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Names the address `address` (bytes, absolute).
            #[must_use]
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The absolute address, in bytes.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// Where a function is called: the value of its symbol.
    Entry
}
address! {
    /// The first of the bytes at the entry that are rewritten.
    PatchSite
}
address! {
    /// The first byte of the instruction or word in the padding that holds the index.
    Slot
}
address! {
    /// What a body that was called from the patch site finds as its return address.
    ReturnAddress
}
address! {
    /// Where the hooked function's own body goes on.
    Origin
}
