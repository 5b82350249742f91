//! The detector on bytes that are made from the values.

use fentry::addr::Entry;
use fentry::layout::named::{NAMED, Named};
use fentry::layout::{
    Arch, Around, Byte, Config, FineIbt, Kcfi, LandingPad, What, aarch64, detect,
};

use crate::support::Random;

/// Patch sites of five bytes that are one instruction, and gcc's.
const SITES: [[u8; 5]; 4] = [
    [0x0f, 0x1f, 0x44, 0x00, 0x00],
    [0x0f, 0x1f, 0x44, 0x00, 0x08],
    [0x66, 0x66, 0x66, 0x66, 0x90],
    [0x90; 5],
];

/// Bytes of which nothing else is known.
fn bytes<'a>(before: &'a [u8], at: &'a [u8]) -> Around<'a> {
    Around { entry: Entry::new(0x1000), before, at, recorded: false }
}

/// An entry that is `config`, with `site` for a patch site and chance for what is not said:
/// 64 bytes or more before it, and those from it on.
fn bytes_of(config: &Config, site: [u8; 5], random: &mut Random) -> (Vec<u8>, Vec<u8>) {
    let mut anything = |_| random.next() as u8;
    let mut before: Vec<u8> = (0..160).map(&mut anything).collect();
    let mut at: Vec<u8> = (0..32).map(&mut anything).collect();
    let begin = config.before_entry() as usize;
    // What another function ends with: `ret`, and no nop.
    let end = before.len() - begin;
    before[end - 1] = 0xc3;
    for (i, byte) in before[end..].iter_mut().enumerate() {
        *byte = match config.arch() {
            Arch::X86_64 => 0x90,
            _ => aarch64::NOP[i % 4],
        };
    }
    let mut last = 0;
    for part in config.parts().unwrap().as_slice() {
        let forms = part.what.forms();
        let size = usize::from(part.what.size());
        let form = if forms.is_empty() { 0 } else { random.below(forms.len() / size) * size };
        for (i, place) in (part.at..part.end()).enumerate() {
            let byte = match (part.what, forms.get(form + i)) {
                (What::Site(_), _) if config.arch() == Arch::X86_64 => site[i],
                (What::Site(_), _) => aarch64::NOP[i % 4],
                (_, Some(Byte::Is(byte))) => *byte,
                (_, Some(Byte::MovImm32)) => 0xb8 | random.next() as u8 & 7,
                // Of a literal: a pointer is aligned to 8.
                (What::OpsLiteral, _) if i == 0 => random.next() as u8 & !7,
                _ => random.next() as u8,
            };
            match place {
                0.. => at[place as usize] = byte,
                _ => {
                    let place = before.len() - place.unsigned_abs() as usize;
                    before[place] = byte;
                }
            }
        }
        last = last.max(part.end().max(0) as usize);
    }
    // What the function begins with: `push rbp`, or a store of two registers.
    let body: &[u8] = match config.arch() {
        Arch::X86_64 => &[0x55, 0x48, 0x89, 0xe5],
        _ => &[0xfd, 0x7b, 0xbf, 0xa9],
    };
    at[last..last + 4].copy_from_slice(body);
    (before, at)
}

/// Where such a function is, if what is aligned is the first byte that is the function's.
fn entry_of(config: &Config) -> Entry {
    Entry::new(0x40_1000 + u64::from(config.before_entry()))
}

/// What the detector must make of an entry that is `config`, with `site` for a patch site: what
/// it is, or nothing, where by its documentation the bytes do not say.
pub fn named(config: &Config, around: &Around<'_>, site: [u8; 5]) -> Option<Config> {
    let seen = config.as_seen();
    // A preamble at the entry is in the place of the landing pad there.
    let seen = match config.fineibt() {
        Some(_) => seen.with_landing_pad(LandingPad::Endbr64),
        None => seen,
    };
    if config.arch() != Arch::X86_64 {
        let alone = seen.landing_pad() == LandingPad::None && !around.recorded;
        let least = if alone { 8 } else { 4 };
        return (least..=16).contains(&seen.site()).then_some(seen);
    }
    let hidden = site == [0x90; 5] && !around.recorded;
    let seen = if hidden { seen.with_site(0) } else { seen };
    if config.fineibt().is_some() || config.call_depth().is_some() {
        return Some(seen);
    }
    // The end of the function before can look like a hash.
    let like_a_hash = around.before.iter().nth_back(15).is_some_and(|end| end & 0xf8 == 0xb8);
    let said = match (seen.kcfi(), seen.padding()) {
        (Kcfi::Off, 11) => seen.site() == 5 && !like_a_hash,
        (Kcfi::Hash, 11) => seen.before_entry() > 16 || around.entry.get().is_multiple_of(16),
        (Kcfi::Off, 0) => seen.site() == 5,
        _ => true,
    };
    said.then_some(seen)
}

#[test]
fn what_is_named_is_found_in_the_bytes_that_it_makes() {
    let mut random = Random::new(1);
    let (mut found, mut hidden) = (0, 0);
    for &Named { name, config } in NAMED {
        for config in [config, config.with_landing_pad(LandingPad::None)] {
            for site in SITES {
                for _ in 0..10 {
                    let (before, at) = bytes_of(&config, site, &mut random);
                    assert!(config.stands(&bytes(&before, &at)), "{name}: {before:02x?} {at:02x?}");
                    let recorded = random.next() & 1 == 0;
                    let (before, at) = (&before[..], &at[..]);
                    let around = Around { entry: entry_of(&config), before, at, recorded };
                    let detected = detect(config.arch(), &around);
                    assert_eq!(
                        detected,
                        self::named(&config, &around, site),
                        "{name}: {around:02x?}"
                    );
                    if detected.is_some() { found += 1 } else { hidden += 1 }
                }
            }
        }
    }
    assert!(found > 2_000, "{found} found, {hidden} hidden");
}

#[test]
fn a_changed_byte_changes_the_name_or_is_not_part_of_it() {
    let mut random = Random::new(2);
    for Named { config, .. } in NAMED {
        let entry = entry_of(config);
        let name = |before: &[u8], at: &[u8]| {
            detect(config.arch(), &Around { entry, before, at, recorded: false })
        };
        for _ in 0..5 {
            let (before, at) = bytes_of(config, SITES[0], &mut random);
            let Some(was) = name(&before, &at) else { continue };
            let begin = was.before_entry() as usize;
            for i in 0..begin + at.len() {
                let (mut before, mut at) = (before.clone(), at.clone());
                let place = before.len() - begin + i;
                let byte = if i < begin { &mut before[place] } else { &mut at[i - begin] };
                *byte ^= 1 << random.below(8);
                if let Some(now) = name(&before, &at) {
                    assert!(now.stands(&bytes(&before, &at)), "{now:?}: {before:02x?} {at:02x?}");
                }
            }
        }
    }
}

#[test]
fn the_generations_of_fineibt_are_told_apart() {
    let mut random = Random::new(3);
    for one in FineIbt::ALL {
        let config = Config::X86_64.with_padding(11).with_kcfi(16).with_fineibt(one);
        for _ in 0..100 {
            let (before, at) = bytes_of(&config, SITES[0], &mut random);
            let stand = FineIbt::ALL.iter().filter(|other| {
                let other = Config::X86_64.with_padding(11).with_kcfi(16).with_fineibt(other);
                other.stands(&bytes(&before, &at))
            });
            assert_eq!(stand.count(), 1, "{}", one.name());
        }
    }
}

/// What is named of bytes by themselves.
fn bare(arch: Arch, before: &[u8], at: &[u8]) -> Option<Config> {
    detect(arch, &bytes(before, at))
}

#[test]
fn few_bytes_are_no_entry() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        assert_eq!(bare(arch, &[], &[]), None);
        assert_eq!(bare(arch, &[0x90; 15], &[0xc3]), None);
    }
    // The start of a section: nothing is before it.
    let site = [0x0f, 0x1f, 0x44, 0, 0, 0xc3];
    assert_eq!(bare(Arch::X86_64, &[], &site), Some(Config::X86_64.with_site(5)));
}

/// Entries of Debian's Linux 7.2.13 that have no patch site, though they begin with nops.
#[test]
fn alternatives_are_no_patch_sites() {
    // `int80_emulation`, `ret_from_fork_asm`, `__get_user_nocheck_1`, `ftrace_stub`,
    // `__stack_chk_fail`, `stpcpy`: their first bytes, and whether 16 nops are before them.
    let entries: [(&[u8], bool); 6] = [
        (&[0x90, 0x90, 0x90, 0x90, 0x90, 0xe9, 0x46, 0x5a], false),
        (&[0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x48], false),
        (&[0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x0f, 0xb6], true),
        (&[0xf3, 0x0f, 0x1e, 0xfa, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90], true),
        (&[0xf3, 0x0f, 0x1e, 0xfa, 0x90, 0x90, 0x90, 0x90, 0x90, 0x48, 0x8b], true),
        (&[0xf3, 0x0f, 0x1e, 0xfa, 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00], true),
    ];
    for (at, padded) in entries {
        let before: &[u8] = if padded { &[0x90; 16] } else { &[0x0f, 0x1f, 0x40, 0x00] };
        let found = bare(Arch::X86_64, before, at).map(|config| (config.padding(), config.site()));
        assert_eq!(found, padded.then_some((16, 0)));
    }
}
