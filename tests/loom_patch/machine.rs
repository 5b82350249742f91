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
//!   bytes of a site whose protocol stores them together are one atomic.
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

use std::sync::Arc;

use fentry::addr::PatchSite;
use fentry::patch::{Batch, Poke, Protocol, Resume, SITE_LEN, TrapResolver};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering, fence};
use loom::thread;

use crate::plan::{Break, CALL, CALL_DISTANCE, NOP, Plan, Seen};
use crate::text::{Memory, Wires};

/// How many sites a machine has, and where.
pub const SITES: [u64; 2] = [0x1000, 0x1010];

/// The first two bytes of a site: one unit of visibility, or two.
pub enum Head {
    Pair(AtomicU16),
    Bytes([AtomicU8; 2]),
}

/// The five bytes of a site, as the coherent memory holds them.
pub struct Site {
    pub head: Head,
    tail: [AtomicU8; 3],
}

impl Site {
    fn new(bytes: [u8; SITE_LEN], paired: bool) -> Self {
        let [first, second, tail @ ..] = bytes;
        let head = if paired {
            Head::Pair(AtomicU16::new(u16::from_le_bytes([first, second])))
        } else {
            Head::Bytes([AtomicU8::new(first), AtomicU8::new(second)])
        };
        Self { head, tail: tail.map(AtomicU8::new) }
    }

    /// All five bytes, once everything that was stored is visible to the caller.
    fn bytes(&self) -> [u8; SITE_LEN] {
        let [first, second] = match &self.head {
            Head::Pair(pair) => pair.load(Ordering::Relaxed).to_le_bytes(),
            Head::Bytes([first, second]) => [first, second].map(|at| at.load(Ordering::Relaxed)),
        };
        let [third, fourth, fifth] = [0, 1, 2].map(|at| self.tail[at].load(Ordering::Relaxed));
        [first, second, third, fourth, fifth]
    }

    pub fn store(&self, offset: usize, byte: u8, order: Ordering) {
        match (&self.head, offset) {
            (Head::Bytes(head), 0 | 1) => head[offset].store(byte, order),
            (Head::Pair(_), 0 | 1) => panic!("one byte of a pair was stored"),
            (_, offset) => self.tail[offset - 2].store(byte, order),
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
    traps: TrapResolver,
    /// The batch has returned. Relaxed, so that seeing it synchronises nothing.
    over: AtomicBool,
    seen: Arc<Seen>,
}

impl Machine {
    /// Fetches the instruction at `site`, as the core whose `boundary` is held.
    fn fetch(&self, site: &Site) -> Fetched {
        let load = |byte: &AtomicU8| byte.load(Ordering::Relaxed);
        let [first, second] = match &site.head {
            Head::Pair(pair) => pair.load(Ordering::Relaxed).to_le_bytes(),
            Head::Bytes([first, second]) => match load(first) {
                0xcc => return Fetched::Trap,
                byte => [byte, load(second)],
            },
        };
        if [first, second] == [0xeb, 3] {
            return Fetched::Jump;
        }
        let [third, fourth, fifth] = [0, 1, 2].map(|at| load(&site.tail[at]));
        Fetched::Whole([first, second, third, fourth, fifth])
    }

    /// One core's life: it executes its sites, one after the other.
    fn run(&self, core: usize) {
        let plan = &self.plan;
        // Set once the core knows that the batch is over, from then on with certainty.
        let mut over = false;
        for &at in plan.cores[core] {
            over |= self.over.load(Ordering::Relaxed);
            let fetched = {
                let _boundary = self.cores[core].boundary.lock();
                self.fetch(&self.sites[at])
            };
            match fetched {
                Fetched::Whole(bytes) if bytes == plan.new => {
                    self.seen.new.up();
                    assert!(at < plan.heads(), "new instruction at a site that never got it");
                    let taken_back = over && !plan.lands() && !plan.sticks();
                    assert!(!taken_back, "new instruction after it was taken back");
                }
                Fetched::Whole(bytes) if bytes == plan.old => {
                    self.seen.old.up();
                    assert!(!over || !plan.lands(), "old instruction after the batch");
                }
                Fetched::Whole(bytes) => panic!("torn instruction {bytes:02x?}"),
                Fetched::Jump => {
                    self.seen.guard.up();
                    assert_eq!(plan.protocol, Protocol::ShortJump);
                    assert!(!over || plan.sticks(), "guard after the batch");
                }
                Fetched::Trap => {
                    self.seen.guard.up();
                    assert_eq!(plan.protocol, Protocol::Breakpoint);
                    assert!(!over, "guard after the batch");
                    fence(Ordering::Acquire);
                    over |= self.trap(at);
                }
            }
        }
    }

    /// A core's trap handler. Returns whether it learned that the batch is over.
    fn trap(&self, at: usize) -> bool {
        let site = SITES[at];
        let Head::Bytes([first, _]) = &self.sites[at].head else { panic!("no such guard") };
        let end = site + SITE_LEN as u64;
        match self.traps.resolve(site, || first.load(Ordering::Relaxed)) {
            Resume::Call { target, return_to } if self.plan.new == CALL => {
                assert_eq!((target, return_to), (end + CALL_DISTANCE, end));
            }
            Resume::At(next) if self.plan.new == NOP => assert_eq!(next, end),
            Resume::Retry => {
                self.seen.retried.up();
                return true;
            }
            Resume::NotOurs => panic!("our own trap was passed on"),
            other => panic!("resumed with {other:x?}"),
        }
        self.seen.emulated.up();
        false
    }
}

/// One execution of the model.
pub fn execute(plan: Plan, seen: Arc<Seen>) {
    let paired = plan.protocol == Protocol::ShortJump && plan.breaks != Break::Split;
    let machine = Arc::new(Machine {
        plan,
        sites: (0..plan.sites).map(|_| Site::new(plan.old, paired)).collect(),
        cores: plan.cores.iter().map(|_| Core { boundary: Mutex::new(()) }).collect(),
        traps: TrapResolver::new(),
        over: AtomicBool::new(false),
        seen,
    });
    let cores = (0..plan.cores.len()).map(|core| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || machine.run(core))
    });
    let cores: Vec<_> = cores.collect();
    let mut text = Memory::new(Arc::clone(&machine));
    let mut wires = Wires::new(Arc::clone(&machine));
    let mut pokes: Vec<_> = (0..plan.sites)
        .map(|site| Poke::new(PatchSite::new(SITES[site]), plan.old, plan.new))
        .collect();
    let batch = Batch::new(plan.protocol, &mut pokes);
    // SAFETY: nobody else writes to the machine's text, a nop or a call is one
    // instruction, and every trap of the machine asks its one resolver.
    let applied = unsafe { batch.apply(&mut text, &mut wires, &machine.traps) };
    machine.over.store(true, Ordering::Relaxed);
    plan.judge(applied);
    for core in cores {
        core.join().unwrap();
    }
    let stands = if plan.lands() { plan.new } else { plan.old };
    for site in &machine.sites {
        assert!(plan.sticks() || site.bytes() == stands, "{:02x?} was left", site.bytes());
    }
}
