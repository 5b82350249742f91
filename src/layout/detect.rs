//! From the bytes around an entry to what they are.

use super::aarch64::{self, INSTRUCTION};
use super::x86_64::SITE_LEN;
use super::{Arch, Byte, CallDepth, Config, FineIbt, LandingPad, Part, What};
use crate::addr::Entry;

/// `nop`, one byte, of which compilers make padding and gcc makes patch sites.
const NOP: u8 = 0x90;

/// One instruction of five bytes that is a patch site: of `-mfentry -mnop-mcount` and Linux, of
/// LLVM, and of this library. Nothing else at an entry was seen to begin so; nops that align a
/// loop, or hold the place of an alternative, have other lengths or bytes.
const SITES: [[u8; SITE_LEN as usize]; 3] = [
    [0x0f, 0x1f, 0x44, 0x00, 0x00],
    [0x0f, 0x1f, 0x44, 0x00, 0x08],
    [0x66, 0x66, 0x66, 0x66, 0x90],
];

/// What is known of a function that is to be named.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// Where it is called.
    pub entry: Entry,
    /// The bytes before the entry, of which the last is the one right before it. 128 are enough;
    /// with fewer, less is named.
    pub before: &'a [u8],
    /// The bytes from the entry on. 25 are enough.
    pub at: &'a [u8],
    /// Whether the compiler's record (`__patchable_function_entries`, `__mcount_loc`) has a
    /// patch site of this function; `false` where it is not at hand.
    pub recorded: bool,
}

impl Around<'_> {
    /// The byte `place` bytes from the entry.
    fn byte(&self, place: i32) -> Option<u8> {
        let distance = place.unsigned_abs() as usize;
        match place {
            0.. => self.at.get(distance).copied(),
            _ => self.before.get(self.before.len().checked_sub(distance)?).copied(),
        }
    }

    /// Whether `part` stands where it says.
    fn has(&self, part: &Part) -> bool {
        let size = usize::from(part.what.size());
        part.what.forms().chunks(size.max(1)).any(|form| {
            (part.at..)
                .zip(form)
                .all(|(place, byte)| self.byte(place).is_some_and(|found| byte.admits(found)))
        })
    }

    /// The bytes from the entry on, without the first `skip`.
    fn from(&self, skip: u16) -> &[u8] {
        self.at.get(usize::from(skip)..).unwrap_or_default()
    }

    /// How many nops of one byte stand right before the entry.
    fn run(&self) -> usize {
        self.before.iter().rev().take_while(|&&byte| byte == NOP).count()
    }
}

impl Config {
    /// Whether these bytes can be those of such a function as it was compiled and as the kernel
    /// made it at boot: with nothing in the slot and a nop for a patch site.
    ///
    /// The kind of nop is not looked at beyond that: five bytes of any known patch site do, and
    /// otherwise nops of one byte (x86-64) or one word (arm64).
    #[must_use]
    pub fn stands(&self, around: &Around<'_>) -> bool {
        let Ok(parts) = self.parts() else { return false };
        let nop = |place: i32| match self.arch() {
            Arch::X86_64 => NOP,
            // Padding is whole words, so the places count from the entry.
            Arch::Aarch64 => aarch64::NOP[place.rem_euclid(4) as usize % 4],
        };
        let is_nop = |place| around.byte(place) == Some(nop(place));
        let free = |place: &i32| parts.is_free(*place, *place + 1);
        let Ok(begin) = i32::try_from(self.before_entry()) else { return false };
        (-begin..0).filter(free).all(is_nop)
            && parts.as_slice().iter().all(|part| match part.what {
                What::Site(len) => {
                    let known = len == SITE_LEN
                        && SITES.iter().any(|site| around.from(part.at as u16).starts_with(site));
                    known || (part.at..part.end()).all(is_nop)
                }
                _ => around.has(part),
            })
    }
}

/// Bytes of padding that are named on x86-64, larger ones first. 11 and none say little, and
/// are named where something else is there, too.
const PADDINGS: [u16; 7] = [64, 59, 32, 27, 16, 11, 0];

/// Of how many bytes what is before a kCFI hash can be a multiple, larger ones first.
const MULTIPLES: [u16; 3] = [64, 32, 16];

/// Paddings in which FineIBT is: those of Linux's kCFI, at 64, 32 and 16 bytes.
const FINEIBT_PADDINGS: [u16; 3] = [59, 27, 11];

const THUNKS: [CallDepth; 2] = [CallDepth::Relative, CallDepth::Absolute];

/// All that can stand before an x86-64 entry and says what it is; of two that end alike the
/// longer one is first. A byte or two tell that most of it does not.
fn prefixes(around: &Around<'_>) -> impl Iterator<Item = Config> {
    let padded = PADDINGS.into_iter().map(|padding| Config::X86_64.with_padding(padding));
    let hashed = padded
        .clone()
        .filter(|config| {
            let hash = -i32::from(config.padding()) - i32::from(What::KcfiMov.size());
            around.byte(hash).is_some_and(|byte| Byte::MovImm32.admits(byte))
        })
        .flat_map(|config| MULTIPLES.into_iter().map(move |multiple| config.with_kcfi(multiple)));

    let lands = What::LandingPad(LandingPad::Endbr64);
    let lands = around.has(&Part { at: -i32::from(FineIbt::BEFORE), what: lands });
    let preambles = if lands { FineIbt::ALL } else { &[] };
    let fineibt = preambles.iter().flat_map(|preamble| {
        let of = |padding| Config::X86_64.with_padding(padding).with_kcfi(16);
        FINEIBT_PADDINGS.iter().map(move |&padding| of(padding).with_fineibt(preamble))
    });

    let part =
        |thunk: CallDepth| Part { at: -i32::from(thunk.size()), what: What::CallDepth(thunk) };
    let thunk = THUNKS.into_iter().find(|&thunk| around.has(&part(thunk)));
    let with_thunk = move |config: Config| thunk.map(|thunk| config.with_call_depth(thunk));
    let thunks = hashed.clone().chain(padded).filter_map(with_thunk);

    fineibt.chain(hashed).chain(thunks)
}

/// Linux's kCFI at 16 bytes.
const KCFI_16: Config = Config::X86_64.with_padding(11).with_kcfi(16);

/// Names what stands around a function's entry, as it was compiled and as the kernel made it at
/// boot. `None` says that it is nothing known.
///
/// What is named is there, and is [`Config::as_seen`] of what was asked for. Bytes cannot say
/// more than they are:
///
/// * A function may begin with a nop of five bytes for another reason, as a jump label in Linux.
/// * The nops of one byte of which gcc makes patch sites also keep places for alternatives
///   (`__stack_chk_fail` in Linux begins so). They are named where the record has the site.
///   So is a single nop of an arm64 function without `bti c`.
/// * A slot that holds an index is the same as kCFI with 11 bytes of padding. Detect before
///   anything is written there.
/// * Where nobody filled up before a kCFI hash, it can be the end of the function before. With 11
///   bytes of padding it is a hash where the entry is aligned to 16, which it is not with 11 bytes
///   and no hash in functions that are aligned; elsewhere nothing is named.
/// * The function before may end with `90`: up to two bytes of padding may be too few to tell.
/// * On arm64 nops before the entry may align it, and are not named.
///
/// ```
/// use fentry::addr::Entry;
/// use fentry::layout::{Arch, Around, Config, LandingPad, detect};
///
/// let at = [0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3];
/// let around = Around { entry: Entry::new(0x1010), before: &[0x90; 16], at: &at, recorded: false };
/// let ibt = Config::X86_64.with_padding(16).with_landing_pad(LandingPad::Endbr64).with_site(5);
/// assert_eq!(detect(Arch::X86_64, &around), Some(ibt));
/// ```
#[must_use]
pub fn detect(arch: Arch, around: &Around<'_>) -> Option<Config> {
    match arch {
        Arch::X86_64 => detect_x86_64(around),
        Arch::Aarch64 => detect_aarch64(around),
    }
}

/// The landing pad at the entry, of those that can be there.
fn landing_pad(around: &Around<'_>, pads: &[LandingPad]) -> LandingPad {
    let stands = |pad: &&LandingPad| around.has(&Part { at: 0, what: What::LandingPad(**pad) });
    pads.iter().find(stands).copied().unwrap_or(LandingPad::None)
}

fn detect_x86_64(around: &Around<'_>) -> Option<Config> {
    let aligned = around.entry.get().is_multiple_of(16);
    let prefix = prefixes(around)
        .filter(|prefix| {
            // Nothing but the alignment says that a hash there is one.
            let bare = (prefix.padding(), prefix.before_entry()) == (11, 16);
            aligned || !bare || prefix.fineibt().is_some()
        })
        .find(|prefix| prefix.stands(around));
    let pad = match prefix {
        // The end of the preamble is where the landing pad was.
        Some(prefix) if prefix.fineibt().is_some() => LandingPad::Endbr64,
        _ => landing_pad(around, &[LandingPad::Endbr64, LandingPad::Sealed]),
    };
    let at_site = around.from(pad.size());
    let one_instruction = SITES.iter().any(|site| at_site.starts_with(site));
    let one_byte = around.recorded && at_site.starts_with(&[NOP; SITE_LEN as usize]);
    let site = if one_instruction || one_byte { SITE_LEN } else { 0 };
    let run = around.run();
    // The end of the function before and a nop that aligns can both be `90`.
    let padding = PADDINGS.into_iter().find(|&padding| run.wrapping_sub(padding.into()) <= 2);
    let config = match (prefix, padding) {
        (Some(prefix), _) => prefix,
        (None, Some(11)) if KCFI_16.stands(around) => return None,
        (None, Some(0 | 11)) if site == 0 => return None,
        (None, Some(padding)) => Config::X86_64.with_padding(padding),
        (None, None) => return None,
    };
    Some(config.with_landing_pad(pad).with_site(site).as_seen())
}

fn detect_aarch64(around: &Around<'_>) -> Option<Config> {
    let pad = landing_pad(around, &[LandingPad::BtiC]);
    let words = around.from(pad.size()).chunks_exact(usize::from(INSTRUCTION));
    let nops = words.clone().take_while(|&word| word == aarch64::NOP).count();
    let site = match (nops, pad) {
        (1, LandingPad::None) if !around.recorded => return None,
        (1..=4, _) => nops as u16 * INSTRUCTION,
        _ => return None,
    };
    let config = Config::AARCH64.with_landing_pad(pad).with_site(site);
    let literal = Part { at: -8, what: What::OpsLiteral };
    let aligned = around.byte(literal.at).is_some_and(|low| low & 7 == 0);
    let config = if aligned && around.has(&literal) {
        config.with_padding(literal.what.size()).with_ops_literal()
    } else {
        config
    };
    let sign = Part { at: i32::from(pad.size() + site), what: What::SignReturn };
    Some(if around.has(&sign) { config.with_sign_return() } else { config })
}
