//! The hashes of function types that kCFI and FineIBT compare.
//!
//! A caller says which type it calls with, the callee's preamble which type it has, both as 32
//! bits. clang makes them from the type's name as the Itanium C++ ABI mangles it, for C too:
//!
//! ```
//! use fentry::emit::kcfi;
//!
//! // void program(struct context *, unsigned long): `_ZTSF`, result, parameters, `E`.
//! let hash = kcfi::type_hash("_ZTSFvP7contextmE");
//! assert_eq!(hash, kcfi::type_hash("_ZTSFvP7contextmE"));
//! ```
//!
//! Code of Rust and C that calls each other is compiled with integers normalised
//! (`-fsanitize-cfi-icall-experimental-normalize-integers`, `-Zsanitizer-cfi-normalize-integers`).
//! The name then has `.normalized` behind it, and says `u3u64` where it said `m`.

use core::hint::black_box;

/// The hash that clang 16 and later give to the function type whose mangled name is `name`:
/// the lower 32 bits of its xxHash64 with seed 0 (`CodeGenModule::CreateKCFITypeId`). On x86-64
/// the text then has [`without_landing_pad`] of it, which the emitters see to.
#[must_use]
pub const fn type_hash(name: &str) -> u32 {
    (xx_hash64(name.as_bytes()) & 0xffff_ffff) as u32
}

/// `hash`, or the number after it where `hash` or its negation, which the caller's check
/// contains, would be an `endbr64` or `endbr32` in x86-64 text
/// (`X86AsmPrinter::MaskKCFIType`, LLVM 16).
#[must_use]
pub const fn without_landing_pad(hash: u32) -> u32 {
    if is_landing_pad(hash) || is_landing_pad(hash.wrapping_neg()) {
        hash.wrapping_add(1)
    } else {
        hash
    }
}

/// The hash of a running kernel that has made its hashes its own with a random `seed`: what
/// Linux does at boot to every caller and every preamble, unless told `cfi=norand`
/// (`cfi_rehash()`, arch/x86/kernel/alternative.c, Linux 6.2 and later).
///
/// Where the result, or its negation, would be a landing pad, the next number in the sequence
/// of the linear-feedback shift register 0x80200003 takes its place. Landing pads there are
/// `endbr64`, `endbr32` and what a kernel with [`NOP4_UDB`](crate::encode::x86_64::NOP4_UDB)
/// writes over the ones that nobody needs.
#[must_use]
pub const fn rehash(hash: u32, seed: u32) -> u32 {
    const TAPS: u32 = 0x8020_0003;
    let mut hash = hash ^ seed;
    while counts_as_landing_pad(hash) || counts_as_landing_pad(hash.wrapping_neg()) {
        hash = if hash & 1 == 1 { hash >> 1 ^ TAPS } else { hash >> 1 };
    }
    hash
}

/// What `endbr64` is not, as a number: the number itself would be one in the text of whoever
/// compares with it.
const NOT_ENDBR64: u32 = !0xfa1e_0ff3;
/// In the same way `endbr32`.
const NOT_ENDBR32: u32 = !0xfb1e_0ff3;
/// In the same way `nop dword [rax - 42]`, which also counts as one.
const NOT_NOP4_UDB: u32 = !0xd640_1f0f;

const fn is_landing_pad(word: u32) -> bool {
    let not = !black_box(word);
    not == NOT_ENDBR64 || not == NOT_ENDBR32
}

const fn counts_as_landing_pad(word: u32) -> bool {
    is_landing_pad(word) || !black_box(word) == NOT_NOP4_UDB
}

// The primes of xxHash64 (xxHash fast digest algorithm, specification 0.1.1).
const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME_3: u64 = 0x1656_67b1_9e37_79f9;
const PRIME_4: u64 = 0x85eb_ca77_c2b2_ae63;
const PRIME_5: u64 = 0x27d4_eb2f_1656_67c5;

/// xxHash64 of `bytes` with seed 0.
const fn xx_hash64(bytes: &[u8]) -> u64 {
    let (mut hash, mut rest) = stripes(bytes);
    hash = hash.wrapping_add(bytes.len() as u64);
    while let Some((lane, after)) = rest.split_first_chunk() {
        let lane = round(0, u64::from_le_bytes(*lane));
        hash = (hash ^ lane).rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
        rest = after;
    }
    if let Some((lane, after)) = rest.split_first_chunk() {
        let lane = (u32::from_le_bytes(*lane) as u64).wrapping_mul(PRIME_1);
        hash = (hash ^ lane).rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
        rest = after;
    }
    while let Some((&byte, after)) = rest.split_first() {
        let lane = (byte as u64).wrapping_mul(PRIME_5);
        hash = (hash ^ lane).rotate_left(11).wrapping_mul(PRIME_1);
        rest = after;
    }
    hash = (hash ^ hash >> 33).wrapping_mul(PRIME_2);
    hash = (hash ^ hash >> 29).wrapping_mul(PRIME_3);
    hash ^ hash >> 32
}

/// The hash of the stripes of 32 bytes that `bytes` begins with, and the bytes behind them.
const fn stripes(bytes: &[u8]) -> (u64, &[u8]) {
    if bytes.len() < 32 {
        return (PRIME_5, bytes);
    }
    let mut a = PRIME_1.wrapping_add(PRIME_2);
    let mut b = PRIME_2;
    let mut c = 0;
    let mut d = PRIME_1.wrapping_neg();
    let mut rest = bytes;
    while let Some((lane_a, after)) = rest.split_first_chunk()
        && let Some((lane_b, after)) = after.split_first_chunk()
        && let Some((lane_c, after)) = after.split_first_chunk()
        && let Some((lane_d, after)) = after.split_first_chunk()
    {
        a = round(a, u64::from_le_bytes(*lane_a));
        b = round(b, u64::from_le_bytes(*lane_b));
        c = round(c, u64::from_le_bytes(*lane_c));
        d = round(d, u64::from_le_bytes(*lane_d));
        rest = after;
    }
    let mut hash = a
        .rotate_left(1)
        .wrapping_add(b.rotate_left(7))
        .wrapping_add(c.rotate_left(12))
        .wrapping_add(d.rotate_left(18));
    hash = merge(hash, a);
    hash = merge(hash, b);
    hash = merge(hash, c);
    (merge(hash, d), rest)
}

const fn round(accumulator: u64, lane: u64) -> u64 {
    accumulator.wrapping_add(lane.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

const fn merge(hash: u64, accumulator: u64) -> u64 {
    (hash ^ round(0, accumulator)).wrapping_mul(PRIME_1).wrapping_add(PRIME_4)
}
