//! What the user sees: numbers that can be read, and a bar for each hot function.

use core::time::Duration;

use crate::exits::Exits;
use crate::phase::Phase;

/// How many functions the list of the hottest shows.
const HOTTEST: usize = 15;
/// The longest bar, in characters.
const BAR: u64 = 40;

/// Everything that a run found out.
pub struct Report {
    /// Functions that the filter chose.
    pub functions: usize,
    /// Functions that were attached.
    pub attached: usize,
    pub attach: Duration,
    pub detach: Duration,
    /// From the end of the detaching until no thread was inside what had been attached; or
    /// why that could not be seen.
    pub synchronize: Result<Duration, String>,
    pub disable: Duration,
    pub enable: Duration,
    pub threads: usize,
    /// Calls counted while the counting was switched off.
    pub calls_while_off: u64,
    /// Names and calls, in any order.
    pub calls: Vec<(String, u64)>,
    /// Before, during and after.
    pub phases: [Phase; 3],
    pub wrong: u64,
    /// Bytes of machine code compared, and the addresses of those that differ.
    pub text_bytes: usize,
    pub text_differences: Vec<u64>,
    /// With `--exit`.
    pub exits: Option<Exits>,
}

impl Report {
    /// Whether the run is a success.
    pub fn is_good(&self) -> bool {
        let text_is_restored = self.text_bytes > 0 && self.text_differences.is_empty();
        // A thread that was inside the program when it was switched off still finishes.
        let off_is_off = self.calls_while_off <= self.threads as u64;
        let counted = self.attached > 0 && self.events() > 0;
        let balanced = self.exits.as_ref().is_none_or(Exits::is_good);
        self.wrong == 0 && text_is_restored && off_is_off && counted && balanced
    }

    fn events(&self) -> u64 {
        self.calls.iter().map(|(_, calls)| calls).sum()
    }

    /// Prints everything; the last line is for scripts.
    pub fn print(mut self) {
        let events = self.events();
        let (attach_each, detach_each) =
            (self.per_function(self.attach), self.per_function(self.detach));
        println!();
        println!(
            "functions   {} found, {} attached",
            thousands(self.functions as u64),
            thousands(self.attached as u64)
        );
        println!("attach      {} in all, {attach_each} ns a function", milliseconds(self.attach));
        println!(
            "off, on     {}, {}; {} calls counted while off",
            milliseconds(self.disable),
            milliseconds(self.enable),
            self.calls_while_off
        );
        println!("detach      {} in all, {detach_each} ns a function", milliseconds(self.detach));
        match &self.synchronize {
            Ok(time) => println!("            {} later no thread was in it", milliseconds(*time)),
            Err(busy) => println!("            {busy}"),
        }
        println!("calls       {} counted", thousands(events));

        println!("\nhottest functions");
        self.calls.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
        self.print_hottest();
        if let Some(exits) = &self.exits {
            exits.print();
        }

        self.print_speeds();
        self.print_checks();
        println!(
            "trace: functions={} attached={} events={events} wrong={} attach_ns_per_function={attach_each} detach_ns_per_function={detach_each}{}",
            self.functions,
            self.attached,
            self.wrong,
            self.exits.as_ref().map(Exits::keys).unwrap_or_default(),
        );
    }

    fn print_hottest(&self) {
        let hottest = &self.calls[..self.calls.len().min(HOTTEST)];
        let width = hottest.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let most = hottest.first().map_or(1, |(_, calls)| *calls).max(1);
        for (name, calls) in hottest.iter().filter(|(_, calls)| *calls > 0) {
            let bar = "█".repeat((calls * BAR).div_ceil(most) as usize);
            println!("  {name:width$} {:>13} {bar}", thousands(*calls));
        }
    }

    fn print_speeds(&self) {
        let [before, during, _] = &self.phases;
        println!("\nthe workload");
        for phase in &self.phases {
            println!(
                "  {:6} {:>9} queries a second {:5.2} x, {:>6.1} µs of processor time each {:5.2} x",
                phase.name,
                thousands(phase.speed() as u64),
                phase.speed() / before.speed(),
                phase.cost() / 1e3,
                phase.cost() / before.cost(),
            );
        }
        let calls_each = during.calls as f64 / during.queries.max(1) as f64;
        println!(
            "  {calls_each:.0} counted calls in a query, {:.1} ns of processor time for each",
            (during.cost() - before.cost()) / calls_each.max(1.0),
        );
    }

    fn print_checks(&self) {
        println!("\nwrong       {} answers", thousands(self.wrong));
        let bytes = thousands(self.text_bytes as u64);
        match self.text_differences.first() {
            None => {
                println!("text        {bytes} bytes of machine code, all as before the attach\n")
            }
            Some(first) => println!(
                "text        {} of {bytes} bytes of machine code differ from before the attach, the first at {first:#x}\n",
                thousands(self.text_differences.len() as u64),
            ),
        }
    }

    /// Nanoseconds for one function, rounded up.
    fn per_function(&self, time: Duration) -> u128 {
        time.as_nanos().div_ceil(self.attached.max(1) as u128)
    }
}

/// A number with its digits in groups: `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
