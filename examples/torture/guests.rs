//! Libraries that come and go.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;

use fentry::emit::Context;
use fentry::host::{Cookies, Functions, Process, Program, SynchronizeError};

use crate::disturb::Listener;
use crate::library::Library;
use crate::operator::Stage;
use crate::random::Random;
use crate::source::FORMS;
use crate::tally::{TALLY, refused};

/// The file of a library, and how it was made.
pub struct Guest {
    pub path: PathBuf,
    pub functions: usize,
    pub seed: u32,
}

impl Guest {
    pub fn open(&self) -> Result<Library, String> {
        Library::open(&self.path, self.functions, self.seed)
    }
}

/// Loads, hooks and unloads the guests, one or two at a time.
pub fn visits(stage: &Stage, guests: &[Guest], stop: &AtomicBool) {
    let _listener = Listener::new();
    let mut random = Random::new(6);
    while !stop.load(Ordering::Relaxed) {
        let guest = &guests[random.below(guests.len())];
        let first = visit(stage, guest, &mut random, stop);
        if let Err(error) = first {
            refused(&format!("visit of {}", show(&guest.path)), &error);
            sleep(Duration::from_millis(100));
        }
        TALLY.loads.add(1);
        if random.below(2) == 0
            && let Err(error) = stage.process.refresh()
        {
            refused("refresh", &error);
        }
    }
}

/// Loads and unloads a library of which `Process` is not told, though its functions have
/// patch sites, too.
pub fn bystander(guest: &Guest, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match guest.open() {
            Ok(library) => {
                let right = library.targets.iter().all(|target| {
                    // SAFETY: it is loaded.
                    unsafe { target.call(1, 2) }
                });
                if !right {
                    refused("bystander", &"a result is wrong");
                }
                sleep(Duration::from_micros(500));
                // SAFETY: only this thread called into it, and has returned.
                unsafe { library.close() };
            }
            Err(error) => refused("bystander", &error),
        }
        sleep(Duration::from_micros(500));
    }
}

fn visit(
    stage: &Stage,
    guest: &Guest,
    random: &mut Random,
    stop: &AtomicBool,
) -> Result<(), String> {
    let process = stage.process;
    let library = guest.open()?;
    process.refresh().map_err(|error| error.to_string())?;
    let functions = functions_of(process, &library)?;
    let host = Host::new(&library, &functions);

    let counts = Arc::clone(&host.counts);
    let count = Program::new(move |_: &mut Context, position| {
        if let Some(count) = counts.get(position as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // SAFETY: the program counts, and nothing else; the library is unloaded after detaching.
    let attached = unsafe { process.attach(&functions, count.cookies(Cookies::Position)) };
    let link = attached.map_err(|error| error.to_string())?;
    host.drive(1, random);
    host.check(1, "attached")?;
    if random.below(4) == 0 {
        link.disable().map_err(|error| error.to_string())?;
        host.drive(1, random);
        host.check(1, "disabled")?;
        link.enable().map_err(|error| error.to_string())?;
        host.drive(1, random);
        host.check(2, "enabled")?;
        host.reset();
        host.drive(1, random);
    }
    link.detach().map_err(|error| error.to_string())?;
    host.drive(2, random);
    host.check(1, "detached")?;
    while !synchronize(stage) {
        if stop.load(Ordering::Relaxed) {
            // It stays loaded: something of it may still be written to.
            return Ok(());
        }
    }
    if Arc::strong_count(&host.counts) != 1 {
        return Err("a closure lives on after synchronize".into());
    }
    drop((host, functions));
    // SAFETY: detached and synchronised, and only this thread called into it.
    unsafe { library.close() };
    Ok(())
}

/// Whether what was detached is gone.
pub fn synchronize(stage: &Stage) -> bool {
    match stage.process.synchronize() {
        Ok(()) => {
            TALLY.synchronized.add(1);
            return true;
        }
        Err(SynchronizeError::Inside { .. }) => TALLY.busy.add(1),
        Err(error) => refused("synchronize", &error),
    }
    false
}

fn functions_of(process: &Process, library: &Library) -> Result<Functions, String> {
    let functions = process.functions().module(&library.name).map_err(|error| error.to_string())?;
    let functions = functions.filter(|function| {
        library.targets.iter().any(|target| target.entry as u64 == function.entry().get())
    });
    let (found, all) = (functions.len(), library.targets.len());
    if found == all { Ok(functions) } else { Err(format!("{found} of {all} functions were found")) }
}

/// A guest's functions, called and counted by one thread.
struct Host<'a> {
    hooked: &'a Library,
    /// For each function of the selection, its index in the library.
    indexes: Vec<usize>,
    counts: Arc<Vec<AtomicU64>>,
}

impl<'a> Host<'a> {
    fn new(library: &'a Library, functions: &Functions) -> Self {
        let index = |entry: u64| {
            let is_it = |target: &crate::library::Target| target.entry as u64 == entry;
            library.targets.iter().position(is_it).unwrap_or(usize::MAX)
        };
        let indexes: Vec<_> = functions.iter().map(|f| index(f.entry().get())).collect();
        let counts = Arc::new(indexes.iter().map(|_| AtomicU64::new(0)).collect());
        Self { hooked: library, indexes, counts }
    }

    /// Calls every function as often as [`calls`] says, so many times over.
    fn drive(&self, times: u64, random: &mut Random) {
        for (index, target) in self.hooked.targets.iter().enumerate() {
            for _ in 0..times * calls(index) {
                // SAFETY: the library is loaded.
                if !unsafe { target.call(random.next(), random.next()) } {
                    refused("a guest's function", &"a result is wrong");
                }
            }
        }
    }

    /// Compares the counts with what so many drives make.
    fn check(&self, drives: u64, when: &str) -> Result<(), String> {
        for (&index, count) in self.indexes.iter().zip(self.counts.iter()) {
            let (seen, right) = (count.load(Ordering::Relaxed), drives * self.counted(index));
            if seen < right {
                TALLY.lost.add(right - seen);
            } else {
                TALLY.duplicated.add(seen - right);
            }
            if seen != right {
                return Err(format!("{when}, function {index} was seen {seen} times, not {right}"));
            }
        }
        Ok(())
    }

    /// How often a drive calls this function, counting what other functions call.
    fn counted(&self, index: usize) -> u64 {
        let group = index..(index + FORMS.len()).min(self.hooked.targets.len());
        if !index.is_multiple_of(FORMS.len()) {
            return calls(index);
        }
        let calls_it =
            |other: &usize| *other == index || self.hooked.targets[*other].form.calls_first();
        group.filter(calls_it).map(calls).sum()
    }

    fn reset(&self) {
        for count in self.counts.iter() {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// How often a drive calls function `index` itself.
fn calls(index: usize) -> u64 {
    index as u64 % 3 + 1
}

fn show(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
