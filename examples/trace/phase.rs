//! One of the three stretches of time that are compared.

use core::time::Duration;
use std::io::{IsTerminal, Write, stderr};
use std::thread::sleep;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use crate::counters::Counters;
use crate::report::thousands;
use crate::workload::Workload;

/// What happened in a phase.
pub struct Phase {
    pub name: &'static str,
    pub queries: u64,
    /// Calls that were counted.
    pub calls: u64,
    pub time: Duration,
    /// Processor time of the whole process: unlike `time`, it does not grow when other
    /// processes keep this one from running.
    pub processor: Duration,
}

impl Phase {
    /// Watches the workload for this long, and tells the user how it gets on.
    pub fn watch(
        name: &'static str,
        length: Duration,
        workload: &Workload,
        counters: &Counters,
    ) -> Self {
        let (started, processor) = (Instant::now(), processor_time());
        let (queries, calls) = (workload.queries(), counters.total());
        let so_far = || Self {
            name,
            queries: workload.queries() - queries,
            calls: counters.total() - calls,
            time: started.elapsed(),
            processor: processor_time().saturating_sub(processor),
        };
        let live = stderr().is_terminal();
        loop {
            let left = length.saturating_sub(started.elapsed());
            sleep(left.min(Duration::from_millis(100)));
            let phase = so_far();
            let done = phase.time >= length;
            if live || done {
                phase.show(live, done);
            }
            if done {
                return phase;
            }
        }
    }

    /// Queries in a second.
    pub fn speed(&self) -> f64 {
        self.queries as f64 / self.time.as_secs_f64()
    }

    /// Nanoseconds of processor time for a query.
    pub fn cost(&self) -> f64 {
        self.processor.as_nanos() as f64 / self.queries.max(1) as f64
    }

    /// Shows the phase on a line of its own, over what was there if the line is `live`.
    fn show(&self, live: bool, done: bool) {
        let (start, end) = (if live { "\r" } else { "" }, if done { "\n" } else { "" });
        let (queries, calls) = (thousands(self.queries), thousands(self.calls));
        let (name, seconds) = (self.name, self.time.as_secs_f64());
        eprint!("{start}{name:6} {seconds:5.1} s {queries:>11} queries {calls:>13} calls{end}");
        // Progress that cannot be shown is no reason to stop.
        let _ = stderr().flush();
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
