//! rustc gives Rust functions hashes by the same rule, with names of its own for types.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fentry::emit::kcfi::type_hash;

use crate::clang::{hash_in, skipped};

/// Functions and the names of their types: as they are, and with integers normalised.
const TYPES: [(&str, &str, &str); 5] = [
    ("f0(a: u64, b: i32) -> u64 { a + b as u64 }", "u3u64S_u3i32", "u3u64S_u3i32"),
    ("f1(a: *mut u8, b: usize) {}", "vPu2u8u5usize", "vPu2u8u3u64"),
    ("f2() {}", "vv", "vv"),
    ("f3(a: i64, b: i64, c: u64) -> i64 { a + b + c as i64 }", "u3i64S_S_u3u64", "u3i64S_S_u3u64"),
    ("f4(a: u16, b: isize) -> bool { a as isize > b }", "bu3u16u5isize", "u2u8u3u16u3i64"),
];

/// The assembly that rustc makes of [`TYPES`], if it can.
fn assembly(normalized: bool) -> Result<String, String> {
    let name = format!("rustc-kcfi-{normalized}-{}", std::process::id());
    let source = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name).with_extension("rs");
    let mut text = String::from("#![no_std]\n");
    for (function, _, _) in TYPES {
        text += &format!("#[unsafe(no_mangle)] pub extern \"C\" fn {function}\n");
    }
    fs::write(&source, text).expect("the target folder is writable");
    let mut command = Command::new("rustc");
    // Sanitizers are for nightly compilers; any compiler does for looking at its output.
    command.env("RUSTC_BOOTSTRAP", "1").args([
        "--edition=2024",
        "--crate-type=lib",
        "--target=x86_64-unknown-linux-gnu",
        "-Awarnings",
        "-Copt-level=1",
        "-Cpanic=abort",
        "-Zsanitizer=kcfi",
        "-Cunsafe-allow-abi-mismatch=sanitizer,sanitizer-cfi-normalize-integers",
        "--emit=asm",
        "-o-",
    ]);
    if normalized {
        command.arg("-Zsanitizer-cfi-normalize-integers");
    }
    let output = command.arg(&source).output().map_err(|error| error.to_string())?;
    let _ = fs::remove_file(source);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8(output.stdout).expect("assembly is text"))
}

#[test]
fn type_hashes_are_rustcs() {
    for normalized in [false, true] {
        let assembly = match assembly(normalized) {
            Ok(assembly) => assembly,
            Err(error) => return skipped("type_hashes_are_rustcs", &error),
        };
        for (number, (function, plain, normal)) in TYPES.iter().enumerate() {
            let name = if normalized {
                format!("_ZTSF{normal}E.normalized")
            } else {
                format!("_ZTSF{plain}E")
            };
            let hash = hash_in(&assembly, &format!("f{number}"));
            assert_eq!(type_hash(&name), hash, "{name} of {function}");
        }
    }
}
