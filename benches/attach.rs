//! What attaching to 100,000 functions costs, in time and memory, against the bare stores
//! that the same three passes need at least: `cargo bench --bench attach`.
//!
//! Cold is the first time that anything is attached to these functions: it pays for private
//! copies of the text pages and for tables. Warm is every later time. The library and the
//! bare stores each have a copy of the functions and are measured in turn.

mod support;

use std::time::Instant;

use fentry::emit::Context;
use fentry::host::{Process, Program, Vectors};
use support::assembly::{Copy, Padding, copies, remove_files};
use support::floor::Stores;
use support::memory::memory;
use support::{median, ratio};

const FUNCTIONS: usize = 100_000;
const ROUNDS: usize = 41;

/// The least disturbed round: on a busy machine long runs are interrupted more often than short
/// ones, which the median of a ratio does not forgive.
fn best(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed().as_nanos() as f64, done)
}

/// How many times `counting_program` of `copy` ran since this was asked last.
fn take_counted(copy: &Copy) -> u64 {
    // SAFETY: the symbol is a function of this type in every copy.
    (unsafe { copy.object().function::<extern "C" fn() -> u64>("take_counted") })()
}

/// Calls every function of `copy` once and asserts that its program ran `expected` times.
fn assert_counted(copy: &Copy, expected: usize, what: &str) {
    // SAFETY: a driver of the copy.
    unsafe { copy.driver(FUNCTIONS)(1) };
    assert_eq!(take_counted(copy), expected as u64, "entries counted by {what}");
}

fn main() {
    let loaded = copies(FUNCTIONS, Padding::Sixteen, &[FUNCTIONS], &["stores", "library"]);
    let [bare, hooked] = &loaded[..] else { unreachable!("two names, two copies") };
    let stores = Stores::new(bare, "floor_counting_body", FUNCTIONS);

    let empty = memory(hooked.object().path());
    let (open_ns, process) = timed(Process::open);
    let process = process.expect("this process can be hooked");
    let functions =
        process.functions().module(&hooked.object().module()).expect("a file name is a pattern");
    assert_eq!(functions.len(), FUNCTIONS, "functions found");
    // SAFETY: the program adds to a counter of its own object and touches no vector register.
    let program = || unsafe {
        let count =
            hooked.object().function::<extern "C" fn(&mut Context, u64)>("counting_program");
        Program::from_fn(count).vectors(Vectors::Untouched)
    };
    // SAFETY: as said above.
    let attach = || unsafe { process.attach(&functions, program()) }.expect("all are alike");

    let (stores_cold, ()) = timed(|| stores.attach());
    assert_counted(bare, FUNCTIONS, "the bare stores");
    let before = memory(hooked.object().path());
    let (cold, link) = timed(attach);
    let after = memory(hooked.object().path());
    assert_counted(hooked, FUNCTIONS, "the library");
    stores.detach();
    link.detach().expect("an attached link detaches");
    assert_counted(bare, 0, "nobody: the bare stores were undone");
    assert_counted(hooked, 0, "nobody: the link was detached");

    let (mut warm, mut warm_detach) = (Vec::new(), Vec::new());
    let (mut stores_warm, mut stores_detach) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // Each pair twice, the second one timed: neither pays for what the other evicted.
        for timing in [false, true] {
            let (attached, ()) = timed(|| stores.attach());
            let (detached, ()) = timed(|| stores.detach());
            if timing {
                stores_warm.push(attached);
                stores_detach.push(detached);
            }
        }
        for timing in [false, true] {
            let (attached, link) = timed(attach);
            let (detached, result) = timed(|| link.detach());
            result.expect("an attached link detaches");
            if timing {
                warm.push(attached);
                warm_detach.push(detached);
            }
        }
    }
    process.synchronize().expect("no other thread is inside");
    let repeated = memory(hooked.object().path());

    let each = FUNCTIONS as f64;
    let bytes = |now: u64, then: u64| (now as f64 - then as f64) / each;
    println!("{FUNCTIONS} functions              cold ms   warm ms   warm detach ms");
    let row = |name: &str, cold: f64, warm: &[f64], detach: &[f64]| {
        let (warm, detach) = (median(warm) / 1e6, median(detach) / 1e6);
        println!("{name:<28} {:>9.2} {warm:>9.2} {detach:>16.2}", cold / 1e6);
    };
    row("three passes of bare stores", stores_cold, &stores_warm, &stores_detach);
    row("attach", cold, &warm, &warm_detach);
    println!(
        "opening the process, {} functions found: {:.2} ms",
        process.functions().len(),
        open_ns / 1e6
    );
    println!(
        "attach: functions={FUNCTIONS} cold_ns_per_function={:.1} warm_ns_per_function={:.1} \
         ratio_to_stores={:.2} bytes_per_function={:.1} text_cow_bytes_per_function={:.1} \
         stores_cold_ns_per_function={:.1} stores_warm_ns_per_function={:.1} \
         cold_ratio_to_stores={:.2} warm_detach_ns_per_function={:.1} detach_ratio_to_stores={:.2} \
         warm_best_ns_per_function={:.1} best_ratio_to_stores={:.2} \
         bytes_per_function_after_{ROUNDS}_rounds={:.1} discovery_bytes_per_function={:.1}",
        cold / each,
        median(&warm) / each,
        ratio(&warm, &stores_warm),
        bytes(after.elsewhere, before.elsewhere),
        bytes(after.object, before.object),
        stores_cold / each,
        median(&stores_warm) / each,
        cold / stores_cold,
        median(&warm_detach) / each,
        ratio(&warm_detach, &stores_detach),
        best(&warm) / each,
        best(&warm) / best(&stores_warm),
        bytes(repeated.elsewhere, before.elsewhere),
        bytes(before.elsewhere, empty.elsewhere) / 2.0,
    );
    remove_files(&loaded.iter().collect::<Vec<_>>());
}
