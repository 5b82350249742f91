//! Unwind tables of emitted code, as the C runtime's unwinder has them.
//!
//! What walks stacks in this process asks it: C++ exceptions, Rust panics, backtraces, thread
//! cancellation.

use std::boxed::Box;

use super::side_stacks;
use crate::attach::Emitted;
use crate::emit::x86_64::UnwindTable;

/// The table of what was emitted.
pub(super) fn table(address: u64, size: usize, what: Emitted<'_>) -> UnwindTable {
    let side_stacks = side_stacks::list();
    match what {
        Emitted::Image { bodies: Some(marks), .. } => {
            UnwindTable::of_side_stack_bodies(address, &marks, &side_stacks)
        }
        Emitted::Image { bodies: None, .. } => UnwindTable::of_entry_body(address, size),
        Emitted::EntryThunk { .. } => UnwindTable::of_entry_thunks(address, size),
        Emitted::ExitThunk { .. } => UnwindTable::of_exit_thunks(address, size, &side_stacks),
    }
}

// SAFETY: libgcc_s, which every Rust program on a GNU system is linked to, has these functions
// with this type (gcc, `libgcc/unwind-dw2-fde.c`).
unsafe extern "C" {
    fn __register_frame(table: *const u8);
    fn __deregister_frame(table: *const u8);
}

/// A table that the unwinder has, until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    table: Box<[u8]>,
}

impl Registered {
    pub(super) fn new(table: &UnwindTable) -> Self {
        let table: Box<[u8]> = table.as_bytes().into();
        // SAFETY: it is a whole table with its end, and stays where it is until the unwinder
        // has been told to forget it.
        unsafe { __register_frame(table.as_ptr()) };
        Self { table }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered in `new`.
        unsafe { __deregister_frame(self.table.as_ptr()) };
    }
}
