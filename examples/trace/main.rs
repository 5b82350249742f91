//! Counts every call of every function of SQLite while several threads use it, and with `--exit`
//! times it.
//!
//! SQLite is built from source with room at each function's entry (`.cargo/config.toml`);
//! nothing else about it is prepared, and it is not told. [`trace`] below is the whole
//! use of the library; the other files are the work to be traced (`workload`, `shop`,
//! `questions`, `model`), what runs at entries (`counters`) and exits (`recorder`, `clock`,
//! `paths`, `latency`), and what is done with the numbers (`phase`, `text`, `report`, `exits`,
//! `picture`).

mod clock;
mod counters;
mod exits;
mod latency;
mod model;
mod options;
mod paths;
mod phase;
mod picture;
mod questions;
mod random;
mod recorder;
mod report;
mod shop;
mod text;
mod workload;

use core::error::Error;
use core::time::Duration;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use fentry::emit::Context;
use fentry::host::{Cookies, Process, Program, Session};

use clock::Moment;
use counters::{Counters, claim_shard};
use exits::Exits;
use options::{HELP, Options};
use phase::Phase;
use picture::Picture;
use recorder::Recorder;
use report::Report;
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

/// Counts entries.
fn count(counters: &Arc<Counters>) -> Program {
    let counters = Arc::clone(counters);
    Program::new(move |_: &mut Context, position| counters.count(position))
}

/// Counts entries, and records when calls began and ended.
fn count_and_record(counters: &Arc<Counters>, recorder: &Arc<Recorder>) -> Program {
    let (counters, at_entry, at_exit) =
        (Arc::clone(counters), Arc::clone(recorder), Arc::clone(recorder));
    Program::session(
        move |_, position, began| {
            counters.count(position);
            match at_entry.enter(position) {
                Some(now) => {
                    *began = now;
                    Session::Exit
                }
                None => Session::NoExit,
            }
        },
        move |_, position, began| at_exit.leave(position, *began),
    )
}

fn trace(options: &Options) -> Result<Report, Box<dyn Error>> {
    // While this is the only thread: gcc leaves five one-byte nops at an entry, and making
    // one instruction of them is only safe while no thread can be between them.
    let process = Process::open()?;
    let mut functions = process.functions();
    if let Some(glob) = &options.filter {
        functions = functions.glob(glob)?;
    }
    if functions.is_empty() {
        return Err("no function to attach to. Is --filter right? Was SQLite compiled with \
             CFLAGS=-fpatchable-function-entry=21,16 (see .cargo/config.toml)?"
            .into());
    }
    let picture = options.exit.then(|| Picture::create(options.picture.clone())).transpose()?;
    let text = Text::copy()?;

    let workload = Workload::start(options.threads, SEED, claim_shard)?;
    let counters = Arc::new(Counters::new(functions.len(), options.threads));
    let watch = |phase| Phase::watch(phase, options.phase, &workload, &counters);
    let before = watch("before");

    // On: one batch, while the threads run.
    let recorder = options.exit.then(|| Recorder::new(functions.len(), options.threads));
    let recorder = recorder.map(Arc::new);
    let program = match &recorder {
        None => count(&counters),
        Some(recorder) => count_and_record(&counters, recorder),
    };
    let program = program.cookies(Cookies::Position);
    let attaching = Moment::now();
    let started = Instant::now();
    // SAFETY: the program changes no argument and no result, calls none of the functions it is
    // attached to, takes no lock that they could hold, and cannot panic; SQLite does not switch
    // stacks.
    let link = unsafe { process.attach(&functions, program) }?;
    let attach = started.elapsed();
    let attached = link.len();

    let during = watch("during");

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

    // Off for good. A thread may still be in the program, until this has been waited for.
    let started = Instant::now();
    link.detach()?;
    let detach = started.elapsed();
    let started = Instant::now();
    let synchronize = match process.synchronize() {
        Ok(()) => Ok(started.elapsed()),
        Err(busy) => Err(busy.to_string()),
    };

    let after = watch("after");
    let wrong = workload.finish();
    // The other threads are gone: now at the latest, nothing can be left of the tracing.
    process.synchronize()?;

    let names: Vec<String> = functions.iter().map(|function| function.name()).collect();
    let exits = recorder.zip(picture).map(|(recorder, picture)| {
        let tick = attaching.nanoseconds_of_tick();
        Exits::gather(&recorder, &names, process.missed(), tick, picture)
    });
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
        calls: names.into_iter().zip(counters.by_function()).collect(),
        phases: [before, during, after],
        wrong,
        text_bytes: text.len(),
        text_differences: text.differences()?,
        exits: exits.transpose()?,
    })
}
