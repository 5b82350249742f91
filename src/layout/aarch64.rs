//! The layouts of arm64 functions.
//!
//! gcc and clang, `-fpatchable-function-entry=N,M`: `M` words of nops before the entry, `N - M`
//! after it and behind the `bti c` where there is one; `paciasp` comes behind them (seen with
//! gcc 12 and clang 16). Of two nops the first saves the link register and the second is the
//! branch, as Linux uses them (arch/arm64/kernel/ftrace.c, 7.2); one alone can only be a jump.

use super::{Config, EntryLayout, LandingPad};

/// Bytes of an instruction, and so of every nop.
pub const INSTRUCTION: u16 = 4;

/// `nop`, the word 0xd503201f, of which padding and patch sites are made (Arm ARM, NOP).
pub const NOP: [u8; INSTRUCTION as usize] = [0x1f, 0x20, 0x03, 0xd5];

const fn known(config: Config) -> EntryLayout {
    match config.layout() {
        Ok(layout) => layout,
        // Evaluated at compile time only: the constants below are its only callers.
        Err(_) => panic!("a layout of this module overlaps itself"),
    }
}

const TWO: Config = Config::AARCH64.with_site(2 * INSTRUCTION);

/// `-fpatchable-function-entry=3,1`: one word of padding, which is the slot, and two at the
/// entry.
pub const PLAIN: EntryLayout = known(TWO.with_padding(INSTRUCTION));

/// As [`PLAIN`] behind a `bti c` (`-mbranch-protection=bti` or `standard`).
pub const BTI: EntryLayout =
    known(TWO.with_padding(INSTRUCTION).with_landing_pad(LandingPad::BtiC));

/// `-fpatchable-function-entry=2`: two words at the entry, no padding.
pub const PLAIN_UNPADDED: EntryLayout = known(TWO);

/// As [`PLAIN_UNPADDED`] behind a `bti c`.
pub const BTI_UNPADDED: EntryLayout = known(TWO.with_landing_pad(LandingPad::BtiC));

/// `-fpatchable-function-entry=6,4` with Linux's ops literal in the two words next to the
/// entry; the slot is right before it.
pub const CALL_OPS: EntryLayout =
    known(TWO.with_padding(4 * INSTRUCTION).with_ops_literal().with_landing_pad(LandingPad::BtiC));
