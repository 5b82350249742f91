//! The core without the standard library, without libc and without an allocator: the package
//! in `tests/bare` is built, linked, and run.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the host's linker is told, so that nothing but the core is there.
const BARE: [&str; 7] = [
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Crelocation-model=static",
    // Symbols are looked at below.
    "-Cstrip=none",
    // One unit, so that what is not called is not linked.
    "-Ccodegen-units=1",
    "-Cdebuginfo=0",
];

/// A Rust target without an operating system.
const NO_SYSTEM: &str = "x86_64-unknown-none";

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bare")
}

fn builds() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare")
}

/// Builds the package with `arguments` of `cargo rustc`.
fn build(arguments: &[&str]) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .arg("rustc")
        .args(arguments)
        .current_dir(package())
        .env("CARGO_TARGET_DIR", builds())
        // What these tests were built with is not meant for the package.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .output()
        .unwrap_or_else(|error| panic!("cargo cannot be started: {error}"));
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo rustc {arguments:?}:\n{errors}");
}

fn build_for_host(profile: &[&str]) {
    build(&[profile, &["--"], &BARE].concat());
}

/// Runs what was built into `folder`. Its exit codes are those of `Failure` in its source,
/// and 101 for a panic.
fn run(folder: &str) {
    let program = builds().join(folder).join("fentry-bare");
    let status = Command::new(&program)
        .status()
        .unwrap_or_else(|error| panic!("{program:?} cannot be started: {error}"));
    assert!(status.success(), "{program:?}: {status}");
}

/// Says, whatever the test harness captures, that something was not tested.
fn skipped(what: &str) {
    let _ = writeln!(io::stderr(), "\n*** SKIPPED: {what} ***\n");
}

#[test]
fn the_core_links_and_runs_without_std_libc_and_allocator() {
    build_for_host(&[]);
    run("debug");
}

#[test]
fn the_optimised_core_links_no_panic() {
    build_for_host(&["--release"]);
    run("release");
    let program = builds().join("release/fentry-bare");
    let listed = match Command::new("nm").arg("-C").arg(program).output() {
        Ok(listed) => listed,
        Err(error) => return skipped(&format!("which panics are linked: no `nm` ({error})")),
    };
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8_lossy(&listed.stdout);
    // The check looks at the right file: this is a symbol of the program's own.
    assert!(listed.contains(" _start"), "{listed}");
    let is_panic =
        |name: &&str| ["panick", "panic_", "_fail"].iter().any(|part| name.contains(part));
    let panics: BTreeSet<_> =
        listed.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).filter(is_panic).collect();
    assert!(panics.is_empty(), "the core can panic: {panics:#?}");
}

#[test]
fn the_core_links_where_there_is_no_operating_system() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libraries = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", NO_SYSTEM])
        .output()
        .unwrap_or_else(|error| panic!("rustc cannot be started: {error}"));
    assert!(libraries.status.success(), "{libraries:?}");
    let libraries = String::from_utf8_lossy(&libraries.stdout);
    if !Path::new(libraries.trim()).is_dir() {
        return skipped(&format!(
            "linking for {NO_SYSTEM}: Rust's `core` for it is not installed; \
             rustup target add {NO_SYSTEM}"
        ));
    }
    build(&["--target", NO_SYSTEM]);
    build(&["--target", NO_SYSTEM, "--release"]);
}
