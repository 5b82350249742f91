//! Selecting functions.

use core::fmt;
use std::string::{String, ToString};
use std::sync::{Arc, OnceLock};
use std::vec::Vec;

use super::discover::{self, Module};
use super::glob::{Glob, GlobError};
use super::names::{FunctionName, Wanted};
use crate::addr::{Entry, Origin};
use crate::attach::{FunctionId, Region};

/// A module whose functions the engine knows.
#[derive(Debug)]
pub(super) struct KnownModule {
    pub module: Module,
    /// The functions' ids, in the order of `module.functions`.
    pub ids: Vec<FunctionId>,
    /// Which image memory they reach.
    pub region: Region,
    /// Positions in `module.functions` of functions of this library itself.
    pub own: Vec<u32>,
}

/// Every module that is known, as of one moment.
pub(super) type Catalogue = Vec<Arc<KnownModule>>;

/// A function, by its place in a catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Pick {
    module: u32,
    function: u32,
}

/// A selection of functions that have a patch site, in the order of modules and addresses.
///
/// Made by [`Process::functions`](super::Process::functions), and narrowed step by step:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fentry::host::Process;
///
/// let functions = Process::open()?.functions();
/// let parser = functions.module("libsqlite3*")?.glob("*Parse*")?;
/// for function in parser.iter() {
///     println!("{function} at {}", function.entry());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Functions {
    catalogue: Arc<Catalogue>,
    picks: Vec<Pick>,
    ids: OnceLock<Arc<[FunctionId]>>,
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|function| function.to_string())).finish()
    }
}

impl Functions {
    pub(super) fn all(catalogue: Arc<Catalogue>) -> Self {
        let picks = (0..).zip(catalogue.iter()).flat_map(|(module, known)| {
            (0..).zip(&known.module.functions).map(move |(function, _)| Pick { module, function })
        });
        let picks = picks.collect();
        Self { catalogue, picks, ids: OnceLock::new() }
    }

    /// Those of which the pattern covers a name: as the symbol table has it or demangled, and
    /// for C++ also without parameters. `*` is any text, `?` one character, `[a-z]` and
    /// `[!a-z]` one of a class.
    ///
    /// # Errors
    /// [`GlobError`] if the pattern is not one.
    pub fn glob(&self, pattern: &str) -> Result<Self, GlobError> {
        let glob = Glob::new(pattern)?;
        let mut buffer = String::new();
        Ok(self.filter(|function| function.full_name().matches_with(&glob, &mut buffer)))
    }

    /// Those in modules whose file name or path the pattern covers.
    ///
    /// # Errors
    /// [`GlobError`] if the pattern is not one.
    pub fn module(&self, pattern: &str) -> Result<Self, GlobError> {
        let glob = Glob::new(pattern)?;
        let covered: Vec<bool> =
            self.catalogue.iter().map(|known| known.module.matches(&glob)).collect();
        let keep = |pick: &&Pick| covered.get(pick.module as usize) == Some(&true);
        Ok(self.with(self.picks.iter().filter(keep).copied().collect()))
    }

    /// Those of which `name` is a name, in any of the forms that [`glob`](Self::glob) covers.
    /// There may be several, in different modules or files.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        let wanted = Wanted::new(name);
        let mut buffer = String::new();
        self.filter(|function| wanted.found_in(&function.full_name(), &mut buffer))
    }

    /// The function whose entry is `address`.
    #[must_use]
    pub fn at(&self, address: u64) -> Self {
        self.filter(|function| function.entry().get() == address)
    }

    /// The function whose code `address` is in.
    #[must_use]
    pub fn containing(&self, address: u64) -> Self {
        self.filter(|function| function.found.contains(address))
    }

    /// Those that `keep` wants.
    #[must_use]
    pub fn filter(&self, mut keep: impl FnMut(Function<'_>) -> bool) -> Self {
        let wanted = |pick: &&Pick| self.get(**pick).is_some_and(&mut keep);
        let picks = self.picks.iter().filter(wanted).copied().collect();
        self.with(picks)
    }

    fn with(&self, picks: Vec<Pick>) -> Self {
        Self { catalogue: Arc::clone(&self.catalogue), picks, ids: OnceLock::new() }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.picks.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }

    /// The functions, in order.
    pub fn iter(&self) -> impl Iterator<Item = Function<'_>> {
        self.picks.iter().filter_map(|&pick| self.get(pick))
    }

    fn get(&self, pick: Pick) -> Option<Function<'_>> {
        let known = self.catalogue.get(pick.module as usize)?;
        let index = pick.function as usize;
        let found = known.module.functions.get(index)?;
        Some(Function { known, found, id: *known.ids.get(index)? })
    }

    /// The modules that they are in.
    pub(super) fn modules(&self) -> impl Iterator<Item = &Arc<KnownModule>> {
        let chunks = self.picks.chunk_by(|a, b| a.module == b.module);
        chunks.filter_map(|picks| self.catalogue.get(picks.first()?.module as usize))
    }

    /// The first one that is a function of this library itself.
    pub(super) fn first_own(&self) -> Option<Function<'_>> {
        if self.catalogue.iter().all(|known| known.own.is_empty()) {
            return None;
        }
        let own = |pick: &&Pick| {
            let known = self.catalogue.get(pick.module as usize);
            known.is_some_and(|known| known.own.contains(&pick.function))
        };
        self.picks.iter().find(own).and_then(|&pick| self.get(pick))
    }

    /// Their ids, in order; found once, and shared with the links that are made of them.
    pub(super) fn ids(&self) -> Arc<[FunctionId]> {
        let found = self.ids.get_or_init(|| {
            let id = |pick: &Pick| {
                self.catalogue.get(pick.module as usize)?.ids.get(pick.function as usize).copied()
            };
            self.picks.iter().filter_map(id).collect()
        });
        Arc::clone(found)
    }
}

/// A function that has a patch site. Shown, it is its name and its module's.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    known: &'a KnownModule,
    found: &'a discover::Function,
    id: FunctionId,
}

impl<'a> Function<'a> {
    /// Its name, demangled, or `module+0x1234` if it has none.
    #[must_use]
    pub fn name(&self) -> String {
        self.full_name().to_string()
    }

    /// All that is known of its name.
    #[must_use]
    pub fn full_name(&self) -> FunctionName<'a> {
        self.known.module.name_of(self.found)
    }

    /// Where it is.
    #[must_use]
    pub const fn entry(&self) -> Entry {
        self.found.entry
    }

    /// Where its own code goes on behind the patch site: the origin. A call of it, as of the
    /// function, runs no program and no replacement.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.found.layout.origin(self.found.entry)
    }

    /// What else was found of it: its layout, patch site and length.
    #[must_use]
    pub const fn found(&self) -> &'a discover::Function {
        self.found
    }

    /// The file name of its module.
    #[must_use]
    pub fn module(&self) -> &'a str {
        &self.known.module.name
    }

    /// Its index, which programs see as [`Context::index`](crate::emit::Context::index).
    #[must_use]
    pub const fn id(&self) -> FunctionId {
        self.id
    }
}

impl fmt::Display for Function<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.full_name(), self.module())
    }
}
