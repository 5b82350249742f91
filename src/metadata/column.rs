//! An array that grows without moving: reserved once, made ready piece by piece.

use core::fmt::{self, Debug, Display};
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::sync::{AtomicU32, AtomicU64};

/// Bytes by which a column grows at the least: a page of every architecture we know, and
/// large enough that growing is rare. In a model, small enough that it is not.
const GROWTH: usize = if cfg!(loom) { 32 } else { 64 * 1024 };

/// Memory for columns and tables.
///
/// # Safety
/// An implementer promises:
/// - [`reserve`](Self::reserve) gives an address range that nobody else uses, aligned to
///   64 bytes at least, until it is given to [`release`](Self::release);
/// - after [`commit`](Self::commit) has returned `Ok`, the bytes it names read as zero, can be
///   read and written by every core, and stay where they are;
/// - `commit` disturbs no byte that was committed before, and no core that is reading one.
pub unsafe trait TableMemory {
    /// What the embedder reports when there is no memory.
    type Error: Debug + Display;

    /// Reserves `bytes` of address space. None of it need be usable yet.
    ///
    /// # Errors
    /// The embedder's.
    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Self::Error>;

    /// Makes the bytes `from..to` of the reservation at `base` usable.
    ///
    /// # Safety
    /// `base` is from [`reserve`](Self::reserve), of at least `to` bytes, and the bytes before
    /// `from` are committed.
    ///
    /// # Errors
    /// The embedder's; then nothing changed.
    unsafe fn commit(
        &mut self,
        base: NonNull<u8>,
        from: usize,
        to: usize,
    ) -> Result<(), Self::Error>;

    /// Gives a reservation back.
    ///
    /// # Safety
    /// `base` and `bytes` are those of a [`reserve`](Self::reserve), and no core uses any of
    /// it any more.
    unsafe fn release(&mut self, base: NonNull<u8>, bytes: usize);
}

/// A type whose all-zero bytes are a value, and which may be shared between cores.
///
/// # Safety
/// An implementer promises the former; the bound says the latter.
pub unsafe trait Zeroed: Sync {}

// SAFETY: zero is an integer.
unsafe impl Zeroed for AtomicU32 {}
// SAFETY: zero is an integer.
unsafe impl Zeroed for AtomicU64 {}

/// Why a column or table could not grow. `M` is the embedder's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableError<M> {
    /// The index is beyond what was reserved.
    Full {
        /// How many elements were reserved.
        capacity: u32,
    },
    /// The embedder had no memory.
    Memory(M),
}

impl<M: Display> Display for TableError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { capacity } => {
                write!(f, "all {capacity} places of the table are in use; reserve a larger one")
            }
            Self::Memory(cause) => write!(f, "no memory for the table: {cause}"),
        }
    }
}

impl<M: Debug + Display> core::error::Error for TableError<M> {}

/// An array of `T` in reserved address space: element *i* stands at `base + i * size`, for
/// ever, so that emitted code can hold `base` as an immediate.
///
/// All zeroes is a column of no elements, that nothing was reserved for.
#[derive(Debug)]
#[repr(C)]
pub struct Column<T> {
    base: Option<NonNull<u8>>,
    capacity: u32,
    /// Elements from the start that are committed.
    ready: u32,
    elements: PhantomData<T>,
}

// SAFETY: a column is reached through references that follow the usual rules, and its elements
// are `Sync`.
unsafe impl<T: Zeroed> Send for Column<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed> Sync for Column<T> {}
// SAFETY: no address (the layout of `Option<NonNull>` is guaranteed), and two integers.
unsafe impl<T: Zeroed> Zeroed for Column<T> {}

impl<T: Zeroed> Column<T> {
    const ALIGNED: () = assert!(align_of::<T>() <= 64 && size_of::<T>() > 0);

    /// Reserves a column of at most `capacity` elements; none is usable yet.
    ///
    /// # Errors
    /// [`TableError::Memory`], and [`TableError::Full`] if so many elements have no address.
    pub fn reserve<M: TableMemory>(
        memory: &mut M,
        capacity: u32,
    ) -> Result<Self, TableError<M::Error>> {
        let () = Self::ALIGNED;
        let bytes = bytes::<T>(capacity).ok_or(TableError::Full { capacity })?;
        let base = memory.reserve(bytes).map_err(TableError::Memory)?;
        Ok(Self { base: Some(base), capacity, ready: 0, elements: PhantomData })
    }

    /// The address of element 0, which emitted code counts from.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base.map_or(0, |base| base.as_ptr() as u64)
    }

    /// How many elements are ready, from the first on.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.ready
    }

    /// Whether no element is ready.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ready == 0
    }

    /// How many elements there can ever be.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The element at `index`, if it has been made ready.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        let base = self.base.filter(|_| index < self.ready)?;
        // SAFETY: the first `ready` elements are committed (see `ready`), zeroed when they
        // were, and zeroes are a `T`; nobody but this column hands them out.
        Some(unsafe { base.cast::<T>().add(index as usize).as_ref() })
    }

    /// As [`get`](Self::get), to be changed.
    #[must_use]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let base = self.base.filter(|_| index < self.ready)?;
        // SAFETY: as in `get`, and this column is borrowed exclusively.
        Some(unsafe { base.cast::<T>().add(index as usize).as_mut() })
    }

    /// Makes every element before `count` ready. Moves none, and disturbs no reader.
    ///
    /// # Errors
    /// [`TableError::Full`] if `count` is over the capacity, else [`TableError::Memory`];
    /// either way the column is as before.
    pub fn ready<M: TableMemory>(
        &mut self,
        memory: &mut M,
        count: u32,
    ) -> Result<(), TableError<M::Error>> {
        if count <= self.ready {
            return Ok(());
        }
        let full = TableError::Full { capacity: self.capacity };
        if count > self.capacity {
            return Err(full);
        }
        let (Some(base), Some(from), Some(all), Some(needed)) =
            (self.base, bytes::<T>(self.ready), bytes::<T>(self.capacity), bytes::<T>(count))
        else {
            return Err(full);
        };
        let from = from.next_multiple_of(GROWTH).min(all);
        let to = needed.next_multiple_of(GROWTH).min(all);
        if to > from {
            // SAFETY: the base is from `reserve`, of `all` bytes, and everything before
            // `from` was committed by earlier calls, which rounded the same way.
            unsafe { memory.commit(base, from, to) }.map_err(TableError::Memory)?;
        }
        self.ready = count;
        Ok(())
    }

    /// Gives the column's memory back.
    ///
    /// # Safety
    /// `memory` is the one it was reserved from, and nothing reads the column any more,
    /// emitted code included.
    pub unsafe fn release<M: TableMemory>(self, memory: &mut M) {
        if let Some((base, bytes)) = self.base.zip(bytes::<T>(self.capacity)) {
            // SAFETY: reserved with these very values; the rest is the caller's contract.
            unsafe { memory.release(base, bytes) }
        }
    }
}

/// Bytes of `count` elements, if they have an address.
fn bytes<T>(count: u32) -> Option<usize> {
    (count as usize).checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize)
}
