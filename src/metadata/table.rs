//! A table: elements that are found by index, and indexes that are given out again.

use super::{Column, TableError, TableMemory, Zeroed};
use crate::sync::{AtomicU32, Ordering};

/// What a [`Table`] holds.
pub trait Element: Zeroed {
    /// A field that the table may use while the element is vacant.
    fn link(&self) -> &AtomicU32;
}

/// Elements in a [`Column`], each at its index for ever, and the indexes that are vacant.
///
/// Finding an element is one addition. Growing moves none and blocks no reader, so emitted
/// code can read while the table grows. An index that is released is given out again, last
/// released first.
#[derive(Debug)]
pub struct Table<T> {
    column: Column<T>,
    /// Indexes from here on were never given out.
    fresh: u32,
    /// The vacant index released last, plus one; 0 when there is none.
    vacant: u32,
}

impl<T: Element> Table<T> {
    /// Reserves a table of at most `capacity` elements.
    ///
    /// # Errors
    /// As [`Column::reserve`].
    pub fn reserve<M: TableMemory>(
        memory: &mut M,
        capacity: u32,
    ) -> Result<Self, TableError<M::Error>> {
        Ok(Self { column: Column::reserve(memory, capacity)?, fresh: 0, vacant: 0 })
    }

    /// The address of element 0, which emitted code counts from.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.column.address()
    }

    /// One more than the largest index that was ever given out.
    #[must_use]
    pub const fn bound(&self) -> u32 {
        self.fresh
    }

    /// The element at `index`, if that index was ever given out.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        self.column.get(index)
    }

    /// As [`get`](Self::get), to be changed.
    #[must_use]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.column.get_mut(index)
    }

    /// Gives out an index. Its element is all zeroes if it was never in use, and otherwise
    /// as it was left, but for its [link](Element::link), which is zero.
    ///
    /// # Errors
    /// [`TableError`]; then the table is as before.
    pub fn allocate<M: TableMemory>(
        &mut self,
        memory: &mut M,
    ) -> Result<u32, TableError<M::Error>> {
        if let Some(index) = self.vacant.checked_sub(1)
            && let Some(element) = self.column.get(index)
        {
            self.vacant = element.link().swap(0, Ordering::Relaxed);
            return Ok(index);
        }
        let index = self.fresh;
        let bound = index.checked_add(1);
        let bound = bound.ok_or(TableError::Full { capacity: self.column.capacity() })?;
        self.column.ready(memory, bound)?;
        self.fresh = bound;
        Ok(index)
    }

    /// Takes an index back, to be given out again.
    ///
    /// # Safety
    /// `index` was [given out](Self::allocate) and not released since, and nothing finds the
    /// element through it any more: no slot holds it, and no core that read one is still in
    /// the code that did.
    pub unsafe fn release(&mut self, index: u32) {
        if let Some(element) = self.column.get(index) {
            element.link().store(self.vacant, Ordering::Relaxed);
            self.vacant = index.saturating_add(1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::alloc::Layout;
    use core::ptr::NonNull;
    use std::alloc::{alloc_zeroed, dealloc};
    use std::vec::Vec;

    use super::*;

    /// Memory that counts what is committed, and fails when told to.
    #[derive(Default)]
    struct Heap {
        committed: Vec<(usize, usize)>,
        fail: bool,
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(1), 4096).unwrap()
    }

    // SAFETY: a zeroed heap block is reserved and committed from the start, and never moves.
    unsafe impl TableMemory for Heap {
        type Error = &'static str;

        fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Self::Error> {
            // SAFETY: the size is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout(bytes)) }).ok_or("out of memory")
        }

        unsafe fn commit(
            &mut self,
            _: NonNull<u8>,
            from: usize,
            to: usize,
        ) -> Result<(), Self::Error> {
            if self.fail {
                return Err("told to fail");
            }
            self.committed.push((from, to));
            Ok(())
        }

        unsafe fn release(&mut self, base: NonNull<u8>, bytes: usize) {
            // SAFETY: allocated by `reserve` with this layout.
            unsafe { dealloc(base.as_ptr(), layout(bytes)) }
        }
    }

    struct Pair {
        link: AtomicU32,
        value: AtomicU32,
    }

    // SAFETY: two integers.
    unsafe impl Zeroed for Pair {}

    impl Element for Pair {
        fn link(&self) -> &AtomicU32 {
            &self.link
        }
    }

    #[test]
    fn growing_commits_each_byte_once_and_moves_nothing() {
        let mut heap = Heap::default();
        let mut table = Table::<Pair>::reserve(&mut heap, 40_000).unwrap();
        let address = |table: &Table<Pair>, index| core::ptr::from_ref(table.get(index).unwrap());
        table.allocate(&mut heap).unwrap();
        let first = address(&table, 0);
        for expected in 1..40_000 {
            assert_eq!(table.allocate(&mut heap), Ok(expected));
            table.get(expected).unwrap().value.store(expected, Ordering::Relaxed);
        }
        assert_eq!(address(&table, 0), first);
        assert_eq!(table.address(), first as u64);
        for index in 1..40_000 {
            assert_eq!(table.get(index).unwrap().value.load(Ordering::Relaxed), index);
            assert_eq!(address(&table, index) as u64, table.address() + 8 * u64::from(index));
        }
        assert_eq!(table.allocate(&mut heap), Err(TableError::Full { capacity: 40_000 }));
        let mut end = 0;
        for &(from, to) in &heap.committed {
            assert_eq!(from, end, "committed with a gap or twice");
            end = to;
        }
        assert_eq!(end, 40_000 * 8);
    }

    #[test]
    fn released_indexes_come_back_and_others_stay() {
        let mut heap = Heap::default();
        let mut table = Table::<Pair>::reserve(&mut heap, 100).unwrap();
        for _ in 0..10 {
            table.allocate(&mut heap).unwrap();
        }
        table.get(4).unwrap().value.store(44, Ordering::Relaxed);
        for index in [3, 7, 0] {
            // SAFETY: given out above, and nothing reads it.
            unsafe { table.release(index) };
        }
        let mut again = [(); 3].map(|()| table.allocate(&mut heap).unwrap());
        again.sort_unstable();
        assert_eq!(again, [0, 3, 7]);
        assert_eq!(table.allocate(&mut heap), Ok(10));
        assert_eq!(table.get(4).unwrap().value.load(Ordering::Relaxed), 44);
        assert_eq!(table.bound(), 11);
    }

    #[test]
    fn a_growth_that_fails_leaves_the_table_as_it_was() {
        let mut heap = Heap { fail: true, ..Heap::default() };
        let mut table = Table::<Pair>::reserve(&mut heap, 10).unwrap();
        assert_eq!(table.allocate(&mut heap), Err(TableError::Memory("told to fail")));
        assert_eq!(table.bound(), 0);
        assert!(table.get(0).is_none());
        heap.fail = false;
        assert_eq!(table.allocate(&mut heap), Ok(0));
    }
}
