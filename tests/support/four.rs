//! Objects of a few functions, each `long NAME(long a) { return a + NUMBER; }`.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use fentry::emit::Context;
use fentry::host::{AttachError, Functions, Link, Process, Program};

use super::compile::{Build, Compiler, shared_object};
use super::object::Object;

/// How they are compiled, where a test does not want something else.
pub const PADDED: &[&str] = &["-O2", "-fpatchable-function-entry=21,16"];

/// A patch site and no padding: each function needs a thunk.
pub const UNPADDED: &[&str] = &["-O2", "-fpatchable-function-entry=5"];

/// C source of the functions `prefix_0` to `prefix_(count - 1)`; the number is in the name.
pub fn numbered(prefix: &str, count: usize) -> String {
    (0..count).map(|n| format!("long {prefix}_{n}(long a) {{ return a + {n}; }}\n")).collect()
}

/// Compiles with gcc and loads.
pub fn build(name: &str, source: &str, extension: &str, flags: &[&str]) -> Object {
    let compiler = Compiler::Gcc;
    Object::load(&shared_object(&Build { name, source, extension, compiler, flags }))
}

/// The functions of `object`, found now.
pub fn find(object: &Object) -> (&'static Process, Functions) {
    let process = super::process();
    process.refresh().expect("the object was loaded a moment ago");
    (process, process.functions().module(&object.module()).expect("a file name is a pattern"))
}

/// Loads four functions named after `name`, which are all found.
pub fn load_four(name: &str) -> (Object, &'static Process, Functions) {
    let object = build(name, &numbered(name, 4), "c", PADDED);
    let (process, functions) = find(&object);
    assert_eq!(functions.len(), 4, "functions of {name}");
    (object, process, functions)
}

/// Calls `prefix_0` to `prefix_(count - 1)` once each and asserts their results.
pub fn call_numbered(object: &Object, prefix: &str, count: usize) {
    for number in 0..count {
        let name = format!("{prefix}_{number}");
        // SAFETY: a function of this type.
        let function: extern "C" fn(i64) -> i64 = unsafe { object.function(&name) };
        assert_eq!(function(40), 40 + number as i64, "{name}");
    }
}

/// A count of calls and the program that counts them.
pub fn counter() -> (Arc<AtomicU64>, Program) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let program = Program::new(move |_: &mut Context, _| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    (count, program)
}

/// Attaches a program of [`counter`].
pub fn attach(
    process: &'static Process,
    functions: &Functions,
    program: Program,
) -> Result<Link, AttachError> {
    // SAFETY: the program adds to a counter.
    unsafe { process.attach(functions, program) }
}

/// Asserts that what an error displays contains each of `words`.
pub fn assert_says(error: &impl core::fmt::Display, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "the message does not say `{word}`:\n{text}");
    }
}
