//! The entries that are known, each by a name and drawn byte by byte.
//!
//! A line is 16 bytes at most. `hh` is part of a hash, `..` of an address or a displacement,
//! `ss` of the patch site, whose nop depends on who wrote it; `[` and `]` enclose the slot, where
//! nops are until a function is attached to. Everything before the first line is not the
//! function's.
//!
//! The drawings are made from the values in [`NAMED`]; a test keeps them so.
#![doc = include_str!("named.md")]

use super::{CallDepth, Config, FineIbt, LandingPad};

/// An entry and what it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it is called, and which options make it so.
    pub name: &'static str,
    /// What it is.
    pub config: Config,
}

const fn named(name: &'static str, config: Config) -> Named {
    Named { name, config }
}

/// An x86-64 function with a patch site.
const X86_64: Config = Config::X86_64.with_site(super::x86_64::SITE_LEN);
/// The same with a landing pad.
const IBT: Config = X86_64.with_landing_pad(LandingPad::Endbr64);
/// Linux's kCFI at 16, 32 and 64 bytes of alignment (`FUNCTION_PADDING_CFI`).
const KCFI_16: Config = IBT.with_padding(11).with_kcfi(16);
const KCFI_32: Config = IBT.with_padding(27).with_kcfi(16);
const KCFI_64: Config = IBT.with_padding(59).with_kcfi(16);

/// An arm64 function with this many nops at the entry.
const fn aarch64(nops: u16) -> Config {
    Config::AARCH64.with_site(nops * super::aarch64::INSTRUCTION)
}

/// The same with a landing pad.
const fn bti(nops: u16) -> Config {
    aarch64(nops).with_landing_pad(LandingPad::BtiC)
}

const fn words(config: Config, before: u16) -> Config {
    config.with_padding(before * super::aarch64::INSTRUCTION)
}

/// The entries that are known. What differs only in a landing pad is there once.
pub const NAMED: &[Named] = &[
    named("x86-64, no option", Config::X86_64),
    named("x86-64, `=5`, or `-mfentry -mnop-mcount`", X86_64),
    named("x86-64, `=5`, IBT", IBT),
    named("x86-64, `=21,16`, or Linux's `CALL_PADDING`", X86_64.with_padding(16)),
    named("x86-64, `=21,16`, IBT", IBT.with_padding(16)),
    named("x86-64, `=16,11`", X86_64.with_padding(11)),
    named("x86-64, `=37,32`, or `CALL_PADDING` at 32 bytes, IBT", IBT.with_padding(32)),
    named("x86-64, `=69,64`, or `CALL_PADDING` at 64 bytes, IBT", IBT.with_padding(64)),
    named(
        "x86-64, `CALL_PADDING`, IBT, call depth tracking",
        IBT.with_padding(16).with_call_depth(CallDepth::Relative),
    ),
    named(
        "x86-64, `CALL_PADDING`, IBT, call depth tracking with an absolute address",
        IBT.with_padding(16).with_call_depth(CallDepth::Absolute),
    ),
    named(
        "x86-64, IBT sealed at boot",
        X86_64.with_padding(16).with_landing_pad(LandingPad::Sealed),
    ),
    named("x86-64, kCFI without padding, `=5`, IBT", IBT.with_kcfi(16)),
    named("x86-64, kCFI without padding, `-Os`, IBT", IBT.with_kcfi(4)),
    named("x86-64, kCFI without padding, `-Os`, LLVM 16, IBT", IBT.with_kcfi(1)),
    named(
        "x86-64, kCFI, `=16,11`, functions aligned to 32, LLVM 23, IBT",
        IBT.with_padding(11).with_kcfi(32),
    ),
    named("x86-64, kCFI, `=21,16`, IBT", IBT.with_padding(16).with_kcfi(16)),
    named(
        "x86-64, kCFI, `=21,16`, a local function",
        IBT.with_padding(16).with_kcfi(16).called_directly(),
    ),
    named("x86-64, kCFI, `=16,11`, or Linux's at 16 bytes, IBT", KCFI_16),
    named("x86-64, kCFI, `=16,11`, a local function", KCFI_16.called_directly()),
    named("x86-64, Linux's kCFI at 32 bytes, IBT", KCFI_32),
    named("x86-64, Linux's kCFI at 64 bytes, IBT", KCFI_64),
    named(
        "x86-64, Linux's kCFI at 16 bytes, IBT, call depth tracking",
        KCFI_16.with_call_depth(CallDepth::Relative),
    ),
    named(
        "x86-64, Linux's kCFI at 32 bytes, IBT, call depth tracking",
        KCFI_32.with_call_depth(CallDepth::Relative),
    ),
    named("x86-64, FineIBT (6.2) at 16 bytes", KCFI_16.with_fineibt(&FineIbt::ORIGINAL)),
    named("x86-64, FineIBT (6.2) at 32 bytes", KCFI_32.with_fineibt(&FineIbt::ORIGINAL)),
    named(
        "x86-64, FineIBT (6.15), paranoid too, at 16 bytes",
        KCFI_16.with_fineibt(&FineIbt::SHORT),
    ),
    named(
        "x86-64, FineIBT (6.15), paranoid too, at 32 bytes",
        KCFI_32.with_fineibt(&FineIbt::SHORT),
    ),
    named(
        "x86-64, FineIBT with BHI, one argument (6.15), at 16 bytes",
        KCFI_16.with_fineibt(&FineIbt::SHORT_BHI_1),
    ),
    named(
        "x86-64, FineIBT with BHI, one argument (6.15), at 32 bytes",
        KCFI_32.with_fineibt(&FineIbt::SHORT_BHI_1),
    ),
    named(
        "x86-64, FineIBT with BHI (6.15), at 16 bytes",
        KCFI_16.with_fineibt(&FineIbt::SHORT_BHI),
    ),
    named(
        "x86-64, FineIBT with BHI (6.15), at 32 bytes",
        KCFI_32.with_fineibt(&FineIbt::SHORT_BHI),
    ),
    named("x86-64, FineIBT (7.2), paranoid too, at 16 bytes", KCFI_16.with_fineibt(&FineIbt::UDB)),
    named("x86-64, FineIBT (7.2), paranoid too, at 32 bytes", KCFI_32.with_fineibt(&FineIbt::UDB)),
    named(
        "x86-64, FineIBT with BHI, one argument (7.2), at 16 bytes",
        KCFI_16.with_fineibt(&FineIbt::UDB_BHI_1),
    ),
    named(
        "x86-64, FineIBT with BHI, one argument (7.2), at 32 bytes",
        KCFI_32.with_fineibt(&FineIbt::UDB_BHI_1),
    ),
    named("x86-64, FineIBT with BHI (7.2), at 16 bytes", KCFI_16.with_fineibt(&FineIbt::UDB_BHI)),
    named("x86-64, FineIBT with BHI (7.2), at 32 bytes", KCFI_32.with_fineibt(&FineIbt::UDB_BHI)),
    named("arm64, no option", Config::AARCH64),
    named("arm64, `=1`", aarch64(1)),
    named("arm64, `=1`, BTI", bti(1)),
    named("arm64, `=2`", aarch64(2)),
    named("arm64, `=2`, BTI", bti(2)),
    named("arm64, `=3`", aarch64(3)),
    named("arm64, `=3`, BTI", bti(3)),
    named("arm64, `=4`", aarch64(4)),
    named("arm64, `=4`, BTI", bti(4)),
    named("arm64, `=2`, BTI, PAC", bti(2).with_sign_return()),
    named("arm64, `=3,1`, BTI, PAC", words(bti(2), 1).with_sign_return()),
    named("arm64, `=4,2`, BTI", words(bti(2), 2)),
    named("arm64, `=4,2`, BTI, Linux's `CALL_OPS`", words(bti(2), 2).with_ops_literal()),
    named("arm64, `=6,4`, BTI, Linux's `CALL_OPS`", words(bti(2), 4).with_ops_literal()),
    named("arm64, kCFI, `=2`, BTI, PAC", bti(2).with_kcfi(1).with_sign_return()),
    named("arm64, kCFI, `=3,1`, BTI", words(bti(2), 1).with_kcfi(1)),
    named("arm64, kCFI, `=4,2`, BTI", words(bti(2), 2).with_kcfi(1)),
];
