//! GNU `as` and `llvm-mc` must make the same words of the same text.

use core::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use crate::cases::{Case, cases};

fn skipped(test: &str, why: &str) {
    // Not `println!`, which is captured when a test passes.
    let _ = writeln!(std::io::stderr(), "\n******** SKIPPED: {test}: {why} ********");
}

fn runs(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("aarch64-{}-{name}", std::process::id()))
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("it ran a moment ago");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn compare(cases: &[Case], made: &[u8], by: &str) {
    assert_eq!(made.len(), 4 * cases.len(), "{by}");
    for (case, made) in cases.iter().zip(made.chunks(4)) {
        assert_eq!(case.bytes, *made, "{by}: {}: {:02x?}", case.text, case.bytes);
    }
    println!("{by}: {} instructions", cases.len());
}

#[test]
fn gnu_as_makes_the_same_words() {
    let test = "gnu_as_makes_the_same_words";
    let [assembler, objcopy] = ["as", "objcopy"].map(|tool| format!("aarch64-linux-gnu-{tool}"));
    if !runs(&assembler) || !runs(&objcopy) {
        return skipped(test, "install binutils-aarch64-linux-gnu");
    }
    // For `adrp` it leaves the distance of the pages to the linker.
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| !case.text.starts_with("adrp")).collect();
    let [source, object, binary] = ["gnu.s", "gnu.o", "gnu.bin"].map(file);
    let mut text = String::new();
    for case in &cases {
        // Its branches take addresses: counted from here they are distances.
        let _ = match case.text.rsplit_once(" #") {
            Some((start, distance)) if is_relative(&case.text) => {
                writeln!(text, "{start} . + {distance}")
            }
            _ => writeln!(text, "{}", case.text),
        };
    }
    fs::write(&source, text).expect("the target folder is writable");
    run(Command::new(assembler).args(["-march=armv8.5-a", "-o"]).args([&object, &source]));
    run(Command::new(objcopy).args(["-O", "binary", "-j", ".text"]).args([&object, &binary]));
    let made = fs::read(&binary).expect("objcopy made it");
    for file in [source, object, binary] {
        let _ = fs::remove_file(file);
    }
    compare(&cases, &made, "GNU as");
}

/// Whether the last operand is counted from the instruction.
fn is_relative(text: &str) -> bool {
    let name = text.split_whitespace().next().unwrap_or_default();
    let literal = name == "ldr" && text.contains(", #") && !text.contains('[');
    matches!(name, "b" | "bl" | "cbz" | "cbnz" | "adr") || name.starts_with("b.") || literal
}

#[test]
fn llvm_makes_the_same_words() {
    let test = "llvm_makes_the_same_words";
    let versions = (16..=23).rev().map(|version| format!("llvm-mc-{version}"));
    let Some(assembler) = versions.chain(["llvm-mc".to_owned()]).find(|name| runs(name)) else {
        return skipped(test, "install llvm");
    };
    let cases = cases();
    let source = file("llvm.s");
    let text: String = cases.iter().map(|case| format!("{}\n", case.text)).collect();
    fs::write(&source, text).expect("the target folder is writable");
    let output = run(Command::new(&assembler)
        .args(["-triple=aarch64", "-mattr=+v8.5a", "--show-encoding"])
        .arg(&source));
    let _ = fs::remove_file(source);
    // mov x0, x1   // encoding: [0xe0,0x03,0x01,0xaa]
    let output = String::from_utf8(output).expect("assembly is text");
    let made: Vec<u8> = output
        .lines()
        .filter_map(|line| line.split_once("encoding: [")?.1.split_once(']'))
        .flat_map(|(bytes, _)| bytes.split(','))
        .map(|byte| u8::from_str_radix(byte.trim_start_matches("0x"), 16).expect("a byte"))
        .collect();
    compare(&cases, &made, &assembler);
}
