//! Every combination of options against a model that gives each byte an owner.

use fentry::addr::Entry;
use fentry::layout::{CallDepth, Config, FineIbt, Kcfi, LandingPad, LayoutError, SlotKind, What};

/// Bytes before the entry that the model has.
const BEFORE: usize = 128;

/// Who owns which byte; `None` is nobody's, and a nop.
type Map = [Option<&'static str>; BEFORE + 32];

/// Gives `len` bytes from `at` to `who`; says who had them.
fn paint(map: &mut Map, at: isize, len: usize, who: &'static str) -> Result<(), &'static str> {
    let from = (BEFORE as isize + at) as usize;
    for byte in &mut map[from..from + len] {
        if let Some(owner) = byte.replace(who) {
            return Err(owner);
        }
    }
    Ok(())
}

/// An x86-64 entry as a list of facts, and what is known of it by looking at them one by one.
struct Case {
    padding: usize,
    kcfi: Kcfi,
    multiple: usize,
    fineibt: Option<&'static FineIbt>,
    call_depth: Option<CallDepth>,
    landing_pad: LandingPad,
}

impl Case {
    fn config(&self) -> Config {
        let config = Config::X86_64.with_padding(self.padding as u16).with_site(5);
        let config = match self.kcfi {
            Kcfi::Off => config.with_landing_pad(self.landing_pad),
            Kcfi::Hash => config.with_landing_pad(self.landing_pad).with_kcfi(self.multiple as u16),
            _ => config.with_kcfi(self.multiple as u16).called_directly(),
        };
        let config = match self.fineibt {
            Some(preamble) => config.with_fineibt(preamble),
            None => config,
        };
        match self.call_depth {
            Some(thunk) => config.with_call_depth(thunk),
            None => config,
        }
    }

    /// Bytes of the function before the entry.
    fn begin(&self) -> usize {
        let mut begin = self.padding + if self.kcfi == Kcfi::Hash { 5 } else { 0 };
        while self.kcfi != Kcfi::Off && !begin.is_multiple_of(self.multiple) {
            begin += 1;
        }
        begin
    }

    /// Who owns what, or the two that want one byte, or who begins too early.
    fn map(&self) -> Result<Map, Vec<&'static str>> {
        let mut map: Map = [None; BEFORE + 32];
        let mut wanted: Vec<(isize, usize, &'static str)> = Vec::new();
        match self.fineibt {
            Some(_) => wanted.push((-16, 20, "FineIBT preamble")),
            None if self.landing_pad != LandingPad::None && self.kcfi != Kcfi::NoHash => {
                wanted.push((0, 4, "landing pad"));
            }
            None => {}
        }
        if self.kcfi == Kcfi::Hash && !(self.fineibt.is_some() && self.padding <= 11) {
            wanted.push((-(self.padding as isize) - 5, 5, "kCFI hash"));
        }
        match self.call_depth {
            Some(CallDepth::Relative) => wanted.push((-9, 9, "call-depth thunk")),
            Some(_) => wanted.push((-10, 10, "call-depth thunk")),
            None => {}
        }
        for (at, len, who) in wanted {
            if at < -(self.begin() as isize) {
                return Err(vec![who]);
            }
            paint(&mut map, at, len, who).map_err(|owner| vec![owner, who])?;
        }
        Ok(map)
    }

    /// How many bytes of the landing pad are at the entry.
    fn pad(&self) -> u16 {
        let pad = self.fineibt.is_some()
            || self.landing_pad != LandingPad::None && self.kcfi != Kcfi::NoHash;
        4 * u16::from(pad)
    }
}

fn every_case(mut check: impl FnMut(&Case)) {
    let fineibt = FineIbt::ALL.iter().map(Some).chain([None]);
    for fineibt in fineibt {
        for padding in (0..=70).chain([91, 96]) {
            for (kcfi, multiple) in [
                (Kcfi::Off, 1),
                (Kcfi::Hash, 1),
                (Kcfi::Hash, 4),
                (Kcfi::Hash, 16),
                (Kcfi::NoHash, 1),
                (Kcfi::NoHash, 16),
            ] {
                for call_depth in [None, Some(CallDepth::Relative), Some(CallDepth::Absolute)] {
                    for landing_pad in [LandingPad::None, LandingPad::Endbr64, LandingPad::Sealed] {
                        check(&Case { padding, kcfi, multiple, fineibt, call_depth, landing_pad });
                    }
                }
            }
        }
    }
}

#[test]
fn parts_stand_where_the_model_has_them_and_what_collides_is_named() {
    let (mut fine, mut refused) = (0, 0);
    every_case(|case| {
        let config = case.config();
        assert_eq!(config.before_entry() as usize, case.begin());
        match (config.parts(), case.map()) {
            (Ok(parts), Ok(map)) => {
                let mut seen: Map = [None; BEFORE + 32];
                for part in parts.as_slice() {
                    if !matches!(part.what, What::Site(_)) {
                        let len = usize::from(part.what.size());
                        paint(&mut seen, part.at as isize, len, part.what.name()).unwrap();
                    }
                }
                assert_eq!(seen, map, "{config:?}");
                assert!(parts.as_slice().is_sorted_by_key(|part| part.at));
                fine += 1;
            }
            (Err(LayoutError::Overlap { first, second }), Err(mut names)) => {
                let mut found = [first.what.name(), second.what.name()];
                found.sort_unstable();
                names.sort_unstable();
                assert_eq!(found[..], names[..], "{config:?}");
                refused += 1;
            }
            (Err(LayoutError::OutsidePadding { part, padding }), Err(names)) => {
                assert_eq!([part.what.name()][..], names[..], "{config:?}");
                assert_eq!(padding as usize, case.begin());
                refused += 1;
            }
            (found, expected) => panic!("{config:?}: {found:?}, and the model says {expected:?}"),
        }
    });
    assert!(fine > 5_000 && refused > 5_000, "{fine} fine, {refused} refused");
}

#[test]
fn a_slot_is_in_bytes_that_nobody_owns_and_is_refused_only_where_there_are_none() {
    let (mut slots, mut none) = (0, 0);
    every_case(|case| {
        let config = case.config();
        let Ok(map) = case.map() else { return };
        let begin = BEFORE - case.begin();
        let gaps: Vec<usize> =
            map[begin..BEFORE].split(|owner| owner.is_some()).map(<[Option<&str>]>::len).collect();
        let largest = gaps.iter().copied().max().unwrap_or(0);
        for size in [1, 4, 5, 8, 9, 16] {
            match config.room(size) {
                Ok(before) => {
                    let at = BEFORE - usize::from(before);
                    assert!(at >= begin, "{config:?}");
                    let bytes = &map[at..at + usize::from(size)];
                    assert!(at + bytes.len() <= BEFORE, "{config:?}");
                    assert!(bytes.iter().all(Option::is_none), "{config:?}");
                }
                Err(LayoutError::NoRoom { largest: found, size: asked, .. }) => {
                    assert_eq!((usize::from(found), asked), (largest, size), "{config:?}");
                    assert!(largest < usize::from(size), "{config:?}");
                }
                Err(error) => panic!("{config:?}: {error}"),
            }
        }
        let layout = config.layout().unwrap();
        assert_eq!(layout.slot_kind().is_some(), largest >= 5, "{config:?}");
        assert_eq!(usize::from(layout.padding()), case.begin());
        let entry = Entry::new(0x1_0000);
        assert_eq!(layout.site(entry).get() - entry.get(), u64::from(case.pad()));
        if largest >= 5 { slots += 1 } else { none += 1 }
    });
    assert!(slots > 5_000 && none > 500, "{slots} slots, {none} without");
}

/// Where the kernel list's series puts its five bytes ("per-function metadata storage", v4,
/// March 2025): the head without CFI, the tail with it, and nowhere with CFI and thunks or with
/// FineIBT, unless functions are aligned to 32 bytes.
#[test]
fn slots_are_where_the_series_for_linux_has_them() {
    let x86 = Config::X86_64;
    assert_eq!(x86.with_padding(16).slot(), Ok(16));
    let call_depth = |config: Config| config.with_call_depth(CallDepth::Relative);
    assert_eq!(call_depth(x86.with_padding(16)).slot(), Ok(16));
    let cfi = x86.with_padding(11).with_kcfi(16);
    assert_eq!(cfi.slot(), Ok(5));
    assert!(matches!(call_depth(cfi).slot(), Err(LayoutError::NoRoom { largest: 2, .. })));
    let wide = x86.with_padding(27).with_kcfi(16);
    for preamble in FineIbt::ALL {
        let narrow = cfi.with_fineibt(preamble).slot();
        assert!(matches!(narrow, Err(LayoutError::NoRoom { largest: 0, .. })));
        let slot = wide.with_fineibt(preamble).slot().unwrap();
        assert!((21..=27).contains(&slot), "{slot}");
    }
    assert!(call_depth(wide).slot().is_ok());

    // arm64: `KFUNC_MD_DATA_OFFSET` is 4 without an ops literal, 12 with it.
    assert_eq!(Config::AARCH64.with_padding(4).slot(), Ok(4));
    assert_eq!(Config::AARCH64.with_padding(16).with_ops_literal().slot(), Ok(12));
    assert_eq!(Config::AARCH64.slot_kind(), SlotKind::Word);
}

#[test]
fn arm64_slots_of_one_and_two_words() {
    for words in 0..=6_u16 {
        for literal in [false, true] {
            for hash in [false, true] {
                let config = Config::AARCH64.with_padding(4 * words).with_site(8);
                let config = if hash { config.with_kcfi(1) } else { config };
                let config = if literal { config.with_ops_literal() } else { config };
                // A literal needs two words; the hash's own is not one of them.
                let overlap = literal && words < 2;
                assert_eq!(config.parts().is_err(), overlap, "{config:?}");
                if overlap {
                    continue;
                }
                let taken = if literal { 8 } else { 0 };
                let free = 4 * words - taken;
                let one = if free >= 4 { Some(taken + 4) } else { None };
                let two = if free >= 8 { Some(taken + 8) } else { None };
                assert_eq!(config.room(4).ok(), one, "{config:?}");
                assert_eq!(config.room(8).ok(), two, "{config:?}");
                if hash {
                    assert_eq!(config.hash(), Some(-4 * i32::from(words) - 4));
                }
            }
        }
    }
}

#[test]
fn errors_say_what_takes_the_room_and_what_to_do() {
    let cfi = Config::X86_64.with_padding(11).with_kcfi(16);
    let says = |config: Config| config.slot().unwrap_err().to_string();
    assert_eq!(
        says(cfi.with_call_depth(CallDepth::Relative)),
        "no 5 bytes are free in one place before the entry: of 16, kCFI hash takes 5 at \
         entry-16, call-depth thunk takes 9 at entry-9, and 2 are left in one place: align \
         functions to 32 bytes (FUNCTION_ALIGNMENT_32B)"
    );
    assert_eq!(
        says(cfi.with_fineibt(&FineIbt::UDB).with_call_depth(CallDepth::Relative)),
        "FineIBT preamble (20 bytes at entry-16) and call-depth thunk (9 bytes at entry-9) \
         would overlap: choose one of cfi=fineibt and retbleed=stuff"
    );
    assert_eq!(
        says(Config::X86_64),
        "no 5 bytes are free in one place before the entry: of 0, 0 are left in one place: \
         compile with more padding, or attach by a thunk"
    );
    assert_eq!(
        says(Config::X86_64.with_padding(9).with_call_depth(CallDepth::Absolute)),
        "call-depth thunk (10 bytes at entry-10) begins before the padding, which has 9 bytes: \
         compile with more"
    );
    assert_eq!(
        Config::X86_64.with_padding(16).with_site(2).layout().unwrap_err().to_string(),
        "the patch site has 2 bytes, and 5 are needed: compile with \
         -fpatchable-function-entry=N,M where N is at least M+5 (x86-64) or M+2 (arm64)"
    );
}
