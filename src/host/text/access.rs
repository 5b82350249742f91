//! Loads and stores of text: what the compiler may not tear, join or move.

use core::sync::atomic::{AtomicU64, Ordering};

/// Whether the two bytes at `address` can be stored in one access.
pub(in crate::host) fn can_store_pair(address: u64) -> bool {
    can_store(address, 2)
}

/// Whether a store of `len` bytes at `address` is one access: inside an aligned 8-byte word
/// always, inside aligned 16 bytes on a CPU with AVX, whose aligned 16-byte stores are atomic
/// (Intel SDM volume 3, 10.1.1; AMD APM volume 2, 7.3.2). Instructions are fetched in aligned
/// blocks of 16 bytes or more.
pub(super) fn can_store(address: u64, len: u64) -> bool {
    address % 8 + len <= 8 || address % 16 + len <= 16 && std::is_x86_feature_detected!("avx")
}

/// Stores bytes inside an aligned word, by storing the word. The others get what they had.
///
/// # Safety
/// The bytes at `to` are inside an aligned word that can be read and written, and that nobody
/// else writes meanwhile.
#[inline]
pub(super) unsafe fn store_in_8<const N: usize>(to: *mut u8, bytes: [u8; N]) {
    // SAFETY: aligned, readable and writable (contract).
    let word = unsafe { AtomicU64::from_ptr(to.map_addr(|address| address & !7).cast()) };
    let mut all = word.load(Ordering::Relaxed).to_le_bytes();
    for (to, from) in all.iter_mut().skip(to.addr() % 8).zip(bytes) {
        *to = from;
    }
    word.store(u64::from_le_bytes(all), Ordering::Release);
}

/// Stores bytes inside aligned 16 bytes, by storing all 16 at once. The others get what they
/// had; whoever writes text has it to itself.
///
/// # Safety
/// The bytes at `to` are inside aligned 16 bytes that can be read and written, and that nobody
/// else writes meanwhile.
#[cold]
pub(super) unsafe fn store_in_16<const N: usize>(to: *mut u8, bytes: [u8; N]) {
    let block = to.map_addr(|address| address & !15).cast::<[u8; 16]>();
    // SAFETY: readable (contract), and bytes need no alignment.
    let mut all = unsafe { block.read_volatile() };
    for (to, from) in all.iter_mut().skip(to.addr() % 16).zip(bytes) {
        *to = from;
    }
    // SAFETY: aligned and writable (contract). Assembly, so that it is this one store.
    unsafe {
        core::arch::asm!(
            "movdqu {vector}, xmmword ptr [{all}]",
            "movdqa xmmword ptr [{block}], {vector}",
            all = in(reg) &raw const all,
            block = in(reg) block,
            vector = out(xmm_reg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// Four bytes at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned(u32);

/// Copies by fours, then by ones. Volatile, because the compiler does not know what text is.
///
/// # Safety
/// `N` bytes at `from` can be read.
#[inline]
pub(super) unsafe fn load<const N: usize>(from: *const u8, bytes: &mut [u8; N]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    let tail = words.len() * 4;
    for (index, word) in words.iter_mut().enumerate() {
        // SAFETY: the word is within the `N` bytes; `Unaligned` has alignment 1.
        *word = unsafe { from.add(index * 4).cast::<Unaligned>().read_volatile() }.0.to_le_bytes();
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        // SAFETY: the byte is within the `N` bytes.
        *byte = unsafe { from.add(tail + index).read_volatile() };
    }
}
