//! The drawings in the documentation are what the values say.

use core::fmt::Write;
use std::path::Path;

use fentry::layout::named::{NAMED, Named};
use fentry::layout::{Arch, Byte, Config, LayoutError, What, aarch64};

/// Bytes in a line.
const LINE: i32 = 16;

/// The bytes of `config` from the first that is the function's to the last that is known, as
/// pairs of letters.
fn bytes(config: &Config) -> Vec<(i32, String)> {
    let parts = config.parts().expect("named entries have no overlap");
    let begin = -(config.before_entry() as i32);
    let end = parts.as_slice().iter().map(|part| part.end()).max().unwrap_or(0).max(0);
    let nop = |at: i32| match config.arch() {
        Arch::X86_64 => "90".to_owned(),
        _ => format!("{:02x}", aarch64::NOP[at.rem_euclid(4) as usize]),
    };
    let text = |at: i32| {
        let Some(part) = parts.as_slice().iter().find(|part| (part.at..part.end()).contains(&at))
        else {
            return nop(at);
        };
        match (part.what, part.what.forms().get((at - part.at) as usize)) {
            (What::Site(_), _) => "ss".to_owned(),
            (_, Some(Byte::Is(byte))) => format!("{byte:02x}"),
            (_, Some(Byte::MovImm32)) => "b8".to_owned(),
            (_, Some(Byte::Hash)) => "hh".to_owned(),
            (_, Some(Byte::Any)) => "..".to_owned(),
            (what, None) => panic!("{what:?} is shorter than it says"),
        }
    };
    (begin..end).map(|at| (at, text(at))).collect()
}

fn place(at: i32) -> String {
    if at == 0 { "entry".to_owned() } else { format!("entry{at:+}") }
}

fn draw(Named { name, config }: &Named) -> String {
    let mut text = format!("\n**{name}**\n\n```text\n");
    let slot = match config.slot() {
        Ok(before) => {
            let start = -i32::from(before);
            Some((start, start + i32::from(config.slot_kind().size())))
        }
        Err(LayoutError::NoRoom { .. }) => None,
        Err(error) => panic!("{name}: {error}"),
    };
    let bytes = bytes(config);
    let parts = config.parts().unwrap();
    for line in bytes.chunk_by(|(a, _), (b, _)| a.div_euclid(LINE) == b.div_euclid(LINE)) {
        let first = line[0].0;
        let mut row = String::new();
        for (at, byte) in line {
            let mark = match slot {
                Some((start, _)) if start == *at => '[',
                Some((_, end)) if end == *at && *at != first => ']',
                _ => ' ',
            };
            row.push(mark);
            row.push_str(byte);
        }
        let end = line[line.len() - 1].0 + 1;
        row.push(if slot.is_some_and(|(_, slot_end)| slot_end == end) { ']' } else { ' ' });
        let here = parts.as_slice().iter().filter(|part| (first..end).contains(&part.at));
        let names: Vec<String> =
            here.map(|part| format!("{} {}", place(part.at), part.what.name())).collect();
        writeln!(text, "{:<9}{row:<51}{}", place(first), names.join(", ")).unwrap();
    }
    if bytes.is_empty() {
        text.push_str("entry     nothing\n");
    }
    text.push_str("```\n");
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    let mut text = text.join("\n") + "\n";
    match config.slot() {
        Ok(before) => writeln!(text, "Slot: {} bytes before the entry.", before).unwrap(),
        Err(error) => writeln!(text, "No slot: {error}.").unwrap(),
    }
    if let Err(error) = config.layout() {
        writeln!(text, "No layout: {error}.").unwrap();
    }
    text
}

#[test]
fn the_documentation_draws_what_the_values_say() {
    let drawn: String = NAMED.iter().map(draw).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/layout/named.md");
    if std::env::var_os("UPDATE_LAYOUTS").is_some() {
        std::fs::write(&path, &drawn).expect("the sources can be written");
    }
    let found = std::fs::read_to_string(&path).expect("the file is part of the sources");
    for (line, (found, drawn)) in found.lines().zip(drawn.lines()).enumerate() {
        assert_eq!(found, drawn, "named.md, line {}: run with UPDATE_LAYOUTS=1", line + 1);
    }
    assert_eq!(found, drawn, "named.md ends differently: run with UPDATE_LAYOUTS=1");
}

#[test]
fn no_two_entries_have_one_name_or_are_the_same() {
    for (i, one) in NAMED.iter().enumerate() {
        for other in &NAMED[..i] {
            assert_ne!(one.name, other.name);
            assert_ne!(one.config, other.config, "{} and {}", one.name, other.name);
        }
    }
}
