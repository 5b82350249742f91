//! Finds the patch sites of the running process.
//!
//! The compiler leaves a record of every patch site in a section of its own, and the loader
//! has relocated it. The file says where that section is, memory says what is in it:
//!
//! ```text
//!  file    section headers -> where the records are     symbols -> names, function starts
//!  memory  records -> addresses of padding or nops      unwind table -> function starts
//!                                   \________________________/
//!                                     entry, layout, patch site, name
//! ```
//!
//! Nothing is assumed of the file: it may be stripped, replaced or damaged. A module whose
//! file is not what is loaded is [skipped](Skipped) with the reason, and a record that leads
//! to no usable function is [rejected](Rejected) with the reason.
//!
//! A search while sites are being patched finds those that are patched taken
//! ([`Reason::ForeignBytes`]); search for new modules with [`modules_except`].

mod image;
mod live;
mod reason;
mod resolve;
mod select;
mod site;
mod starts;

use core::ops::Range;
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

use object::read::ReadRef;

pub use image::{Loaded, Memory, Segment};
pub use live::{
    Generation, generation, loaded, module_of_symbol, modules, modules_except, while_loaded,
};
pub use reason::{Difference, DiscoverError, Reason, SkipReason};

use super::names::{FunctionName, NameId, Names};
use crate::addr::{Entry, PatchSite};
use crate::attach::SiteNop;
use crate::layout::EntryLayout;
use image::{MCOUNT, PATCHABLE, View};
use resolve::{Window, describe, resolve};
use starts::{Starts, Symbols};

/// What a search found.
#[derive(Debug)]
pub struct Discovery {
    /// Every module that was looked at, those without a patch site included, in the loader's
    /// order: the program first.
    pub modules: Vec<Module>,
    /// The modules that could not be looked at.
    pub skipped: Vec<Skipped>,
}

/// A module that could not be looked at.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Which.
    pub identity: Identity,
    /// Why.
    pub reason: SkipReason,
}

/// What tells a loaded module from any other, also from one that was loaded at the same
/// place before or from the same file since.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Where it was loaded from.
    pub path: PathBuf,
    /// What is added to an address of the file to get the address in memory.
    pub bias: u64,
    /// The build id in memory; empty if it was linked without one.
    pub build_id: Vec<u8>,
}

/// An executable or shared object that is loaded.
#[derive(Debug)]
pub struct Module {
    /// The file name.
    pub name: String,
    /// What tells it from others.
    pub identity: Identity,
    /// Where its code is: the absolute ranges of its readable and executable segments, sorted.
    pub text: Vec<Range<u64>>,
    /// Its functions that have a patch site, sorted by entry, each entry once.
    pub functions: Vec<Function>,
    /// The recorded patch sites that cannot be used, in the order of the records.
    pub rejected: Vec<Rejected>,
    names: Names,
}

/// A function that has a patch site.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Where it is called.
    pub entry: Entry,
    /// Where its slot, landing pad, patch site and origin are.
    pub layout: EntryLayout,
    /// What the compiler put at the patch site.
    pub nop: SiteNop,
    /// Its length in bytes from the entry, as the symbol or unwind table says; where neither
    /// does, up to the next function that is known, or the end of the code.
    pub len: u32,
    /// Its names, in its module; see [`Module::name_of`].
    pub name: NameId,
}

impl Function {
    /// Where its patch site is.
    #[must_use]
    pub const fn site(&self) -> PatchSite {
        self.layout.site(self.entry)
    }

    /// Whether the instruction or data at `address` is the function's, its padding excluded.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.entry.get()).is_some_and(|offset| offset < u64::from(self.len))
    }
}

/// A recorded patch site that cannot be used.
#[derive(Clone, Copy, Debug)]
pub struct Rejected {
    /// The address in the record, absolute.
    pub address: u64,
    /// The function's entry and its names, if it is known which function that is.
    pub function: Option<(Entry, NameId)>,
    /// Why.
    pub reason: Reason,
}

impl Module {
    /// Finds the patch sites of a module in the memory of any process.
    ///
    /// `file` is the content of the file at `path`, `loaded` how the loader mapped it, and
    /// `memory` the memory that it is in. No content of `file` makes it panic or read
    /// outside of what `memory` allows.
    ///
    /// # Errors
    /// [`SkipReason`] says why there is no answer that could be trusted.
    pub fn inspect(
        path: &Path,
        file: &[u8],
        loaded: &Loaded,
        memory: &dyn Memory,
    ) -> Result<Self, SkipReason> {
        let build_id = loaded.build_id(memory);
        let identity = Identity { path: path.into(), bias: loaded.bias, build_id };
        Self::read(identity, file, loaded, memory)
    }

    fn read<'data, R: ReadRef<'data>>(
        identity: Identity,
        file: R,
        loaded: &Loaded,
        memory: &dyn Memory,
    ) -> Result<Self, SkipReason> {
        let view = View { loaded, memory };
        let sections = view.sections(file)?;
        let mut records = Vec::new();
        for (address, len) in sections.loaded(PATCHABLE).chain(sections.loaded(MCOUNT)) {
            let address = loaded.bias.wrapping_add(address);
            let bytes = image::copy(memory, address, len)
                .ok_or(SkipReason::UnreadableMemory { address, len })?;
            let (words, _) = bytes.as_chunks();
            records.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        }

        let name = identity.path.file_name().unwrap_or(identity.path.as_os_str());
        let mut module = Self {
            name: name.to_string_lossy().into_owned(),
            identity,
            text: loaded.text(),
            functions: Vec::new(),
            rejected: Vec::new(),
            names: Names::default(),
        };
        if records.is_empty() {
            return Ok(module);
        }
        let in_text = |record: &u64| module.text.iter().any(|range| range.contains(record));
        if !records.iter().any(in_text) {
            return Err(SkipReason::NotRelocated { records: records.len() });
        }
        let symbols = Symbols::read(file, &sections, loaded.bias)?;
        let starts = Starts::new(&symbols.all, starts::unwind(&view));
        module.resolve(&records, &symbols, &starts, memory);
        Ok(module)
    }

    /// Whether the module's symbol table has a function of this name.
    fn has_symbol<'data, R: ReadRef<'data>>(
        name: &str,
        file: R,
        loaded: &Loaded,
        memory: &dyn Memory,
    ) -> bool {
        let symbols = View { loaded, memory }
            .sections(file)
            .and_then(|sections| Symbols::read(file, &sections, loaded.bias));
        symbols.is_ok_and(|symbols| {
            symbols.all.iter().any(|symbol| {
                let mut names = Names::default();
                let id = names.push(symbols.names(symbol.address));
                FunctionName::new(&names, id, "", 0).is(name)
            })
        })
    }

    /// Fills in the functions and what is rejected.
    fn resolve(
        &mut self,
        records: &[u64],
        symbols: &Symbols<'_>,
        starts: &Starts,
        memory: &dyn Memory,
    ) {
        let mut found = Vec::with_capacity(records.len());
        for &address in records {
            let window = Window::read(address, &self.text, memory);
            let site = window.as_ref().map_err(|reason| *reason);
            let site =
                site.and_then(|window| resolve(address, window, starts).map(|s| (s, window)));
            match site.map(|(site, window)| (site, describe(&site, window))) {
                Ok((site, Ok((layout, nop)))) => found.push((site, layout, nop)),
                Ok((site, Err(reason))) => {
                    let name = self.names.push(symbols.names(site.entry.get()));
                    let function = Some((site.entry, name));
                    self.rejected.push(Rejected { address, function, reason });
                }
                Err(reason) => {
                    self.rejected.push(Rejected { address, function: None, reason });
                }
            }
        }
        // A function can have a record of its padding and another of its nop, and the former
        // knows more. Padding that is longer still is an empty function's before it.
        found.sort_by_key(|(site, ..)| (site.entry, site.padding == 0, site.padding));
        found.dedup_by_key(|(site, ..)| site.entry);
        self.functions.reserve_exact(found.len());
        for (i, &(site, layout, nop)) in found.iter().enumerate() {
            let entry = site.entry.get();
            let next = found.get(i + 1).map(|(next, ..)| next.begins());
            let len = match site.len {
                0 => self.end_of_unknown(entry, next, starts).saturating_sub(entry),
                len => len,
            };
            self.functions.push(Function {
                entry: site.entry,
                layout,
                nop,
                len: u32::try_from(len).unwrap_or(u32::MAX),
                name: self.names.push(symbols.names(entry)),
            });
        }
    }

    /// Where the function at `entry` ends at the latest; `next` is where the next one begins
    /// that has a patch site.
    fn end_of_unknown(&self, entry: u64, next: Option<u64>, starts: &Starts) -> u64 {
        let text = self.text.iter().find(|range| range.contains(&entry)).map(|range| range.end);
        let start = starts.after(entry).first().map(|start| start.address);
        [text, start, next].into_iter().flatten().min().unwrap_or(entry)
    }

    /// Rejects the functions whose patch site cannot be rewritten while threads run: `can` says
    /// of a site whether it can.
    pub(super) fn reject_unpatchable(&mut self, can: impl Fn(PatchSite) -> bool) {
        let Self { functions, rejected, .. } = self;
        functions.retain(|function| {
            let keep = can(function.site());
            if !keep {
                let address = function.site().get();
                let function = Some((function.entry, function.name));
                rejected.push(Rejected { address, function, reason: Reason::Straddles });
            }
            keep
        });
    }

    /// What `function`, one of this module's, is called.
    #[must_use]
    pub fn name_of(&self, function: &Function) -> FunctionName<'_> {
        self.name_at(function.entry, function.name)
    }

    /// What the function of `rejected`, one of this module's, is called.
    #[must_use]
    pub fn name_of_rejected(&self, rejected: &Rejected) -> Option<FunctionName<'_>> {
        rejected.function.map(|(entry, name)| self.name_at(entry, name))
    }

    fn name_at(&self, entry: Entry, name: NameId) -> FunctionName<'_> {
        let offset = entry.get().wrapping_sub(self.identity.bias);
        FunctionName::new(&self.names, name, &self.name, offset)
    }
}
