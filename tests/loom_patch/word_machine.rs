//! The machine of the model of words: caches that are not coherent with fetches, and cores.
//!
//! Where it is another than that of the other protocols:
//! - A fetch of one of the listed instructions gives a whole one, the one before a store or the
//!   one after it (Arm Architecture Reference Manual, DDI 0487, B2.2.5). So a word is one atomic.
//! - A store reaches the fetches of other cores when its cache line is flushed, or earlier, at
//!   any moment, when a cache writes the line back on its own account. So the patching core
//!   stores to its data cache; a thread that is nobody's copies from there at any moment; and
//!   a flush copies, too. Copies are relaxed: until it synchronises, a core may see any of them.
//! - To synchronise, a core's [`boundary`](Machine::boundaries) is held once, as it is while it
//!   fetches. That makes it see what was flushed before, and nothing that was not.
//!
//! The atomics are coherent, and fetches are not: a core may go back to an older instruction.
//! What it may execute until it synchronises includes that one anyway.

use core::ops::Range;
use std::sync::Arc;

use fentry::addr::PatchSite;
use fentry::encode::aarch64::WORD;
use fentry::patch::{Cores, Poke, WordBatch, WordText};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use crate::machine::{SITES, Unit};
use crate::plan::{Break, Count};
use crate::text::ToldToFail;

/// What is modelled.
#[derive(Clone, Copy)]
pub struct Plan {
    /// What every site holds at first, and what each batch makes of it in turn.
    pub stages: &'static [[u8; WORD]],
    pub sites: usize,
    /// Whether each of two sites is in batches of its own, applied by threads of their own.
    pub apart: bool,
    /// For each core, the sites that it executes, one after the other.
    pub cores: &'static [&'static [usize]],
    pub breaks: Break,
}

impl Plan {
    pub const fn broken(self, breaks: Break) -> Self {
        Self { breaks, ..self }
    }

    /// Explores the model; without a bound of preemptions, in every order there is.
    pub fn explore(self, preemptions: Option<usize>) -> Arc<Seen> {
        let seen = Arc::new(Seen::default());
        let mut model = loom::model::Builder::new();
        model.preemption_bound = preemptions;
        let watch = Arc::clone(&seen);
        model.check(move || {
            watch.executions.up();
            execute(self, Arc::clone(&watch));
        });
        println!("words {:?}: {} executions", self.breaks, seen.executions.get());
        seen
    }
}

/// How many executions of a model saw each stage, and how many there were.
#[derive(Default)]
pub struct Seen {
    pub executions: Count,
    pub stages: [Count; 3],
}

impl Seen {
    /// A model in which no core saw each of so many instructions proves nothing of them.
    pub fn saw(&self, stages: usize) {
        for (stage, count) in self.stages[..stages].iter().enumerate() {
            assert_ne!(count.get(), 0, "no execution of the model saw instruction {stage}");
        }
    }
}

/// A copy of the words of a machine: each one unit, or, where stores are split, two.
struct Words(Vec<Vec<Unit>>);

impl Words {
    fn new(plan: &Plan) -> Self {
        let width = if plan.breaks == Break::Split { WORD / 2 } else { WORD };
        let word = |_| plan.stages[0].chunks(width).map(Unit::new).collect();
        Self((0..plan.sites).map(word).collect())
    }

    fn store(&self, site: usize, number: u64, word: [u8; WORD]) {
        let units = &self.0[site];
        for (unit, part) in units.iter().zip(word.chunks(WORD / units.len())) {
            unit.store(number, part, Ordering::Relaxed);
        }
    }

    /// What this copy and another one hold of a site, of each part what was stored later.
    fn load_newer(&self, other: &Self, site: usize) -> [u8; WORD] {
        let units = &self.0[site];
        let width = WORD / units.len();
        let newer = units.iter().zip(&other.0[site]).flat_map(|(unit, other)| {
            let (one, another) = (unit.load(), other.load());
            let (_, bytes) = if one.0 >= another.0 { one } else { another };
            bytes.into_iter().take(width)
        });
        newer.collect::<Vec<_>>().try_into().unwrap()
    }

    /// Copies a site from another.
    fn copy(&self, from: &Self, site: usize) {
        for (unit, from) in self.0[site].iter().zip(&from.0[site]) {
            let (number, bytes) = from.load();
            unit.store(number, &bytes[..WORD], Ordering::Relaxed);
        }
    }
}

struct Machine {
    plan: Plan,
    /// What the patching cores have stored.
    stored: Words,
    /// What caches have written back on their own account.
    written_back: Words,
    /// What was flushed.
    flushed: Words,
    /// Each core's.
    boundaries: Vec<Mutex<()>>,
    /// How many batches have returned that had the site. Relaxed, so that seeing it
    /// synchronises nothing.
    over: Vec<AtomicUsize>,
    seen: Arc<Seen>,
}

impl Machine {
    /// One core's life: it executes its sites, one after the other.
    fn run(&self, core: usize) {
        let Plan { stages, breaks, .. } = self.plan;
        for &site in self.plan.cores[core] {
            let over = self.over[site].load(Ordering::Relaxed);
            let word = {
                let _boundary = self.boundaries[core].lock();
                self.flushed.load_newer(&self.written_back, site)
            };
            let stage = stages.iter().position(|stage| *stage == word);
            let stage = stage.unwrap_or_else(|| panic!("torn instruction {word:02x?}"));
            self.seen.stages[stage].up();
            if let Break::Store(number) | Break::StoresFrom(number) = breaks {
                assert!(stage == 0 || site + 1 < number, "new instruction that was never stored");
            }
            if breaks.lands() {
                assert!(stage >= over, "old instruction after the batch");
            } else if over > 0 && !breaks.sticks() {
                assert_eq!(stage, 0, "new instruction after it was taken back");
            }
        }
    }

    /// Applies the batches of these sites, one after the other, as the patching thread of this
    /// number.
    fn patch(self: &Arc<Self>, sites: Range<usize>, thread: usize) {
        let plan = &self.plan;
        let mut text = Memory::new(Arc::clone(self));
        let mut wires = Wires { machine: Arc::clone(self), thread, calls: 0 };
        for (before, change) in plan.stages.windows(2).enumerate() {
            let poke = |site| Poke::new(PatchSite::new(SITES[site]), change[0], change[1]);
            let mut pokes: Vec<_> = sites.clone().map(poke).collect();
            // SAFETY: nobody else writes to these sites, and where they lead is no part of
            // the model.
            let applied = unsafe { WordBatch::new(&mut pokes).apply(&mut text, &mut wires) };
            for site in sites.clone() {
                self.over[site].store(before + 1, Ordering::Relaxed);
            }
            plan.breaks.judge(applied);
        }
        let stands = if plan.breaks.lands() { plan.stages.last() } else { plan.stages.first() };
        for site in sites {
            let left = text.words[site] == *stands.unwrap();
            assert!(plan.breaks.sticks() || left, "something else was left");
        }
    }
}

/// The machine's text, as the core that patches writes it.
struct Memory {
    machine: Arc<Machine>,
    /// What stands at each site, for whoever reads it as data.
    words: Vec<[u8; WORD]>,
    stores: usize,
    flushes: usize,
}

impl Memory {
    fn new(machine: Arc<Machine>) -> Self {
        let words = vec![machine.plan.stages[0]; machine.plan.sites];
        Self { machine, words, stores: 0, flushes: 0 }
    }
}

fn locate(address: u64) -> usize {
    SITES.iter().position(|site| *site == address).unwrap()
}

// SAFETY: a word is one atomic, and who synchronises with the patching core after a flush sees
// what it copied. The mutants break that on purpose.
unsafe impl WordText for Memory {
    type Error = ToldToFail;

    fn read(&self, address: u64) -> Result<[u8; WORD], ToldToFail> {
        Ok(self.words[locate(address)])
    }

    fn open(&mut self, _: &[Poke<WORD>]) -> Result<(), ToldToFail> {
        Ok(())
    }

    fn close(&mut self) {}

    unsafe fn store(&mut self, address: u64, word: [u8; WORD]) -> Result<(), ToldToFail> {
        self.stores += 1;
        if self.machine.plan.breaks.fails(self.stores) {
            return Err(ToldToFail);
        }
        let site = locate(address);
        self.words[site] = word;
        self.machine.stored.store(site, self.stores as u64, word);
        Ok(())
    }

    fn flush(&mut self, pokes: &[Poke<WORD>]) {
        self.flushes += 1;
        if self.machine.plan.breaks.flushes(self.flushes) {
            for poke in pokes {
                self.machine.flushed.copy(&self.machine.stored, locate(poke.site.get()));
            }
        }
    }
}

/// What interrupts the machine's cores.
struct Wires {
    machine: Arc<Machine>,
    thread: usize,
    calls: usize,
}

// SAFETY: a core whose boundary was held since has not fetched in between, and what it fetches
// next happens after that. The mutants break that on purpose.
unsafe impl Cores for Wires {
    type Error = ToldToFail;

    fn synchronise(&mut self) -> Result<(), ToldToFail> {
        self.calls += 1;
        if self.machine.plan.breaks.synchronises(self.calls, self.thread)? {
            for boundary in &self.machine.boundaries {
                drop(boundary.lock());
            }
        }
        Ok(())
    }
}

/// One execution of the model.
fn execute(plan: Plan, seen: Arc<Seen>) {
    let machine = Arc::new(Machine {
        plan,
        stored: Words::new(&plan),
        written_back: Words::new(&plan),
        flushed: Words::new(&plan),
        boundaries: plan.cores.iter().map(|_| Mutex::new(())).collect(),
        over: (0..plan.sites).map(|_| AtomicUsize::new(0)).collect(),
        seen,
    });
    let caches = Arc::clone(&machine);
    let mut others = vec![thread::spawn(move || {
        for site in 0..plan.sites {
            caches.written_back.copy(&caches.stored, site);
        }
    })];
    for core in 0..plan.cores.len() {
        let machine = Arc::clone(&machine);
        others.push(thread::spawn(move || machine.run(core)));
    }
    if plan.apart {
        let second = Arc::clone(&machine);
        others.push(thread::spawn(move || second.patch(1..2, 1)));
        machine.patch(0..1, 0);
    } else {
        machine.patch(0..plan.sites, 0);
    }
    for thread in others {
        thread.join().unwrap();
    }
}
