//! Ten thousand generated functions, hooked in one batch and counted exactly.

mod support;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fentry::emit::Context;
use fentry::host::{Cookies, Functions, Link, Process, Program};
use support::compile::{Build, Compiler, compilers, shared_object};
use support::object::Object;

const FUNCTIONS: usize = 10_000;

/// How often the driver calls function `index`.
fn calls(index: usize) -> u64 {
    index as u64 % 7 + 1
}

/// Function `index` adds its two arguments and a number of its own; `drive` calls each as
/// often as `calls` says and adds up the results; `table` has the entries in order.
fn source() -> String {
    let mut text = String::from("#define BARE __attribute__((patchable_function_entry(0, 0)))\n");
    for index in 0..FUNCTIONS {
        let _ = writeln!(text, "int f{index}(int a, int b) {{ return a + b + {}; }}", 1000 + index);
    }
    let _ = writeln!(text, "int (*table[])(int, int) = {{");
    for index in 0..FUNCTIONS {
        let _ = write!(text, "f{index},");
    }
    let _ = writeln!(
        text,
        "}};\nBARE long drive(void) {{\n\
           long sum = 0;\n\
           for (int i = 0; i < {FUNCTIONS}; i++)\n\
             for (int k = 0; k < i % 7 + 1; k++) sum += table[i](i, k);\n\
           return sum;\n}}"
    );
    text
}

/// What `drive` returns when every argument arrives: the same sums, done here.
fn expected_sum() -> i64 {
    (0..FUNCTIONS)
        .flat_map(|index| (0..calls(index)).map(move |k| (2 * index + 1000) as i64 + k as i64))
        .sum()
}

/// One loaded set of ten thousand functions.
struct Set {
    process: &'static Process,
    object: Object,
    functions: Functions,
    /// The cookie of each function of the selection: its index in `table`.
    cookies: Vec<u64>,
}

impl Set {
    fn load(compiler: Compiler, padding: &str) -> Self {
        let name = format!("ten-{}-{}", compiler.command(), padding.replace(',', "-"));
        let path = shared_object(&Build {
            name: &name,
            source: &source(),
            extension: "c",
            compiler,
            flags: &["-O1", &format!("-fpatchable-function-entry={padding}")],
        });
        let object = Object::load(&path);
        let process = support::process();
        process.refresh().expect("the object was loaded a moment ago");
        let functions = process.functions().module(&object.module());
        // SAFETY: `table` is an array of as many function addresses.
        let table = unsafe {
            std::slice::from_raw_parts(object.address("table") as *const u64, FUNCTIONS)
        };
        let indices: HashMap<u64, u64> = table.iter().copied().zip(0..).collect();
        let cookies = functions.iter().map(|function| indices[&function.entry().get()]).collect();
        Self { process, object, functions, cookies }
    }

    fn attach(&self, program: Program) -> Link {
        // SAFETY: the programs of this file count, and touch nothing else.
        unsafe { self.process.attach(&self.functions, program) }.expect("all have a patch site")
    }

    /// Calls every function; asserts that all results are right.
    fn drive(&self) {
        // SAFETY: a function of this type.
        let drive: extern "C" fn() -> i64 = unsafe { self.object.function("drive") };
        assert_eq!(drive(), expected_sum(), "results through hooked entries");
    }
}

/// Counts for each cookie.
#[derive(Clone)]
struct Counts(Arc<Vec<AtomicU64>>);

impl Counts {
    fn new() -> Self {
        Self(Arc::new((0..FUNCTIONS).map(|_| AtomicU64::new(0)).collect()))
    }

    fn program(&self, cookies: Cookies) -> Program {
        let counts = self.clone();
        Program::new(move |_: &mut Context, cookie: u64| {
            counts.0[cookie as usize].fetch_add(1, Ordering::Relaxed);
        })
        .cookies(cookies)
    }

    /// Asserts that function `index` was counted in each of `drives` runs of the driver,
    /// where its cookie is `cookie_of[index]`.
    fn assert(&self, drives: u64, cookie_of: impl Fn(usize) -> usize, when: &str) {
        for index in 0..FUNCTIONS {
            let counted = self.0[cookie_of(index)].load(Ordering::Relaxed);
            assert_eq!(counted, drives * calls(index), "calls of f{index} counted, {when}");
        }
    }
}
