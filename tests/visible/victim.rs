//! The process that the tools look at: this test binary, started again.

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};
use std::path::Path;
use std::process::Command;

use fentry::emit::Context;
use fentry::host::{Program, Vectors, Visibility};

use crate::support::compile::{Build, Compiler, shared_object};
use crate::support::object::Object;
use crate::support::{process, programs};

/// Says what the victim is to show.
const SHOW: &str = "FENTRY_TEST_SHOW";
/// Says how often it calls each function.
const CALLS: &str = "FENTRY_TEST_CALLS";

/// One function with padding, one that needs a thunk, what they call, what calls them, and where a
/// debugger can stop when all is over.
const SOURCE: &str = "
__attribute__((noinline)) void inside(void) { __asm__(\"\"); }
__attribute__((noinline, patchable_function_entry(21, 16))) long padded(long a)
{ inside(); return a + 1; }
__attribute__((noinline, patchable_function_entry(5, 0))) long unpadded(long a)
{ inside(); return a + 2; }
__attribute__((noinline)) long call_them(long times)
{ long sum = 0; for (long i = 0; i < times; i++) sum += padded(i) - unpadded(i); return sum; }
__attribute__((noinline)) void all_is_freed(void) { __asm__(\"\"); }
";

/// Says that functions have programs at the exit as well.
const EXITS: &str = "FENTRY_TEST_EXITS";

/// The command that starts the victim, behind `tool`'s own words.
pub fn command(tool: &str, words: &[&str], show: &str, calls: u64, exits: bool) -> Command {
    let mut command = Command::new(tool);
    command.args(words).arg(std::env::current_exe().expect("a test binary has a path"));
    command.args(["victim::victim", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(SHOW, show).env(CALLS, calls.to_string());
    if exits {
        command.env(EXITS, "");
    }
    command
}

static RUNS: AtomicU64 = AtomicU64::new(0);

extern "C" fn fentry_visible_program(_: &mut Context, _: u64) {
    RUNS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn fentry_visible_exit() {
    RUNS.fetch_add(1, Ordering::Relaxed);
}

#[test]
#[ignore = "is started by the others, under a tool"]
fn victim() {
    let show = std::env::var(SHOW).expect("started by another test");
    let calls: i64 = std::env::var(CALLS).expect("as above").parse().expect("a number");
    let visibility = match show.split_once('=') {
        None if show == "perf-map" => Visibility::none().perf_map(),
        None if show == "debugger" => Visibility::none().debugger(),
        Some(("jitdump", folder)) => Visibility::none().jitdump(Path::new(folder)),
        _ => panic!("{show} is nothing to show"),
    };
    let object = Object::load(&shared_object(&Build {
        name: "visible",
        source: SOURCE,
        extension: "c",
        compiler: Compiler::Gcc,
        flags: &["-O2", "-g", "-falign-functions=16"],
    }));
    let process = process();
    process.refresh().expect("the new module can be read");
    process.show(&visibility).expect("the code can be shown");
    let functions = process.functions().module(&object.module()).expect("a pattern");
    assert_eq!(functions.len(), 2);
    let mut all = vec![Program::from_fn(fentry_visible_program)];
    if std::env::var_os(EXITS).is_some() {
        all.push(Program::exit(|_, _| fentry_visible_exit()));
    }
    let runs = 2 * calls.unsigned_abs() * all.len() as u64;
    // SAFETY: adding to a counter is sound wherever these are called.
    let link = unsafe { process.attach(&functions, all) };
    let link = link.expect("the functions can be attached to");
    // SAFETY: an empty function changes no vector register.
    let empty = unsafe { Program::from_fn(programs::empty).vectors(Vectors::Untouched) };
    // SAFETY: as above.
    let second = unsafe { process.attach(&functions, empty) };
    // SAFETY: the type that the source gives it.
    let call_them: extern "C" fn(i64) -> i64 = unsafe { object.function("call_them") };
    assert_eq!(black_box(call_them)(calls), -calls);
    assert_eq!(RUNS.load(Ordering::Relaxed), runs);
    second.expect("as before").detach().expect("an attached link detaches");
    link.detach().expect("an attached link detaches");
    process.synchronize().expect("nobody is inside any more");
    // SAFETY: as above.
    let all_is_freed: extern "C" fn() = unsafe { object.function("all_is_freed") };
    all_is_freed();
}
