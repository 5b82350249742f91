//! A decoder in Rust, so that this is checked where no assembler is installed.

use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::InstDecoder;

use crate::cases::cases;

/// A text with its numbers, `#8`, `#0x8` or `$+0x8`, in one form.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(['#', '$']) {
        out += &rest[..start];
        let number = rest[start..].trim_start_matches(['#', '$']);
        let end = number.find([',', ']', ' ', '!']).unwrap_or(number.len());
        let (digits, after) = number.split_at(end);
        let unsigned = digits.trim_start_matches(['-', '+']);
        let value = match unsigned.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16),
            None => unsigned.parse(),
        };
        let value = value.unwrap_or_else(|_| panic!("{digits} of {text} is no number"));
        out += &format!("#{}", if digits.starts_with('-') { -value } else { value });
        rest = after;
    }
    out + rest
}

/// The name that the decoder has for what `text` calls by another.
fn as_decoded(text: &str) -> String {
    let (name, operands) = text.split_once(' ').unwrap_or((text, ""));
    let parts: Vec<&str> = operands.split(", ").collect();
    let number = |text: &str| text.trim_start_matches('#').parse::<u64>();
    match (name, &parts[..]) {
        // Landing pads are hints, and it does not know these.
        ("bti", ["c"]) => "hint #34".to_owned(),
        ("bti", ["j"]) => "hint #36".to_owned(),
        ("bti", ["jc"]) => "hint #38".to_owned(),
        ("movz", [dst, value]) => format!("mov {dst}, {value}"),
        ("movz", [dst, value, shift]) => {
            let shift = number(shift.trim_start_matches("lsl ")).expect("a shift");
            format!("mov {dst}, #{}", number(value).expect("a number") << shift)
        }
        ("add", [dst, src, "#0"]) if [*dst, *src].contains(&"sp") => format!("mov {dst}, {src}"),
        ("add" | "sub" | "cmp", [first @ .., last]) => match number(last) {
            Ok(value) if value > 4095 => {
                format!("{name} {}, #{}, lsl #12", first.join(", "), value / 4096)
            }
            _ => text.to_owned(),
        },
        _ => text.to_owned(),
    }
}

#[test]
fn a_decoder_sees_the_same_instructions() {
    for case in cases() {
        let decoded = InstDecoder::default()
            .decode(&mut U8Reader::new(&case.bytes))
            .unwrap_or_else(|error| panic!("{}: {error:?}", case.text));
        let expected = plain(&as_decoded(&case.text));
        assert_eq!(plain(&decoded.to_string()), expected, "{}: {:02x?}", case.text, case.bytes);
    }
}
