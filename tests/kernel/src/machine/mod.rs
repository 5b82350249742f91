//! A machine for the library under test: what there is between the power button and a kernel's
//! `main`, on a PC with any number of processors, and no more than the tests need.
//!
//! | address | what is there |
//! |---|---|
//! | [`KERNEL`](paging::KERNEL) | the kernel, each part with the rights that it needs and no more |
//! | [`MEMORY`](paging::MEMORY) | all memory, writable and not executable |
//! | [`TABLES`](paging::TABLES) | address space for tables, in which pages are mapped on demand |
//!
//! A binary of this package defines `main`, which the first processor runs, `other_main`, which
//! the others do, and `trap`, which handles every exception and interrupt.

#![no_std]

pub mod apic;
mod boot;
pub mod console;
pub mod cpu;
mod descriptors;
pub mod paging;
mod panic;
pub mod traps;

/// The most processors there can be.
pub const PROCESSORS: usize = 4;
