//! Counts every call of every function of SQLite while several threads use it.
//!
//! SQLite is built from source with room at each function's entry (`.cargo/config.toml`);
//! nothing else about it is prepared, and it is not told. [`trace`] below is the whole
//! use of the library; the other files are the work to be traced (`workload`, `shop`,
//! `questions`, `model`) and what is done with the numbers (`counters`, `text`, `report`).

mod counters;
mod model;
mod options;
mod questions;
mod random;
mod report;
mod shop;
mod text;
mod workload;

use core::error::Error;
use core::time::Duration;
use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use fentry::emit::Context;
use fentry::host::{Cookies, Process, Program};

use counters::{Counters, claim_shard};
use options::{HELP, Options};
use report::{Report, thousands};
use text::Text;
use workload::Workload;

/// Where the workload's chance starts: the same queries in every run.
const SEED: u64 = 2026;
/// How long the counting is switched off in between.
const OFF: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("trace: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn run() -> Result<bool, Box<dyn Error>> {
    let options = Options::parse()?;
    if options.help {
        println!("{HELP}");
        return Ok(true);
    }
    let report = trace(&options)?;
    let good = report.is_good();
    report.print();
    Ok(good)
}

fn trace(options: &Options) -> Result<Report, Box<dyn Error>> {
    // While this is the only thread: gcc leaves five one-byte nops at an entry, and making
    // one instruction of them is only safe while no thread can be between them.
    let process = Process::open()?;
    let mut functions = process.functions();
    if let Some(glob) = &options.filter {
        functions = functions.glob(glob);
    }
    if functions.is_empty() {
        return Err("no function to attach to. Is --filter right? Was SQLite compiled with \
             CFLAGS=-fpatchable-function-entry=21,16 (see .cargo/config.toml)?"
            .into());
    }
    let text = Text::copy()?;

    let workload = Workload::start(options.threads, SEED, claim_shard)?;
    let before = measure("before", &workload, options.phase);

    // On: one batch, while the threads run.
    let counters = Arc::new(Counters::new(functions.len(), options.threads));
    let counting = Arc::clone(&counters);
    let program = Program::new(move |_: &mut Context, position| counting.count(position))
        .cookies(Cookies::Position);
    let started = Instant::now();
    // SAFETY: the program changes no argument, calls none of the functions it is attached
    // to, takes no lock that they could hold, and cannot panic.
    let link = unsafe { process.attach(&functions, program) }?;
    let attach = started.elapsed();
    let attached = link.len();

    let during = measure("during", &workload, options.phase);

    // Off and on again, without detaching.
    let started = Instant::now();
    link.disable()?;
    let disable = started.elapsed();
    let calls_then = counters.total();
    sleep(OFF);
    let calls_while_off = counters.total() - calls_then;
    let started = Instant::now();
    link.enable()?;
    let enable = started.elapsed();

    // Off for good.
    let started = Instant::now();
    link.detach()?;
    let detach = started.elapsed();
    let started = Instant::now();
    process.synchronize()?;
    let synchronize = started.elapsed();

    let after = measure("after", &workload, options.phase);
    let wrong = workload.finish();

    let names = functions.iter().map(|function| function.name());
    Ok(Report {
        functions: functions.len(),
        attached,
        attach,
        detach,
        synchronize,
        disable,
        enable,
        threads: options.threads,
        calls_while_off,
        calls: names.zip(counters.by_function()).collect(),
        speeds: [before, during, after],
        wrong,
        text_bytes: text.len(),
        text_differences: text.differences()?,
    })
}

/// Watches the workload for a while: how many queries a second it runs.
fn measure(phase: &str, workload: &Workload, duration: Duration) -> f64 {
    let started = Instant::now();
    let queries_then = workload.queries();
    let live = stderr().is_terminal();
    loop {
        let left = duration.saturating_sub(started.elapsed());
        sleep(left.min(Duration::from_millis(100)));
        let queries = workload.queries() - queries_then;
        let seconds = started.elapsed().as_secs_f64();
        let done = started.elapsed() >= duration;
        if live || done {
            let line_end = if done { "\n" } else { "" };
            let start = if live { "\r" } else { "" };
            eprint!(
                "{start}{phase:7} {:>9} queries in {seconds:4.1} s{line_end}",
                thousands(queries)
            );
            // Progress that cannot be shown is no reason to stop.
            let _ = stderr().flush();
        }
        if done {
            return queries as f64 / seconds;
        }
    }
}
