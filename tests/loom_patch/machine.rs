//! A machine: text, and cores that execute it while one of them patches it.
//!
//! What it rests on:
//! - A core's instruction fetch may give old bytes and new ones mixed until the core has
//!   executed a serialising instruction (Intel SDM volume 3, "Handling Self- and
//!   Cross-Modifying Code"). So a fetch is one *relaxed* load for each byte: loom has it give
//!   any value that was stored since the core last synchronised, byte by byte.
//! - An aligned store within 8 bytes is one (Intel SDM volume 3, "Guaranteed Atomic
//!   Operations"), and a fetch sees all of it or nothing (AMD APM volume 2, "Cross-Modifying
//!   Code", asynchronous modification; Intel's manual speaks of data only). So the first two
//!   bytes of a site whose protocol stores them together are one atomic. Where the embedder
//!   stores a whole site in one access, so are all five, beside those that are stored apart: of
//!   what a fetch sees of both, each byte is the one that was stored later.
//! - An interrupt is taken between two instructions, and `iret` serialises (Intel SDM volume
//!   3, "Serializing Instructions"). So a core holds its [`boundary`](Core::boundary) while
//!   it fetches, and to synchronise it is to hold that once.
//! - Stores become visible in program order (Intel SDM volume 3, "Memory Ordering in P6 and
//!   More Recent Processor Families"), and a core that trapped loads what its handler loads
//!   after it fetched the `int3`. So stores to text release, and a trap is an acquire fence.
//!
//! What one core acquires in a trap reaches another through the resolver's count of readers,
//! and makes that one's fetches less stale than they could be. So whatever is said of a
//! single core is explored with one; two are there for what they share.

use core::ops::Range;
use std::sync::Arc;

use fentry::addr::PatchSite;
use fentry::patch::{Batch, Poke, Protocol, Resume, SITE_LEN, TrapResolver};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use loom::thread;

use crate::plan::{Break, CALL, CALL_DISTANCE, NOP, Plan, Seen};
use crate::text::{Memory, Wires};

/// How many sites a machine has, and where.
pub const SITES: [u64; 2] = [0x1000, 0x1010];

/// Bytes that are visible at once or not at all, and the number of the store to their site that
/// they are from, above them.
pub struct Unit(AtomicU64);

impl Unit {
    pub fn new(bytes: &[u8]) -> Self {
        Self(AtomicU64::new(Self::packed(0, bytes)))
    }

    fn packed(number: u64, bytes: &[u8]) -> u64 {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(all) | number << 40
    }

    pub fn store(&self, number: u64, bytes: &[u8], order: Ordering) {
        self.0.store(Self::packed(number, bytes), order);
    }

    /// Which store is seen, and its bytes.
    pub fn load(&self) -> (u64, [u8; SITE_LEN]) {
        let value = self.0.load(Ordering::Relaxed);
        let [bytes @ .., _, _, _] = value.to_le_bytes();
        (value >> 40, bytes)
    }
}

/// The first two bytes of a site: one unit, or two.
pub enum Head {
    Pair(Unit),
    Bytes([Unit; 2]),
}

/// The five bytes of a site, as the coherent memory holds them.
pub struct Site {
    pub head: Head,
    tail: [Unit; 3],
    /// All five, if they can be stored at once.
    pub whole: Option<Unit>,
}

impl Site {
    fn new(bytes: [u8; SITE_LEN], paired: bool, whole: bool) -> Self {
        let [head @ .., _, _, _] = &bytes;
        let head = if paired {
            Head::Pair(Unit::new(head))
        } else {
            Head::Bytes(head.map(|byte| Unit::new(&[byte])))
        };
        let tail = [2, 3, 4].map(|at| Unit::new(&[bytes[at]]));
        Self { head, tail, whole: whole.then(|| Unit::new(&bytes)) }
    }

    /// What the caller sees of the store of the whole site.
    fn whole(&self) -> (u64, [u8; SITE_LEN]) {
        self.whole.as_ref().map_or((0, [0; SITE_LEN]), Unit::load)
    }

    /// What the caller sees at `at`, which is in `unit` at `within`, beside the whole site.
    fn byte(unit: &Unit, within: usize, whole: (u64, [u8; SITE_LEN]), at: usize) -> u8 {
        let (number, bytes) = unit.load();
        if number >= whole.0 { bytes[within] } else { whole.1[at] }
    }

    fn first(&self) -> u8 {
        let whole = self.whole();
        match &self.head {
            Head::Pair(pair) => Self::byte(pair, 0, whole, 0),
            Head::Bytes([first, _]) => Self::byte(first, 0, whole, 0),
        }
    }

    /// What a core fetches that executes the site.
    fn fetch(&self) -> Fetched {
        let whole = self.whole();
        let [first, second] = match &self.head {
            Head::Pair(pair) => {
                let (number, bytes) = pair.load();
                let [bytes @ .., _, _, _] = if number >= whole.0 { bytes } else { whole.1 };
                bytes
            }
            Head::Bytes([first, second]) => match Self::byte(first, 0, whole, 0) {
                0xcc => return Fetched::Trap,
                byte => [byte, Self::byte(second, 0, whole, 1)],
            },
        };
        if [first, second] == [0xeb, 3] {
            return Fetched::Jump;
        }
        let [third, fourth, fifth] =
            [0, 1, 2].map(|at| Self::byte(&self.tail[at], 0, whole, 2 + at));
        Fetched::Whole([first, second, third, fourth, fifth])
    }

    /// Stores one byte, by itself.
    pub fn store(&self, number: u64, offset: usize, byte: u8, order: Ordering) {
        match (&self.head, offset) {
            (Head::Bytes(head), 0 | 1) => head[offset].store(number, &[byte], order),
            (Head::Pair(_), 0 | 1) => panic!("one byte of a pair was stored"),
            (_, offset) => self.tail[offset - 2].store(number, &[byte], order),
        }
    }
}

/// What stood at a site that a core fetched.
enum Fetched {
    /// `int3`: the bytes behind it are not decoded.
    Trap,
    /// `jmp rel8` to the site's end: the bytes behind it are not decoded.
    Jump,
    /// Five bytes that were decoded.
    Whole([u8; SITE_LEN]),
}

/// One core.
pub struct Core {
    /// Held while an instruction is fetched.
    pub boundary: Mutex<()>,
}

/// Text, cores, and what the model has seen.
pub struct Machine {
    pub plan: Plan,
    pub sites: Vec<Site>,
    pub cores: Vec<Core>,
    /// What a trap handler asks, in turn.
    traps: Vec<TrapResolver>,
    /// How many batches have returned that had the site. Relaxed, so that seeing it
    /// synchronises nothing.
    over: Vec<AtomicUsize>,
    seen: Arc<Seen>,
}

impl Machine {
    /// One core's life: it executes its sites, one after the other.
    fn run(&self, core: usize) {
        let plan = &self.plan;
        let batches = plan.stages.len() - 1;
        // How many batches of each site the core knows to be over, from then on with certainty.
        let mut over = [0; SITES.len()];
        for &at in plan.cores[core] {
            over[at] = over[at].max(self.over[at].load(Ordering::Relaxed));
            let fetched = {
                let _boundary = self.cores[core].boundary.lock();
                self.sites[at].fetch()
            };
            let done = over[at] == batches;
            match fetched {
                Fetched::Whole(bytes) => {
                    let is_it = |stage: &[u8; SITE_LEN]| *stage == bytes;
                    let latest = plan.stages.iter().rposition(is_it);
                    let latest = latest.unwrap_or_else(|| panic!("torn instruction {bytes:02x?}"));
                    self.seen.stages[plan.stages.iter().position(is_it).unwrap()].up();
                    if plan.breaks.lands() {
                        assert!(latest >= over[at], "old instruction after the batch");
                    } else if latest == 1 {
                        assert!(at < plan.heads(), "new instruction at a site that never got it");
                        assert!(
                            !done || plan.breaks.sticks(),
                            "new instruction after it was taken back"
                        );
                    }
                }
                Fetched::Jump => {
                    self.seen.guard.up();
                    assert_eq!(plan.protocol, Protocol::ShortJump);
                    assert!(!done || plan.breaks.sticks(), "guard after the batch");
                }
                Fetched::Trap => {
                    self.seen.guard.up();
                    assert_eq!(plan.protocol, Protocol::Breakpoint);
                    assert!(!done, "guard after the batch");
                    fence(Ordering::Acquire);
                    over[at] = self.trap(at, over[at]);
                }
            }
        }
    }

    /// A core's trap handler, when so many batches are known to be over. Returns how many are
    /// known to be over then.
    fn trap(&self, at: usize, over: usize) -> usize {
        let ask = |traps: &TrapResolver| traps.resolve(SITES[at], || self.sites[at].first());
        let told = self.traps.iter().map(ask).find(|told| *told != Resume::NotOurs);
        match told {
            Some(Resume::Retry) => {
                self.seen.retried.up();
                over + 1
            }
            Some(told) => {
                self.seen.emulated.up();
                let as_one_of = &self.plan.stages[over + 1..];
                let right = as_one_of.iter().any(|new| told == behaviour(*new, SITES[at]));
                assert!(right, "resumed with {told:x?}");
                over
            }
            None => panic!("our own trap was passed on"),
        }
    }

    /// Applies the batches of these sites, one after the other, as the patching thread of this
    /// number.
    fn patch(self: &Arc<Self>, sites: Range<usize>, thread: usize) {
        let plan = &self.plan;
        let mut text = Memory::new(Arc::clone(self));
        let mut wires = Wires::new(Arc::clone(self), thread);
        for (before, change) in plan.stages.windows(2).enumerate() {
            let mut pokes: Vec<_> = sites
                .clone()
                .map(|site| Poke::new(PatchSite::new(SITES[site]), change[0], change[1]))
                .collect();
            let batch = Batch::new(plan.protocol, &mut pokes);
            let traps = &self.traps[thread.min(self.traps.len() - 1)];
            // SAFETY: nobody else writes to these sites, each stage is one instruction, and
            // every trap of the machine asks this resolver.
            let applied = unsafe { batch.apply(&mut text, &mut wires, traps) };
            for site in sites.clone() {
                self.over[site].store(before + 1, Ordering::Relaxed);
            }
            plan.breaks.judge(applied);
        }
    }
}

/// What `instruction` at `site` does.
fn behaviour(instruction: [u8; SITE_LEN], site: u64) -> Resume {
    let end = site + SITE_LEN as u64;
    match instruction {
        NOP => Resume::At(end),
        CALL => Resume::Call { target: end + CALL_DISTANCE, return_to: end },
        _ => panic!("no trap is resolved as this"),
    }
}

/// One execution of the model.
pub fn execute(plan: Plan, seen: Arc<Seen>) {
    let paired = plan.protocol == Protocol::ShortJump && plan.breaks != Break::Split;
    let resolvers = if plan.breaks == Break::OneResolver { 1 } else { plan.threads() };
    let site = |_| Site::new(plan.stages[0], paired, plan.one_store);
    let machine = Arc::new(Machine {
        plan,
        sites: (0..plan.sites).map(site).collect(),
        cores: plan.cores.iter().map(|_| Core { boundary: Mutex::new(()) }).collect(),
        traps: (0..resolvers).map(|_| TrapResolver::new()).collect(),
        over: (0..plan.sites).map(|_| AtomicUsize::new(0)).collect(),
        seen,
    });
    let cores = (0..plan.cores.len()).map(|core| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || machine.run(core))
    });
    let mut others: Vec<_> = cores.collect();
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
    let stages = plan.stages;
    let stands = if plan.breaks.lands() { stages[stages.len() - 1] } else { stages[0] };
    for site in &machine.sites {
        let left = matches!(site.fetch(), Fetched::Whole(bytes) if bytes == stands);
        assert!(plan.breaks.sticks() || left, "something else was left");
    }
}
