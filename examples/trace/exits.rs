//! What `--exit` adds to the report: where the time went, and how long calls took.

use core::error::Error;

use fentry::host::Missed;

use crate::latency::{Latency, latency};
use crate::picture::Picture;
use crate::recorder::Recorder;
use crate::report::thousands;

/// How many functions the list shows.
const SHOWN: usize = 15;

/// What was found out about exits.
pub struct Exits {
    functions: Vec<Timed>,
    entries: u64,
    exits: u64,
    missed: Missed,
    /// Different paths by which calls came, counted for each thread.
    paths: usize,
    /// Calls that there was no room to record.
    lost: u64,
    picture: Picture,
}

/// A function that was called.
struct Timed {
    name: String,
    latency: Latency,
    /// Nanoseconds in the function itself, in all its calls.
    own: f64,
}

impl Exits {
    /// Draws the picture and sums up what was recorded. Nothing is recorded any more.
    pub fn gather(
        recorder: &Recorder,
        names: &[String],
        missed: Missed,
        nanoseconds_of_tick: f64,
        picture: Picture,
    ) -> Result<Self, Box<dyn Error>> {
        let threads: Vec<_> = recorder.paths().map(|paths| paths.walk()).collect();
        picture.draw(&threads, names, nanoseconds_of_tick)?;
        let (mut entries, mut exits, mut own_ticks) = (0, 0, vec![0; names.len()]);
        for path in threads.iter().flat_map(|paths| &paths[1..]) {
            entries += path.entries;
            exits += path.exits;
            own_ticks[path.function] += path.own_ticks;
        }
        let latencies = recorder.latencies();
        let mut functions = Vec::new();
        for (position, (name, own_ticks)) in names.iter().zip(own_ticks).enumerate() {
            let latency = latency(&latencies, position, nanoseconds_of_tick)?;
            if latency.calls > 0 {
                let own = own_ticks as f64 * nanoseconds_of_tick;
                functions.push(Timed { name: name.clone(), latency, own });
            }
        }
        functions.sort_by(|a, b| b.own.total_cmp(&a.own));
        let paths = threads.iter().map(|paths| paths.len() - 1).sum();
        Ok(Self { functions, entries, exits, missed, paths, lost: recorder.lost(), picture })
    }

    /// Whether every call that was seen to begin was seen to end, and none was missed.
    pub fn is_good(&self) -> bool {
        let unhooked = self.missed.overflowed + self.missed.without_side_stack;
        self.exits > 0 && self.entries == self.exits + self.missed.abandoned && unhooked == 0
    }

    pub fn print(&self) {
        let whole: f64 = self.functions.iter().map(|function| function.own).sum();
        let shown = &self.functions[..self.functions.len().min(SHOWN)];
        let width = shown.iter().map(|timed| timed.name.chars().count()).max().unwrap_or(0);
        println!("\nwhere the time went, and how long a call took, with what it called, in ns");
        println!(
            "  {:width$} {:>6} {:>13} {:>9} {:>9} {:>12}",
            "", "itself", "calls", "median", "99 %", "longest"
        );
        for Timed { name, latency, own } in shown {
            println!(
                "  {name:width$} {:>4.1} % {:>13} {:>9} {:>9} {:>12}",
                100.0 * own / whole,
                thousands(latency.calls),
                thousands(latency.median),
                thousands(latency.percentile_99),
                thousands(latency.longest),
            );
        }
        println!(
            "  {} functions, {} paths. Times are by the clock, with all waiting; median and 99 % \
             are right to 3 %,\n  or to a step of the processor's clock. What recording a call \
             takes counts for its caller.",
            thousands(self.functions.len() as u64),
            thousands(self.paths as u64),
        );
        println!(
            "\nexits       {} of {} entries, {} left without a return, {} calls not seen",
            thousands(self.exits),
            thousands(self.entries),
            thousands(self.missed.abandoned),
            thousands(self.missed.overflowed + self.missed.without_side_stack + self.lost),
        );
        println!("picture     {}: open it in a browser", self.picture.path.display());
    }

    /// What the last line says of it.
    pub fn keys(&self) -> String {
        let Missed { abandoned, overflowed, without_side_stack, .. } = self.missed;
        format!(
            " exits={} abandoned={abandoned} overflowed={overflowed} \
             without_side_stack={without_side_stack} lost={} timed={} paths={} picture={}",
            self.exits,
            self.lost,
            self.functions.len(),
            self.paths,
            self.picture.path.display(),
        )
    }
}
