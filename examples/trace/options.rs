//! The command line.

use core::time::Duration;
use std::path::PathBuf;

use lexopt::prelude::*;

/// What `--help` prints.
pub const HELP: &str = "\
Counts every call of every function of a SQLite that several threads are using.

Usage: cargo run --release --example trace -- [OPTIONS]

Options:
  --filter GLOB   only functions with such a name, for example 'sqlite3Btree*' [default: all]
  --threads N     threads that run queries [default: 3]
  --seconds N     length of each of the three phases [default: 2]
  --exit          also time every call, and draw who called whom
  --picture FILE  where the drawing goes, an SVG [default: trace.svg beside the executable]
  --help          print this

The exit code is 0 if every answer was right, calls were counted when and only when they
should be, and every byte of machine code after detaching is what it was before (the index
of a function stays in its padding). With --exit, every call that began must have ended, too.";

/// What the user asked for.
pub struct Options {
    pub filter: Option<String>,
    pub threads: usize,
    /// Length of each phase.
    pub phase: Duration,
    /// Whether calls are timed.
    pub exit: bool,
    /// Where the picture of them goes.
    pub picture: PathBuf,
    pub help: bool,
}

impl Options {
    /// Reads the arguments of this process.
    pub fn parse() -> Result<Self, lexopt::Error> {
        let executable = std::env::current_exe().unwrap_or_default();
        let mut options = Self {
            filter: None,
            threads: 3,
            phase: Duration::from_secs(2),
            exit: false,
            picture: executable.with_file_name("trace.svg"),
            help: false,
        };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("filter") => options.filter = Some(arguments.value()?.string()?),
                Long("threads") => {
                    options.threads = arguments.value()?.parse_with(|n| within(n, 1..=256))?;
                }
                Long("seconds") => {
                    let seconds = arguments.value()?.parse_with(|n| within(n, 1..=3600))?;
                    options.phase = Duration::from_secs(seconds as u64);
                }
                Long("exit") => options.exit = true,
                Long("picture") => options.picture = arguments.value()?.into(),
                Long("help") | Short('h') => options.help = true,
                _ => return Err(argument.unexpected()),
            }
        }
        Ok(options)
    }
}

fn within(text: &str, range: core::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "not a whole number".to_owned())?;
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(format!("must be from {} to {}", range.start(), range.end()))
    }
}
