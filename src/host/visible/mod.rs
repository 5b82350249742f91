//! Showing emitted code to the tools that look at processes: `perf`, and debuggers.
//!
//! ```text
//!  image memory: emitted, freed --> Visible --> perf map     /tmp/perf-PID.map
//!                                           --> jitdump      FOLDER/jit-PID.dump
//!                                           --> debugger     an ELF object in memory
//! ```
//!
//! Nothing is shown that was not [asked for](Visibility): each of the three takes time and
//! memory for every piece of code, and two of them leave a file behind.

mod debugger;
mod elf;
mod error;
mod jitdump;
mod perf_map;

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

use super::unwind;
use crate::attach::Emitted;
use debugger::Debugger;
use jitdump::Jitdump;
use perf_map::PerfMap;

pub use error::VisibilityError;

/// Which tools are shown emitted code; see [`Process::show`](super::Process::show).
///
/// ```
/// use fentry::host::Visibility;
///
/// let both = Visibility::none().perf_map().debugger();
/// # let _ = both;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "code is shown by Process::show"]
pub struct Visibility {
    perf_map: bool,
    jitdump: Option<PathBuf>,
    debugger: bool,
}

impl Visibility {
    /// None.
    pub const fn none() -> Self {
        Self { perf_map: false, jitdump: None, debugger: false }
    }

    /// Names for `perf report` and `perf script`, in the file `/tmp/perf-PID.map`, which stays
    /// when the process ends. Code that was freed keeps its name: where an address was used
    /// twice, `perf` may show either; a [`jitdump`](Self::jitdump) can tell them apart.
    pub const fn perf_map(mut self) -> Self {
        self.perf_map = true;
        self
    }

    /// Names and bytes for `perf annotate`, in the file `jit-PID.dump` in `folder`, which
    /// stays when the process ends. `perf` needs `perf record -k mono`, and afterwards
    /// `perf inject --jit -i perf.data -o perf.jit.data`.
    pub fn jitdump(mut self, folder: impl Into<PathBuf>) -> Self {
        self.jitdump = Some(folder.into());
        self
    }

    /// Names and unwind tables for gdb and lldb, by the interface that gdb's manual describes in
    /// "JIT Compilation Interface". A debugger that is attached stops the process for a moment
    /// whenever code is emitted or freed.
    ///
    /// Other code generators in the process use the same list of symbols without a lock: none
    /// of them may be adding to it while functions are attached to or retired.
    pub const fn debugger(mut self) -> Self {
        self.debugger = true;
        self
    }
}

/// A piece of emitted code.
#[derive(Clone, Debug)]
struct Piece {
    address: u64,
    code: Vec<u8>,
    name: String,
    /// The entries of its unwind table.
    unwind: Vec<u8>,
}

impl Piece {
    fn range(&self) -> Range<u64> {
        self.address..self.address + self.code.len() as u64
    }
}

/// What was emitted and has no name yet.
#[derive(Debug)]
struct Nameless {
    address: u64,
    code: Vec<u8>,
    what: What,
    /// The entries of its unwind table.
    unwind: Vec<u8>,
}

#[derive(Debug)]
enum What {
    /// An image, and its programs.
    Image(Vec<u64>),
    /// The thunk of a function, by its index.
    Thunk(u32),
}

/// How what is emitted is named.
pub(super) trait Naming {
    /// The names of the functions with these indexes.
    fn functions(&self, indexes: &BTreeSet<u32>) -> BTreeMap<u32, String>;
    /// The name of the module for whose functions the code at `address` is.
    fn module(&self, address: u64) -> Option<&str>;
}

/// Who is shown what is emitted.
#[derive(Debug, Default)]
pub(super) struct Visible {
    perf_map: Option<PerfMap>,
    jitdump: Option<Jitdump>,
    debugger: Option<Debugger>,
    /// Names of programs, by their addresses.
    programs: BTreeMap<u64, &'static str>,
    nameless: Vec<Nameless>,
}

impl Visible {
    /// Shows what is emitted from now on.
    pub fn to(&mut self, visibility: &Visibility) -> Result<(), VisibilityError> {
        if visibility.perf_map && self.perf_map.is_none() {
            self.perf_map = Some(PerfMap::open()?);
        }
        if let Some(folder) = &visibility.jitdump
            && self.jitdump.is_none()
        {
            self.jitdump = Some(Jitdump::create(folder)?);
        }
        if visibility.debugger && self.debugger.is_none() {
            self.debugger = Some(Debugger::default());
        }
        Ok(())
    }

    fn is_off(&self) -> bool {
        self.perf_map.is_none() && self.jitdump.is_none() && self.debugger.is_none()
    }

    /// Knows a program by its name.
    pub fn know(&mut self, program: u64, name: &'static str) {
        self.programs.insert(program, name);
    }

    /// Takes note of what was emitted.
    pub fn emitted(&mut self, address: u64, code: &[u8], what: Emitted<'_>) {
        if self.is_off() {
            return;
        }
        let unwind = unwind::table(address, code.len(), what).entries().into();
        let what = match what {
            Emitted::Image { entries, exits, .. } => {
                let calls = entries.into_iter().flatten().chain(exits);
                What::Image(calls.map(|call| call.target).collect())
            }
            Emitted::EntryThunk { index } | Emitted::ExitThunk { index, .. } => What::Thunk(index),
        };
        self.nameless.push(Nameless { address, code: code.into(), what, unwind });
    }

    /// Takes note of what is gone.
    pub fn gone(&mut self, range: &Range<u64>) {
        self.nameless.retain(|nameless| !range.contains(&nameless.address));
        if let Some(debugger) = &mut self.debugger {
            debugger.remove(range);
        }
    }

    /// Names what was emitted, and shows it. Who cannot be shown it, because a disk is full, is
    /// shown no more.
    pub fn show(&mut self, naming: &impl Naming) {
        if self.nameless.is_empty() {
            return;
        }
        let nameless = core::mem::take(&mut self.nameless);
        let index = |some: &Nameless| match some.what {
            What::Image(_) => None,
            What::Thunk(index) => Some(index),
        };
        let functions = naming.functions(&nameless.iter().filter_map(index).collect());
        let named = nameless.into_iter().map(|some| self.name(some, naming, &functions));
        let pieces: Vec<_> = named.collect();
        if self.perf_map.as_mut().is_some_and(|map| map.add(&pieces).is_err()) {
            self.perf_map = None;
        }
        if self.jitdump.as_mut().is_some_and(|dump| dump.add(&pieces).is_err()) {
            self.jitdump = None;
        }
        if let Some(debugger) = &mut self.debugger {
            debugger.add(pieces);
        }
    }

    fn name(
        &self,
        nameless: Nameless,
        naming: &impl Naming,
        functions: &BTreeMap<u32, String>,
    ) -> Piece {
        let Nameless { address, code, what, unwind } = nameless;
        let name = match what {
            What::Image(programs) => {
                let module = naming.module(address).unwrap_or_default();
                let programs = programs.iter().map(|program| match self.programs.get(program) {
                    Some(name) => String::from(*name),
                    None => std::format!("{program:#x}"),
                });
                let programs = programs.collect::<Vec<_>>().join(", ");
                std::format!("fentry::image[{module}] {programs}")
            }
            What::Thunk(index) => {
                let function = functions.get(&index).map_or("", String::as_str);
                std::format!("fentry::thunk[{index}] {function}")
            }
        };
        // A perf map has a line for each name, and a jitdump ends it with a zero.
        let name = name.replace(|c: char| c.is_control(), "?");
        Piece { address, code, name, unwind }
    }
}
