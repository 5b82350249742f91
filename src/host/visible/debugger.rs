//! The list of ELF objects in memory that debuggers read.
//!
//! Layout and protocol: GDB manual, "JIT Compilation Interface". A debugger sets a breakpoint
//! on a function that does nothing, and reads the list when the process comes by.

use core::arch::global_asm;
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use std::boxed::Box;
use std::vec::Vec;

use super::{Piece, elf};

/// Pieces in one object at the most: an ELF object counts its sections in 16 bits.
const PIECES: usize = 1 << 12;

// Weak: a process has one list, whoever brings it along.
global_asm!(
    r#"
    .pushsection .text.__jit_debug_register_code, "ax", @progbits
    .weak __jit_debug_register_code
    .type __jit_debug_register_code, @function
    .p2align 4
    __jit_debug_register_code:
    ret
    .size __jit_debug_register_code, . - __jit_debug_register_code
    .popsection
    .pushsection .data.__jit_debug_descriptor, "aw", @progbits
    .weak __jit_debug_descriptor
    .type __jit_debug_descriptor, @object
    .p2align 3
    __jit_debug_descriptor:
    .long 1, 0
    .quad 0, 0
    .size __jit_debug_descriptor, . - __jit_debug_descriptor
    .popsection
    "#
);

// SAFETY: the function takes nothing and does nothing that this program can see; the object
// has this type, whoever defines it.
unsafe extern "C" {
    fn __jit_debug_register_code();
    static mut __jit_debug_descriptor: Descriptor;
}

/// What a debugger finds by its name.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

/// An object in the list.
#[repr(C)]
struct Entry {
    next: *mut Entry,
    previous: *mut Entry,
    object: *const u8,
    size: u64,
}

/// The objects that this library has in the list.
#[derive(Debug, Default)]
pub(super) struct Debugger {
    objects: Vec<Registered>,
}

impl Debugger {
    /// Shows pieces of code.
    pub(super) fn add(&mut self, mut pieces: Vec<Piece>) {
        pieces.sort_unstable_by_key(|piece| piece.address);
        let objects = pieces.chunks(PIECES).map(|pieces| Registered::new(pieces.into()));
        self.objects.extend(objects);
    }

    /// Shows no more what is in `range`.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        let gone = |piece: &Piece| range.contains(&piece.address);
        let touched = self.objects.extract_if(.., |object| object.pieces.iter().any(gone));
        let mut stay = Vec::new();
        for mut object in touched {
            stay.extend(object.pieces.extract_if(.., |piece| !gone(piece)));
        }
        if !stay.is_empty() {
            self.add(stay);
        }
    }
}

/// An object in the list, until it is dropped.
#[derive(Debug)]
struct Registered {
    pieces: Vec<Piece>,
    entry: NonNull<Entry>,
    object: NonNull<[u8]>,
}

// SAFETY: what it points to is its own, but for the links of the list, which are changed by
// the one thread that has the lock of the process's state.
unsafe impl Send for Registered {}
// SAFETY: `&self` gives the pieces only.
unsafe impl Sync for Registered {}

impl Registered {
    fn new(pieces: Vec<Piece>) -> Self {
        let object = NonNull::from(Box::leak(elf::object(&pieces).into_boxed_slice()));
        // SAFETY: the list is changed under the lock of the process's state only, and by no
        // other code generator meanwhile (`Visibility::debugger`); its entries are alive.
        let entry = unsafe {
            let first = __jit_debug_descriptor.first;
            let entry = Box::into_raw(Box::new(Entry {
                next: first,
                previous: null_mut(),
                object: object.as_ptr().cast(),
                size: object.len() as u64,
            }));
            if !first.is_null() {
                (*first).previous = entry;
            }
            __jit_debug_descriptor.first = entry;
            tell(entry, REGISTER);
            NonNull::new_unchecked(entry)
        };
        Self { pieces, entry, object }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let entry = self.entry.as_ptr();
        // SAFETY: as in `new`, which has made the entry and the object; a debugger is done with
        // both when it lets the process go on.
        unsafe {
            let Entry { next, previous, .. } = *entry;
            if previous.is_null() {
                __jit_debug_descriptor.first = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
            tell(entry, UNREGISTER);
            drop(Box::from_raw(entry));
            drop(Box::from_raw(self.object.as_ptr()));
        }
    }
}

/// Tells a debugger what became of an entry.
///
/// # Safety
/// The entry is valid, and nobody else changes the list.
unsafe fn tell(entry: *mut Entry, action: u32) {
    // SAFETY: by the contract.
    unsafe {
        __jit_debug_descriptor.relevant = entry;
        __jit_debug_descriptor.action = action;
        __jit_debug_register_code();
    }
}
