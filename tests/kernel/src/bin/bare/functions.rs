//! The functions that are hooked, in every shape that a compiler gives an entry.
//!
//! Each returns `(3 * a + number + b) ^ c`, and [`expected`] says the same in Rust.

use core::arch::global_asm;
use core::ptr;

use fentry::addr::Entry;
use fentry::attach::{FunctionSpec, Region, SiteNop};
use fentry::layout::EntryLayout;
use fentry::layout::x86_64::{IBT, IBT_UNPADDED, PLAIN, PLAIN_UNPADDED};

/// How many there are.
pub const FUNCTIONS: usize = 4096;

// In the order of their numbers:
// 0..512      padding, landing pad: -fpatchable-function-entry=21,16 -fcf-protection=branch
// 512..768    padding, and clang's nop
// 768..1535   no padding; patch sites at every place in a cache line, and across its end
// 1535        no padding, the patch site across the end of a page
// 1536..2048  no padding, landing pad, gcc's five one-byte nops
global_asm!(
    r#"
.macro BODY
    lea rax, [rdi + rdi * 2]
    add rax, number
    add rax, rsi
    xor rax, rdx
    ret
.pushsection .rodata.functions, "a"
    .quad 9b
.popsection
.set number, number + 1
.endm

.section .rodata.functions, "a"
.balign 8
functions:

.section .hookable, "ax"
.set number, 0
.rept 1024
    .balign 16
    .fill 16, 1, 0x90
9:  endbr64
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    BODY
.endr
.rept 512
    .balign 16
    .fill 16, 1, 0x90
9:  .byte 0x0f, 0x1f, 0x44, 0x00, 0x08
    BODY
.endr
.rept 1535
    .balign 64
    .fill number % 64, 1, 0xcc
9:  .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    BODY
.endr
    .balign 4096
    .fill 4094, 1, 0xcc
9:  .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    BODY
.rept 1024
    .balign 16
9:  endbr64
    .fill 5, 1, 0x90
    BODY
.endr

# Has a patch site, and must not be hooked: it is not in the section of those that may be.
.text
.balign 16
    .fill 16, 1, 0x90
not_hookable:
    endbr64
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    ret
"#
);

unsafe extern "C" {
    #[link_name = "functions"]
    static ENTRIES: [u64; FUNCTIONS];
    fn not_hookable();
}

/// Where function `number` is.
pub fn entry(number: usize) -> Option<u64> {
    // SAFETY: the assembly lists as many.
    unsafe { &ENTRIES }.get(number).copied()
}

/// What the engine is told of function `number`.
pub fn spec(number: usize) -> Option<FunctionSpec> {
    let (layout, nop) = match number {
        0..1024 => (IBT, SiteNop::FiveByte),
        1024..1536 => (PLAIN, SiteNop::Clang),
        1536..3072 => (PLAIN_UNPADDED, SiteNop::FiveByte),
        _ => (IBT_UNPADDED, SiteNop::OneByte),
    };
    // Of some it is known that they have no arguments on the stack: state is then kept there.
    let stack_arguments = number.is_multiple_of(3).then_some(0);
    Some(FunctionSpec { stack_arguments, ..described(entry(number)?, layout, nop) })
}

/// Whether function `number` has padding, and so a slot.
pub const fn has_slot(number: usize) -> bool {
    number < 1536
}

/// What the engine is told of the function that must not be hooked.
pub fn forbidden() -> FunctionSpec {
    described(not_hookable as unsafe extern "C" fn() as usize as u64, IBT, SiteNop::FiveByte)
}

const fn described(entry: u64, layout: EntryLayout, nop: SiteNop) -> FunctionSpec {
    let entry = Entry::new(entry);
    FunctionSpec { entry, layout, nop, region: Region(0), stack_arguments: None }
}

/// Calls function `number`.
pub fn call(number: usize, [a, b, c]: [u64; 3]) -> Option<u64> {
    let entry = ptr::with_exposed_provenance::<()>(entry(number)? as usize);
    // SAFETY: each function of the assembly has this signature.
    let function: extern "C" fn(u64, u64, u64) -> u64 = unsafe { core::mem::transmute(entry) };
    Some(function(a, b, c))
}

/// What function `number` returns if the programs in `programs` run before it.
pub const fn expected(number: usize, [a, b, c]: [u64; 3], programs: u8) -> u64 {
    let a = if programs & ADD != 0 { a.wrapping_add(cookie(number)) } else { a };
    let b = if programs & FLIP != 0 { b ^ FLIPPED ^ FLIPPED_TOO } else { b };
    let result = a.wrapping_mul(3).wrapping_add(number as u64).wrapping_add(b) ^ c;
    if programs & STAMP != 0 { result ^ cookie(number) } else { result }
}

/// Whether `STAMP` is ever attached to function `number`: to some of each shape. A thunk for each
/// function and set of programs is what takes most of the memory for emitted code.
pub const fn is_stamped(number: usize) -> bool {
    matches!(number, 0..64 | 1024..1056 | 1536..1568 | 3040..3136)
}

/// The program that adds its cookie to the first argument, as a bit of a set.
pub const ADD: u8 = 1;
/// The program that flips the second argument's bits that are set in its cookie or its data.
pub const FLIP: u8 = 2;
/// The cookie of `FLIP`.
pub const FLIPPED: u64 = 0x5555_0000_0000_5555;
/// The program that flips bits of what is returned, those of its cookie.
pub const STAMP: u8 = 4;
/// All of them.
pub const PROGRAMS: u8 = ADD | FLIP | STAMP;
/// The data of `FLIP`.
pub const FLIPPED_TOO: u64 = 0x0000_aaaa_aaaa_0000;

/// The cookie of `ADD` and `STAMP` for function `number`.
pub const fn cookie(number: usize) -> u64 {
    1_000_000_007 * (number as u64 + 1)
}
