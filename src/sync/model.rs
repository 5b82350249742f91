//! Loom's atomics, with the faults that a model asks for.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{self, Ordering};

use super::fault::{Fault, is};

/// `order`, without what the calling thread's fault takes away.
pub(super) fn weakened(order: Ordering) -> Ordering {
    match order {
        Ordering::Acquire if is(Fault::Acquire) => Ordering::Relaxed,
        Ordering::Release if is(Fault::Release) => Ordering::Relaxed,
        Ordering::AcqRel if is(Fault::Acquire) => Ordering::Release,
        Ordering::AcqRel if is(Fault::Release) => Ordering::Acquire,
        order => order,
    }
}

/// As `core::sync::atomic::fence`.
pub(crate) fn fence(order: Ordering) {
    let fault = if order == Ordering::Acquire { Fault::AcquireFences } else { Fault::Fences };
    if !is(fault) {
        atomic::fence(order);
    }
}

/// As `core::sync::atomic::AtomicPtr`.
#[derive(Debug)]
pub(crate) struct AtomicPtr<T>(atomic::AtomicPtr<T>);

impl<T> AtomicPtr<T> {
    pub(crate) fn new(value: *mut T) -> Self {
        Self(atomic::AtomicPtr::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> *mut T {
        self.0.load(weakened(order))
    }

    pub(crate) fn store(&self, value: *mut T, order: Ordering) {
        self.0.store(value, weakened(order));
    }
}

/// As `core::sync::atomic::AtomicUsize`.
#[derive(Debug)]
pub(crate) struct AtomicUsize(atomic::AtomicUsize);

impl AtomicUsize {
    pub(crate) fn new(value: usize) -> Self {
        Self(atomic::AtomicUsize::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> usize {
        if is(Fault::Wait) { 0 } else { self.0.load(weakened(order)) }
    }

    pub(crate) fn store(&self, value: usize, order: Ordering) {
        self.0.store(value, weakened(order));
    }

    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_add(value, weakened(order))
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_sub(value, weakened(order))
    }
}

/// Memory that an owner lends to readers on other cores, between two moments that atomics
/// announce. Loom fails a [`read`](Self::read) that no chain of acquires and releases puts
/// between the [`written`](Self::written)s around it.
#[derive(Debug)]
pub(crate) struct Lent(UnsafeCell<()>);

// SAFETY: the cell holds nothing; that its accesses may race is what loom checks.
unsafe impl Sync for Lent {}

impl Lent {
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    /// The owner has written the memory, or is free to from here on.
    pub(crate) fn written(&self) {
        self.0.with_mut(|_| ());
    }

    /// Another core reads the memory here.
    pub(crate) fn read(&self) {
        self.0.with(|_| ());
    }
}
