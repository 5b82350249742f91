//! The command line.

use core::ops::RangeInclusive;
use core::time::Duration;

use lexopt::prelude::*;

/// What `--help` prints.
pub const HELP: &str = "\
Attaches, detaches, enables and disables programs at full speed while threads call the
functions at full speed, and checks every result and every count.

Usage: cargo run --release --example torture -- [OPTIONS]

Options:
  --seconds N     how long [default: 10]
  --threads N     threads that call functions [default: one for each core, at least 2]
  --functions N   functions that stay loaded [default: 4000]
  --help          print this

Once in a while it prints what it has done, and at the end what went wrong. The exit code
is 0 if nothing did.";

/// What the user asked for.
#[derive(Clone, Copy)]
pub struct Options {
    pub length: Duration,
    pub threads: usize,
    pub functions: usize,
    pub help: bool,
}

impl Options {
    /// Reads the arguments of this process.
    pub fn parse() -> Result<Self, lexopt::Error> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut options = Self {
            length: Duration::from_secs(10),
            threads: cores.max(2),
            functions: 4000,
            help: false,
        };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("seconds") => {
                    let seconds = arguments.value()?.parse_with(|n| within(n, 1..=1_000_000))?;
                    options.length = Duration::from_secs(seconds as u64);
                }
                Long("threads") => {
                    options.threads = arguments.value()?.parse_with(|n| within(n, 1..=256))?;
                }
                Long("functions") => {
                    options.functions =
                        arguments.value()?.parse_with(|n| within(n, 28..=1_000_000))?;
                }
                Long("help") | Short('h') => options.help = true,
                _ => return Err(argument.unexpected()),
            }
        }
        Ok(options)
    }
}

fn within(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "not a whole number".to_owned())?;
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(format!("must be from {} to {}", range.start(), range.end()))
    }
}
