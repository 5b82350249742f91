//! Loom models of `fentry::patch::TrapResolver`: traps that come late, memory that is used
//! again, and breakpoints that are somebody else's.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --test loom_resolver
//! ```
//!
//! A core that fetched an `int3` is only later in its handler, and by then the batch may be
//! over, its memory somebody else's, and the next batch in progress. Batches go through
//! `Batch::apply`, so what is modelled is what ships; the mutants weaken the ordering of one
//! thread through [`fentry::fault`], and a mutant's test fails unless loom finds it.
//!
//! Text is modelled no closer than the resolver needs: the first byte of each site, whose
//! stores release, and whose fetch by a core that traps acquires (Intel SDM volume 3, "Memory
//! Ordering in P6 and More Recent Processor Families": stores become visible in program
//! order, and loads are not reordered with other loads).
#![cfg(loom)]

use core::convert::Infallible;
use core::sync::atomic as plain;
use std::sync::Arc;

use fentry::addr::PatchSite;
use fentry::fault::{self, Fault};
use fentry::patch::{Batch, Cores, Poke, Protocol, Resume, SITE_LEN, Text, TrapResolver};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU8, Ordering, fence};
use loom::thread;

const NOP: [u8; SITE_LEN] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `call` to 0x200 behind its end.
const CALL: [u8; SITE_LEN] = [0xe8, 0x00, 0x02, 0x00, 0x00];
/// `call` to 0x666 behind its end: what is left in memory that a batch no longer has.
const POISON: [u8; SITE_LEN] = [0xe8, 0x66, 0x06, 0x00, 0x00];
const INT3: u8 = 0xcc;

const SITES: [u64; 3] = [0x1000, 0x1010, 0x1020];
/// Where no batch has a site.
const FOREIGN: u64 = 0x1018;

/// What the call at `site` does.
const fn call_at(site: u64) -> Resume {
    Resume::Call { target: site + 5 + 0x200, return_to: site + 5 }
}

/// The first byte of each site, and the cores.
struct Machine {
    heads: [AtomicU8; SITES.len()],
    /// Each core's, held while it fetches; to synchronise is to hold it once.
    boundaries: [Mutex<()>; 2],
    traps: TrapResolver,
}

/// The machine's text. Bytes that no core of the model fetches are not in it.
struct Memory<'a> {
    machine: &'a Machine,
    bytes: [[u8; SITE_LEN]; SITES.len()],
}

fn locate(address: u64) -> (usize, usize) {
    let site = SITES.iter().position(|&site| (site..site + 5).contains(&address)).unwrap();
    (site, (address - SITES[site]) as usize)
}

// SAFETY: the machine's bytes are atomics whose stores release.
unsafe impl Text for Memory<'_> {
    type Error = Infallible;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Infallible> {
        let (site, offset) = locate(address);
        Ok(self.bytes[site][offset..offset + N].try_into().unwrap())
    }

    fn open(&mut self, _: &[Poke]) -> Result<(), Infallible> {
        Ok(())
    }

    fn close(&mut self) {}

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Infallible> {
        let (site, offset) = locate(address);
        assert_eq!(offset, 0, "the breakpoint stores single bytes at the start only");
        self.bytes[site][0] = byte;
        self.machine.heads[site].store(byte, Ordering::Release);
        Ok(())
    }

    unsafe fn store_pair(&mut self, _: u64, _: [u8; 2]) -> Result<(), Infallible> {
        panic!("the breakpoint stores no pairs");
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Infallible> {
        let (site, offset) = locate(address);
        self.bytes[site][offset..offset + N].copy_from_slice(&bytes);
        Ok(())
    }
}

/// What interrupts the machine's cores.
struct Wires<'a>(&'a Machine);

// SAFETY: a core whose boundary was held since has not fetched in between, and what it fetches
// next happens after that.
unsafe impl Cores for Wires<'_> {
    type Error = Infallible;

    fn synchronise(&mut self) -> Result<(), Infallible> {
        for boundary in &self.0.boundaries {
            drop(boundary.lock());
        }
        Ok(())
    }
}

impl Machine {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            heads: SITES.map(|_| AtomicU8::new(NOP[0])),
            boundaries: [Mutex::new(()), Mutex::new(())],
            traps: TrapResolver::new(),
        })
    }

    /// Executes site 0 once, as `core`. Gives what its handler was told, if it trapped.
    fn execute(&self, core: usize) -> Option<Resume> {
        let first = {
            let _boundary = self.boundaries[core].lock();
            self.heads[0].load(Ordering::Relaxed)
        };
        (first == INT3).then(|| {
            fence(Ordering::Acquire);
            self.traps.resolve(SITES[0], || self.heads[0].load(Ordering::Relaxed))
        })
    }

    /// Switches sites 0 and 1 on, and then `second` the other way, with the same memory for the
    /// pokes of both batches. What is not the batch's is poison.
    fn two_batches(&self, second: usize) {
        let mut text = Memory { machine: self, bytes: [NOP; SITES.len()] };
        let poison = Poke::new(PatchSite::new(SITES[0]), NOP, POISON);
        let site = |at: usize, old, new| Poke::new(PatchSite::new(SITES[at]), old, new);
        let mut pokes = [site(0, NOP, CALL), site(1, NOP, CALL)];
        self.apply(&mut text, &mut pokes);
        pokes = [poison; 2];
        let old = text.bytes[second];
        pokes[0] = site(second, old, if old == NOP { CALL } else { NOP });
        self.apply(&mut text, &mut pokes[..1]);
        pokes = [poison; 2];
        // The memory stays, so that a core that still reads it finds the poison.
        core::hint::black_box(&mut pokes);
    }

    fn apply(&self, text: &mut Memory<'_>, pokes: &mut [Poke]) {
        let batch = Batch::new(Protocol::Breakpoint, pokes);
        // SAFETY: nobody else writes to the text, a nop or a call is one instruction, and
        // every trap of the machine asks its one resolver.
        unsafe { batch.apply(text, &mut Wires(self), &self.traps) }.unwrap();
    }
}

/// What the cores of a model were told, over all its executions.
#[derive(Default)]
struct Told {
    executions: plain::AtomicUsize,
    call: plain::AtomicUsize,
    next: plain::AtomicUsize,
    retry: plain::AtomicUsize,
}

impl Told {
    fn note(&self, counter: &plain::AtomicUsize) {
        counter.fetch_add(1, plain::Ordering::Relaxed);
    }

    /// How often each answer was given: call, go on behind the site, retry.
    fn counts(&self) -> [usize; 3] {
        [&self.call, &self.next, &self.retry].map(|counter| counter.load(plain::Ordering::Relaxed))
    }
}

/// A model: two batches, and cores that execute site 0 meanwhile.
#[derive(Clone, Copy)]
struct Model {
    /// The site of the second batch.
    second: usize,
    cores: usize,
    /// What is wrong with the core that patches.
    patching: Fault,
    /// What is wrong with the handlers.
    handling: Fault,
    preemptions: usize,
}

impl Model {
    const SOUND: Self =
        Self { second: 2, cores: 1, patching: Fault::None, handling: Fault::None, preemptions: 4 };

    /// Explores the model, and checks what each core is told.
    fn explore(self) -> Arc<Told> {
        let told = Arc::new(Told::default());
        let result = Arc::clone(&told);
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(self.preemptions);
        model.max_branches = 10_000;
        model.check(move || {
            told.note(&told.executions);
            let machine = Machine::new();
            let cores = (0..self.cores).map(|core| {
                let (machine, told) = (Arc::clone(&machine), Arc::clone(&told));
                thread::spawn(move || {
                    fault::inject(self.handling);
                    self.judge(machine.execute(core), &told);
                })
            });
            let cores: Vec<_> = cores.collect();
            fault::inject(self.patching);
            machine.two_batches(self.second);
            for core in cores {
                core.join().unwrap();
            }
        });
        let executions = result.executions.load(plain::Ordering::Relaxed);
        println!("{executions} executions; call, next, retry: {:?}", result.counts());
        result
    }

    fn judge(&self, resume: Option<Resume>, told: &Told) {
        match resume {
            None => {}
            Some(resume) if resume == call_at(SITES[0]) => told.note(&told.call),
            Some(Resume::At(next)) if self.second == 0 && next == SITES[0] + 5 => {
                told.note(&told.next);
            }
            Some(Resume::Retry) => told.note(&told.retry),
            Some(Resume::NotOurs) => panic!("our own trap was passed on"),
            Some(resume) => panic!("resumed with {resume:x?}"),
        }
    }
}

/// A core traps in the first batch, and its handler runs when it likes: during that batch,
/// between the two, during the second, which has other sites in the same memory, or after
/// both. It is told to call or to retry. The pokes are read by no handler once `apply` has
/// returned.
#[test]
fn a_trap_that_outlives_its_batch_is_retried() {
    let [call, _, retry] = Model::SOUND.explore().counts();
    assert_ne!(call, 0, "no trap was resolved during the batch");
    assert_ne!(retry, 0, "no trap was resolved after the batch");
}

/// A core traps in the first batch, and its handler runs when it likes, while the second batch
/// switches the same site off again. Between the two batches no batch has the site; when the
/// handler looks at the byte after that, the second batch's `int3` may stand there, and it is
/// as much ours as the first one's.
#[test]
fn a_trap_that_outlives_its_batch_meets_the_next_at_its_site() {
    let [call, next, retry] = Model { second: 0, ..Model::SOUND }.explore().counts();
    assert_ne!(call, 0, "no trap was resolved during the first batch");
    assert_ne!(next, 0, "no trap was resolved during the second batch");
    assert_ne!(retry, 0, "no trap was resolved between or after the batches");
}

/// The same with two cores.
#[test]
fn two_traps_meet_the_next_batch_at_their_site() {
    let model = Model { second: 0, cores: 2, preemptions: 2, ..Model::SOUND };
    assert_ne!(model.explore().counts()[1], 0, "no trap was resolved during the second batch");
}

/// Two cores are in the resolver at the same time, one of them maybe late: the count of
/// readers covers both.
#[test]
fn two_handlers_are_both_waited_for() {
    let [call, _, retry] = Model { cores: 2, preemptions: 2, ..Model::SOUND }.explore().counts();
    assert_ne!(call, 0, "no trap was resolved during the batch");
    assert_ne!(retry, 0, "no trap was resolved after the batch");
}

/// A breakpoint that is no site's, met while two batches come and go.
fn foreign_breakpoint(patching: Fault, handling: Fault) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(move || {
        let machine = Machine::new();
        let other = Arc::clone(&machine);
        let core = thread::spawn(move || {
            fault::inject(handling);
            assert_eq!(other.traps.resolve(FOREIGN, || INT3), Resume::NotOurs);
        });
        fault::inject(patching);
        machine.two_batches(2);
        core.join().unwrap();
    });
}

/// A debugger's breakpoint beside our sites is passed on, whatever batch comes and goes. Its
/// core met no guard, so nothing but the resolver orders it with the batches.
#[test]
fn a_foreign_breakpoint_is_passed_on() {
    foreign_breakpoint(Fault::None, Fault::None);
}

/// Mutant: the handler's count may become visible after it has looked for the batch. The two
/// sides are the store-buffer pattern, which only a full fence forbids (Intel SDM volume 3,
/// "Loads May Be Reordered with Earlier Stores to Different Locations").
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_handler_without_its_fence() {
    Model { handling: Fault::Fences, ..Model::SOUND }.explore();
}

/// Mutant: the batch may still be found after its owner has looked for readers.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_withdrawal_without_its_fence() {
    Model { patching: Fault::Fences, ..Model::SOUND }.explore();
}

/// Mutant: `apply` returns while a handler reads the batch.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_withdrawal_that_waits_for_nobody() {
    Model { patching: Fault::Wait, ..Model::SOUND }.explore();
}

/// Mutant: a handler's reads of the batch may still be under way when its count is taken
/// back.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_handler_that_does_not_release() {
    Model { handling: Fault::Release, ..Model::SOUND }.explore();
}

/// Mutant: the owner sees the count go, but not the reads before it end.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_withdrawal_that_does_not_acquire() {
    Model { patching: Fault::Acquire, ..Model::SOUND }.explore();
}

/// Mutant: a handler finds a batch before its pokes are visible.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_publication_that_does_not_release() {
    foreign_breakpoint(Fault::Release, Fault::None);
}

/// Mutant: a handler reads the pokes ahead of the pointer to them.
#[test]
#[should_panic(expected = "Causality violation")]
fn mutant_handler_that_does_not_acquire() {
    foreign_breakpoint(Fault::None, Fault::Acquire);
}

/// Mutant: the handler looks for the batch of the `int3` that it has just read, but does not
/// see that it was published.
#[test]
#[should_panic(expected = "our own trap was passed on")]
fn mutant_handler_without_its_fence_before_the_second_look() {
    Model { second: 0, handling: Fault::AcquireFences, ..Model::SOUND }.explore();
}
