//! The same for arm64: what clang emits is the oracle, and what is emitted runs in an emulator.

mod clang;
mod emulator;
mod entry_body;
mod golden;
mod run;

use fentry::emit::Mitigations;
use fentry::emit::aarch64::{Check, Hardening, LandingPad, Preamble};

const LANDING_PADS: [LandingPad; 3] = [LandingPad::None, LandingPad::Bti, LandingPad::Paciasp];

/// Every set of mitigations that arm64 has, with `check` where there is one.
fn hardenings(check: Check) -> Vec<Hardening> {
    (0..=Mitigations::all().bits())
        .filter_map(|bits| Hardening::new(Mitigations::from_bits_retain(bits), check).ok())
        .collect()
}

/// A preamble whose hash is `hash`.
const fn preamble(hash: u32, nops: u8, landing_pad: LandingPad) -> Preamble {
    Preamble { hash: Some(hash), nops, landing_pad }
}
