//! Unwind tables of emitted code, as the C runtime's unwinder has them.
//!
//! What walks stacks in this process asks it: C++ exceptions, Rust panics, backtraces, thread
//! cancellation. libgcc before version 13 goes through all tables one by one, for every frame
//! (gcc, `libgcc/unwind-dw2-fde.c`): so there is one for thunks of a kind as far as they stand
//! side by side, however many there are.
//!
//! A function with exit programs whose state is on the ordinary stack leaves no trace when an
//! exception passes: the unwinder itself says so, to what counts these functions.

use core::ffi::{c_int, c_void};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::collections::BTreeMap;

use super::locks;
use super::side_stacks;
use crate::attach::Emitted;
use crate::emit::x86_64::{Hardening, Kept, UnwindTable};

/// The table of what was emitted.
pub(super) fn table(address: u64, size: usize, what: Emitted<'_>) -> UnwindTable {
    let side_stacks = side_stacks::list();
    match what {
        Emitted::Image { bodies: Some(marks), .. } => {
            UnwindTable::of_bodies(address, marks, &side_stacks)
        }
        Emitted::Image { entries: [[], _], .. } | Emitted::EntryThunk { .. } => {
            UnwindTable::of_jumps(address, size)
        }
        Emitted::Image { .. } => UnwindTable::of_entry_body(address, size, &Hardening::NONE),
        Emitted::ExitThunk { kept, .. } => {
            let personality = match kept {
                // Counted when its frame is found to be left.
                Kept::OnSideStack => None,
                Kept::OnStack => Some(count_left as *const () as u64),
            };
            UnwindTable::of_exit_thunks(address, size, kept, &side_stacks, personality)
        }
    }
}

/// Functions that were left by an exception, of those that keep their state on the stack.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// How many functions that have no frame on a side stack were left by an exception.
pub(super) fn left() -> u64 {
    LEFT.load(Ordering::Relaxed)
}

/// `_UA_CLEANUP_PHASE`: frames are left now, and not only looked at.
const CLEANUP_PHASE: c_int = 2;
/// `_URC_CONTINUE_UNWIND`.
const CONTINUE_UNWIND: c_int = 8;

/// What an unwinder calls for each thunk between an exception and who catches it: a personality
/// routine (Itanium C++ ABI, Exception Handling, section 2.5.2).
extern "C" fn count_left(
    _version: c_int,
    actions: c_int,
    _class: u64,
    _exception: *mut c_void,
    _context: *mut c_void,
) -> c_int {
    if actions & CLEANUP_PHASE != 0 {
        LEFT.fetch_add(1, Ordering::Relaxed);
    }
    CONTINUE_UNWIND
}

// SAFETY: libgcc_s, which every Rust program on a GNU system is linked to, has these functions
// with this type (gcc, `libgcc/unwind-dw2-fde.c`).
unsafe extern "C" {
    fn __register_frame(table: *const u8);
    fn __deregister_frame(table: *const u8);
}

/// The tables of all emitted code, by where the code begins.
#[derive(Debug, Default)]
pub(super) struct Tables {
    tables: BTreeMap<u64, Table>,
}

#[derive(Debug)]
struct Table {
    end: u64,
    /// What it says of any place in its range, if it is thunks.
    thunks: Option<Emitted<'static>>,
    #[expect(dead_code, reason = "kept only to be dropped in time")]
    registered: Registered,
}

impl Tables {
    /// Tells the unwinder of what was emitted, the first in its memory, and of the thunks that
    /// will be emitted there later.
    pub(super) fn add(&mut self, memory: Range<u64>, code: Range<u64>, what: Emitted<'_>) {
        let thunks = match what {
            Emitted::EntryThunk { .. } => Emitted::EntryThunk { index: 0 },
            Emitted::ExitThunk { kept, .. } => Emitted::ExitThunk { index: 0, kept },
            Emitted::Image { .. } => return self.insert(code, what, None),
        };
        let alike = |table: &Table| table.thunks == Some(thunks);
        let mut all = memory.clone();
        if let Some((&start, table)) = self.tables.range(..memory.start).next_back()
            && table.end == memory.start
            && alike(table)
        {
            all.start = start;
        }
        if let Some(after) = self.tables.get(&memory.end).filter(|table| alike(table)) {
            all.end = after.end;
        }
        self.insert(all.clone(), thunks, Some(thunks));
        if all.end != memory.end {
            self.tables.remove(&memory.end);
        }
    }

    /// Tells the unwinder that what was allocated there is gone.
    pub(super) fn remove(&mut self, memory: &Range<u64>) {
        while let Some((&start, table)) = self.tables.range(..memory.end).next_back()
            && memory.start < table.end
        {
            let (end, thunks) = (table.end, table.thunks);
            // Not dropped until what is left has its own.
            let _gone = self.tables.remove(&start);
            if let Some(thunks) = thunks {
                for left in [start..memory.start, memory.end..end] {
                    if !left.is_empty() {
                        self.insert(left, thunks, Some(thunks));
                    }
                }
            }
        }
    }

    fn insert(&mut self, range: Range<u64>, what: Emitted<'_>, thunks: Option<Emitted<'static>>) {
        let Range { start, end } = range;
        let registered = Registered::new(&table(start, (end - start) as usize, what));
        self.tables.insert(start, Table { end, thunks, registered });
    }
}

/// A table that the unwinder has, until this is dropped.
#[derive(Debug)]
struct Registered {
    table: Box<[u8]>,
}

impl Registered {
    fn new(table: &UnwindTable) -> Self {
        let table: Box<[u8]> = table.as_bytes().into();
        if !locks::are_usable() {
            return Self { table };
        }
        // SAFETY: it is a whole table with its end, and stays where it is until the unwinder
        // has been told to forget it.
        unsafe { __register_frame(table.as_ptr()) };
        Self { table }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !locks::are_usable() {
            // Registered perhaps, before this process was forked: it stays.
            core::mem::forget(core::mem::take(&mut self.table));
            return;
        }
        // SAFETY: registered in `new`.
        unsafe { __deregister_frame(self.table.as_ptr()) };
    }
}
