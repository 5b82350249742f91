//! The symbols that a kernel carries in itself, which is all that a distribution's has of them.
//!
//! scripts/kallsyms.c, Linux 6.2 to 7.2: names are strings of tokens, of which there are 256;
//! in front of them is their number, behind them are `kallsyms_markers` (where each 256th name
//! begins), the tokens, where each token begins, and the addresses.

use super::image::Image;

/// A symbol, its kind being the letter that `nm` prints.
pub struct Symbol {
    pub address: u64,
    pub kind: char,
    pub name: String,
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// The place of the tokens, the tokens, and the end of the table that says where each begins.
///
/// Single characters are tokens of themselves where they occur in names, so the ten digits stand
/// in a row; where each token begins is known, which no other ten digits have behind them.
fn tokens(data: &[u8]) -> (usize, Vec<&[u8]>, usize) {
    let digits = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
    let places = (0..data.len()).filter(|&at| data[at..].starts_with(digits));
    let mut found = places.filter_map(|digits| {
        // `0` is token 0x30: as many strings are before it.
        let mut start = digits;
        for _ in 0..usize::from(b'0') {
            start = data[..start.checked_sub(1)?].iter().rposition(|&byte| byte == 0)? + 1;
        }
        let tokens: Vec<&[u8]> = data[start..].splitn(257, |&byte| byte == 0).take(256).collect();
        let len: usize = tokens.iter().map(|token| token.len() + 1).sum();
        let index = (start + len).next_multiple_of(8);
        let mut begin = 0;
        for (i, token) in tokens.iter().enumerate() {
            let listed = data.get(index + 2 * i..index + 2 * i + 2)?;
            if usize::from(u16::from_le_bytes(listed.try_into().unwrap())) != begin {
                return None;
            }
            begin += token.len() + 1;
        }
        Some((start, tokens, index + 512))
    });
    found.next_back().expect("the kernel has kallsyms")
}

/// The bytes of the name at `at`, and where the next one is.
fn name(data: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (len, start) = match *data.get(at)? {
        short @ 0..0x80 => (usize::from(short), at + 1),
        low => (usize::from(low & 0x7f) | usize::from(*data.get(at + 1)?) << 7, at + 2),
    };
    Some((data.get(start..start + len)?, start + len))
}

/// The names, before the tokens at `tokens`.
fn names(data: &[u8], tokens: usize) -> Vec<&[u8]> {
    // Markers rise from zero to the tokens.
    let mut first = tokens - 4;
    while u32_at(data, first) != 0 {
        assert!(u32_at(data, first - 4) < u32_at(data, first), "markers rise");
        first -= 4;
    }
    let markers = (tokens - first) / 4;
    let last = u32_at(data, tokens - 4);
    // The number of names is right before them, or aligned to 8. It is the one from which the
    // names lead to the markers.
    let latest = first - last;
    (latest.next_multiple_of(4) - 256 * 512..latest)
        .step_by(4)
        .flat_map(|at| [(at, at + 4), (at, at + 8)])
        .filter(|&(at, _)| u32_at(data, at).div_ceil(256) == markers)
        .find_map(|(at, begin)| {
            let mut names = Vec::new();
            let mut next = begin;
            for i in 0..u32_at(data, at) {
                if i % 256 == 0 && next - begin != u32_at(data, first + i / 64) {
                    return None;
                }
                let (bytes, end) = name(data, next)?;
                names.push(bytes);
                next = end;
            }
            (next.next_multiple_of(8) == first.next_multiple_of(8)).then_some(names)
        })
        .expect("names lead to the markers")
}

/// The `count` addresses in the table at `table`, which is at `address` when the kernel runs.
fn addresses(data: &[u8], table: usize, address: u64, count: usize, text: u64) -> Vec<u64> {
    let entries = || (0..count).map(|i| u32_at(data, table + 4 * i) as u32);
    // Since 7.0 they count from where they stand; before, from a base that stands behind them, and
    // what counts from zero is positive.
    let from_themselves = (0..).zip(entries()).map(|(i, entry)| {
        address.wrapping_add(4 * i).wrapping_add_signed(i64::from(entry.cast_signed()))
    });
    let found: Vec<u64> = from_themselves.collect();
    if found.contains(&text) && found.is_sorted() {
        return found;
    }
    let base = (table + 4 * count).next_multiple_of(8);
    let base = u64::from_le_bytes(data[base..base + 8].try_into().unwrap());
    let found: Vec<u64> = entries()
        .map(|entry| match i64::from(entry.cast_signed()) {
            absolute @ 0.. => absolute as u64,
            relative => base.wrapping_add_signed(-1 - relative),
        })
        .collect();
    if found.contains(&text) {
        return found;
    }
    entries().map(|entry| base.wrapping_add(entry.into())).collect()
}

/// All symbols of `image`.
pub fn symbols(image: &Image) -> Vec<Symbol> {
    let section = image.section(".rodata");
    let data = &section.bytes;
    let text = image.section(".text").address;
    let (start, tokens, end) = tokens(data);
    let names = names(data, start);
    let addresses = addresses(data, end, section.address + end as u64, names.len(), text);
    assert!(addresses.contains(&text), "one symbol is where the code begins");
    names
        .into_iter()
        .zip(addresses)
        .map(|(name, address)| {
            let bytes: Vec<u8> =
                name.iter().flat_map(|&token| tokens[usize::from(token)]).copied().collect();
            let name = String::from_utf8(bytes).expect("names are text");
            let kind = name.chars().next().expect("the first is the kind");
            Symbol { address, kind, name: name[1..].to_owned() }
        })
        .collect()
}
