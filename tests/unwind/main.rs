//! Stacks with emitted code on them, walked by the C runtime's unwinder: backtraces, C++
//! exceptions, Rust panics.
#![cfg(all(feature = "std", target_os = "linux"))]

#[path = "../support/mod.rs"]
mod support;

mod entry;
mod exits;
mod hardened;
mod hooked;
#[allow(dead_code, reason = "each test binary uses its own part of this")]
#[path = "../support/hooks.rs"]
mod hooks;
#[allow(dead_code, reason = "each test binary uses its own part of this")]
#[path = "../support/mitigated.rs"]
mod mitigated;
mod walk;

/// Runs the test `name` again, in a process where no other test runs; says whether this is it.
///
/// std looks once which libraries are loaded, when it first names a frame, and never names one
/// of a library that is loaded later.
fn is_alone(name: &str) -> bool {
    const ALONE: &str = "FENTRY_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("it has a path"))
        .args([name, "--exact", "--nocapture"])
        .env(ALONE, "")
        .output()
        .expect("this test can be run");
    let (text, error) = (String::from_utf8_lossy(&output.stdout), output.stderr);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}\n{}", String::from_utf8_lossy(&error));
    false
}
