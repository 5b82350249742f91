//! Memory for emitted code and tables, and writing to text.
#![cfg(all(feature = "std", target_os = "linux"))]

mod images;
mod text;

use core::ops::Range;

use fentry::host::maps::{self, Protection};

const READ_EXECUTE: Protection = Protection::READ.union(Protection::EXECUTE);
/// `mov eax, 42; ret`
const FORTY_TWO: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];

/// The addresses of the module that `address` is in: mappings of one file, without a gap. (A
/// panic maps the program a second time, elsewhere, to print names.)
fn module_of(address: u64) -> Range<u64> {
    let mut path = Vec::new();
    let mut run = 0..0;
    let mut found = None;
    maps::for_each(|mapping| {
        if mapping.path == path && mapping.range.start == run.end {
            run.end = mapping.range.end;
        } else {
            path = mapping.path.to_vec();
            run = mapping.range;
        }
        if run.contains(&address) {
            found = Some(run.clone());
        }
    })
    .unwrap();
    found.expect("the address is mapped")
}

fn protection_of(address: u64) -> Option<Protection> {
    let mut found = None;
    maps::for_each(|mapping| {
        if mapping.range.contains(&address) {
            found = Some(mapping.protection);
        }
    })
    .unwrap();
    found
}

fn run(address: u64) -> u32 {
    // SAFETY: the tests pass the address of a function that takes nothing and returns a u32.
    let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(address as usize) };
    function()
}

fn bytes_at<const N: usize>(address: u64) -> [u8; N] {
    // SAFETY: the tests pass addresses that are mapped and readable.
    unsafe { core::ptr::with_exposed_provenance::<[u8; N]>(address as usize).read_volatile() }
}
