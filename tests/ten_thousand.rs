//! Ten thousand generated functions, hooked in one batch and counted exactly.

mod support;

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
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
            // Without alignment, which -O2 has and -O1 has not, a site's first two bytes may not
            // be one store.
            flags: &[
                "-O1",
                "-falign-functions=16",
                &format!("-fpatchable-function-entry={padding}"),
            ],
        });
        let object = Object::load(&path);
        let process = support::process();
        process.refresh().expect("the object was loaded a moment ago");
        let functions =
            process.functions().module(&object.module()).expect("a file name is a pattern");
        // SAFETY: `table` is an array of as many function addresses.
        let table = unsafe {
            core::slice::from_raw_parts(object.address("table") as *const u64, FUNCTIONS)
        };
        let indices: HashMap<u64, u64> = table.iter().copied().zip(0..).collect();
        let cookies = functions.iter().map(|function| indices[&function.entry().get()]).collect();
        Self { process, object, functions, cookies }
    }

    /// The object's text, once no thread can need what was attached any more.
    fn quiet_text(&self) -> Vec<(usize, Vec<u8>)> {
        self.process.synchronize().expect("no thread stays inside");
        self.object.text()
    }

    fn attach(&self, program: Program) -> Link {
        // SAFETY: the programs of this file count, and touch nothing else.
        unsafe { self.process.attach(&self.functions, program) }
            .unwrap_or_else(|error| panic!("{}: {error}", self.object.module()))
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

/// A cookie that is none of the indices, to tell two programs apart.
const fn shifted(index: usize) -> usize {
    FUNCTIONS - 1 - index
}

/// Every way to remove three programs one after the other.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn check(compiler: Compiler, padding: &str) {
    let set = Set::load(compiler, padding);
    let what = format!("{} {padding}", compiler.command());
    assert_eq!(set.functions.len(), FUNCTIONS, "{what}: functions found");
    let before = set.quiet_text();
    set.drive();

    // One program, counted exactly; after detaching nothing is counted any more.
    let counts = Counts::new();
    let link = set.attach(counts.program(Cookies::Each(set.cookies.clone())));
    assert_eq!(link.len(), FUNCTIONS, "{what}: functions attached to");
    set.drive();
    counts.assert(1, |index| index, &format!("{what}: attached"));
    assert!(set.quiet_text() != before, "{what}: attached, and no byte of code has changed");
    link.disable().expect("an attached link can be disabled");
    set.drive();
    counts.assert(1, |index| index, &format!("{what}: disabled"));
    link.enable().expect("a disabled link can be enabled");
    set.drive();
    counts.assert(2, |index| index, &format!("{what}: enabled again"));
    link.detach().expect("an attached link detaches");
    set.drive();
    counts.assert(2, |index| index, &format!("{what}: detached"));
    assert!(set.quiet_text() == before, "{what}: code after detaching differs from before");

    // Cookies by position are the positions of the selection's own iterator.
    let counts = Counts::new();
    let link = set.attach(counts.program(Cookies::Position));
    set.drive();
    let mut position_of = vec![usize::MAX; FUNCTIONS];
    for (position, index) in set.cookies.iter().enumerate() {
        position_of[*index as usize] = position;
    }
    counts.assert(1, |index| position_of[index], &format!("{what}: cookies by position"));
    drop(link);
    set.drive();
    counts.assert(1, |index| position_of[index], &format!("{what}: link dropped"));

    // Three programs on the same functions, removed in every order.
    let reversed = || set.cookies.iter().map(|&index| shifted(index as usize) as u64).collect();
    for order in ORDERS {
        let counts = [Counts::new(), Counts::new(), Counts::new()];
        let mut links = [
            Some(set.attach(counts[0].program(Cookies::Each(set.cookies.clone())))),
            Some(set.attach(counts[1].program(Cookies::Each(reversed())))),
            Some(set.attach(counts[2].program(Cookies::Each(set.cookies.clone())))),
        ];
        let mut drives = [0; 3];
        let mut drive_and_count = |links: &[Option<Link>; 3], when: &str| {
            set.drive();
            for program in 0..3 {
                drives[program] += u64::from(links[program].is_some());
                let cookie_of = |index| if program == 1 { shifted(index) } else { index };
                let when = format!("{what}: program {program}, removal {order:?}, {when}");
                counts[program].assert(drives[program], cookie_of, &when);
            }
        };
        drive_and_count(&links, "all attached");
        for removed in order {
            links[removed].take().expect("removed once").detach().expect("it is attached");
            drive_and_count(&links, &format!("{removed} removed"));
        }
        assert!(set.quiet_text() == before, "{what}: code after removal in order {order:?}");
    }

    // Switching one of two off and on again leaves the other alone.
    let (first, second) = (Counts::new(), Counts::new());
    let one = set.attach(first.program(Cookies::Each(set.cookies.clone())));
    let two = set.attach(second.program(Cookies::Each(set.cookies.clone())));
    one.disable().expect("an attached link can be disabled");
    set.drive();
    first.assert(0, |index| index, &format!("{what}: one of two disabled"));
    second.assert(1, |index| index, &format!("{what}: the other still enabled"));
    one.enable().expect("a disabled link can be enabled");
    set.drive();
    first.assert(1, |index| index, &format!("{what}: enabled again beside another"));
    second.assert(2, |index| index, &format!("{what}: never disabled"));
    drop((one, two));
    assert!(set.quiet_text() == before, "{what}: code after everything was dropped");
    support::settle(set.process);
    set.drive();
}

/// One after the other: each needs all of two cores to compile.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn with_padding_they_are_counted_exactly() {
    let _alone = ALONE.lock();
    for compiler in compilers() {
        check(compiler, "21,16");
    }
}

#[test]
fn without_padding_they_are_counted_exactly() {
    let _alone = ALONE.lock();
    for compiler in compilers() {
        check(compiler, "5,0");
    }
}
