//! A machine: functions, cores that call them, and what they find there.
//!
//! What it rests on:
//! - A core may see a patch site as it was at any moment since it last synchronised. That it
//!   sees whole instructions is what `loom_patch` shows of the same batches, so here a fetch
//!   is one relaxed load of the whole site.
//! - A core may be interrupted between two instructions, and is then in emitted code or
//!   outside. It is inside from the moment at which it fetches a branch there. So where a core
//!   is stands behind its [`place`](Core::place), which it holds while it fetches a site, and
//!   to synchronise it is to hold that once. A trap is handled with interrupts disabled: it
//!   holds it, too.
//! - Emitted code loads slots and cookies with loads that order nothing.
//!
//! That a core has left an image is an access of the place, too: what it has loaded and called
//! there happened before.

use core::sync::atomic as plain;
use std::collections::BTreeMap;
use std::sync::{self, Arc};

use fentry::addr::Entry;
use fentry::emit::x86_64::THUNK_JUMP;
use fentry::patch::{Protocol, Resume, SITE_LEN, TrapResolver};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use crate::body::{self, Step, Thunk};
use crate::operator::Operator;
use crate::parts::Reservation;
use crate::plan::{Plan, Run, Seen};

/// How many functions a machine has.
pub const FUNCTIONS: usize = 3;
/// How many programs it has.
pub const PROGRAMS: usize = 3;
/// The five-byte nop.
pub const NOP: [u8; SITE_LEN] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// The padding where a slot goes.
pub const PADDING: [u8; SITE_LEN] = [0x90; SITE_LEN];

/// Where a function is.
pub const fn entry(function: usize) -> Entry {
    Entry::new(0x1000_0010 + 0x40 * function as u64)
}

/// Where a program is.
pub const fn program(number: usize) -> u64 {
    0x1900_0000 + 0x100 * number as u64
}

loom::lazy_static! {
    pub static ref TRAPS: TrapResolver = TrapResolver::new();
}

/// Where a core is, and what it must not call any more.
#[derive(Default)]
pub struct Place {
    /// The emitted code that it executes.
    pub at: Option<u64>,
    /// The exit thunk that the function which it executes will return to.
    pub returns_to: Option<u64>,
    /// Functions whose text is gone.
    pub unloaded: [bool; FUNCTIONS],
}

/// Where a patch site leads.
enum Leads {
    /// To the function's own body.
    On,
    /// To an image, and back.
    Call(u64),
    /// To an exit thunk.
    Jump(u64),
}

/// One core.
#[derive(Default)]
pub struct Core {
    pub place: Mutex<Place>,
    /// It is somewhere else now.
    pub moved: Condvar,
}

impl Core {
    /// It executes this from here on, in a function that returns there.
    fn go(&self, at: Option<u64>, returns_to: Option<u64>) {
        let mut place = self.place.lock().unwrap();
        (place.at, place.returns_to) = (at, returns_to);
        drop(place);
        self.moved.notify_one();
    }
}

/// Memory that is somebody's at first and at last, and in between is read by others. Loom fails
/// a reader for whom it is not certain that it is in between.
pub struct Lent(UnsafeCell<()>);

// SAFETY: the cell holds nothing; that its accesses may race is what loom checks.
unsafe impl Sync for Lent {}

impl Lent {
    pub fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    pub fn read(&self) {
        self.0.with(|_| ());
    }

    pub fn taken_back(&self) {
        self.0.with_mut(|_| ());
    }
}

/// Emitted code that was written at once: an image or a thunk.
pub struct Code {
    pub memory: Lent,
    pub bytes: Vec<u8>,
    /// The jump of an entry thunk, which is a patch site like any other.
    pub jump: Option<AtomicU64>,
}

/// Text, cores, images, tables and programs.
pub struct Machine {
    pub plan: Plan,
    /// The bytes of each patch site and of each slot, the first one lowest.
    pub sites: [AtomicU64; FUNCTIONS],
    pub slots: [AtomicU64; FUNCTIONS],
    pub cores: Vec<Core>,
    /// The emitted code there is, by its addresses. It is what it is at once, for everybody.
    pub code: sync::Mutex<BTreeMap<u64, Arc<Code>>>,
    pub tables: sync::Mutex<Vec<Reservation>>,
    /// Each program's data, which goes when it is retired.
    pub programs: [Lent; PROGRAMS],
    /// Twice the number of changes that are over, and one more while there is one: no part of
    /// the model, but what has come to pass in this execution.
    pub changes: plain::AtomicUsize,
    seen: Arc<Seen>,
}

/// Five bytes as a number.
pub fn packed([a, b, c, d, e]: [u8; SITE_LEN]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
}

impl Machine {
    /// Where the patch site at `site` leads the core that executes it now.
    fn fetch(&self, site: u64, seen: &AtomicU64) -> Leads {
        let behind = site + SITE_LEN as u64;
        loop {
            let bytes = seen.load(Ordering::Relaxed).to_le_bytes();
            let [opcode, distance @ .., _, _, _] = bytes;
            let target = behind.wrapping_add_signed(i32::from_le_bytes(distance).into());
            match (opcode, bytes) {
                (_, [0x0f, 0x1f, 0x44, 0x00, 0x00, ..] | [0xeb, 3, ..]) => return Leads::On,
                (0xe8, _) => return Leads::Call(target),
                (0xe9, _) => return Leads::Jump(target),
                (0xcc, _) => {
                    fence(Ordering::Acquire);
                    let first = || seen.load(Ordering::Relaxed) as u8;
                    match TRAPS.resolve(site, first) {
                        Resume::Call { target, return_to } if return_to == behind => {
                            return Leads::Call(target);
                        }
                        Resume::At(next) if next == behind => return Leads::On,
                        Resume::At(target) => return Leads::Jump(target),
                        Resume::Retry => {}
                        other => panic!("resumed with {other:x?}"),
                    }
                }
                _ => panic!("no instruction: {bytes:02x?}"),
            }
        }
    }

    /// The emitted code that `address` is in, and where it begins, for a core that executes it.
    fn code_at(&self, address: u64) -> (u64, Arc<Code>) {
        let all = self.code.lock().unwrap();
        let last = all.range(..=address).next_back().map(|(&at, code)| (at, Arc::clone(code)));
        let code = last.filter(|(at, code)| address - at < code.bytes.len() as u64);
        let code = code.unwrap_or_else(|| panic!("a core is in memory that is no code"));
        code.1.memory.read();
        code
    }

    /// Executes the body at `address` for `function`, whose index may be known.
    fn execute(&self, address: u64, function: usize, mut index: Option<u64>, runs: &mut Vec<Run>) {
        let (start, code) = self.code_at(address);
        let back = self.plan.layout.return_address(entry(function)).get();
        let mut cookie = None;
        for step in body::steps(&code.bytes, start, address) {
            code.memory.read();
            match step {
                Step::Index { before_return } => {
                    let slot = self.plan.layout.slot(entry(function)).unwrap().get();
                    assert_eq!(back - before_return, slot + 1, "the index is read elsewhere");
                    let bytes = self.slots[function].load(Ordering::Relaxed);
                    index = Some(bytes >> 8);
                }
                Step::Cookie { column, stride } => {
                    let index = index.expect("the index is loaded before the cookie");
                    cookie = Some(self.load_cookie(column + stride * index));
                }
                Step::Call { program: target } => {
                    let number = (0..PROGRAMS).find(|&number| program(number) == target).unwrap();
                    self.programs[number].read();
                    runs.push((number, cookie.take().expect("a program has a cookie")));
                }
            }
        }
        code.memory.read();
    }

    /// Executes what the patch site of `function` calls: an image, or an entry thunk that may
    /// jump to one.
    fn execute_called(&self, core: &Core, address: u64, function: usize, runs: &mut Vec<Run>) {
        let (start, code) = self.code_at(address);
        let Some(jump) = &code.jump else {
            return self.execute(address, function, None, runs);
        };
        let leads = {
            let mut place = core.place.lock().unwrap();
            let leads = self.fetch(start + THUNK_JUMP as u64, jump);
            if let Leads::Jump(image) = leads {
                place.at = Some(image);
            }
            leads
        };
        if let Leads::Jump(image) = leads {
            let index = body::entry_thunk(&code.bytes, start);
            self.execute(image, function, Some(index), runs);
        }
    }

    /// Executes the exit thunk at `address`: what runs before the function, the function, and
    /// what runs after it.
    fn execute_thunk(&self, core: &Core, address: u64, function: usize, runs: &mut Vec<Run>) {
        let (start, code) = self.code_at(address);
        let Thunk { index, enter, origin, exit } = body::exit_thunk(&code.bytes, start);
        assert_eq!(origin, self.plan.layout.origin(entry(function)).get());
        self.execute(enter, function, Some(index), runs);
        core.go(None, Some(address));
        code.memory.read();
        core.go(Some(exit), None);
        self.execute(exit, function, Some(index), runs);
    }

    /// Loads the cookie at `address`.
    fn load_cookie(&self, address: u64) -> u64 {
        let known = self.tables.lock().unwrap().iter().any(|table| table.read(address));
        assert!(known, "a cookie in memory that is not committed");
        // SAFETY: the memory is committed, for a record or for a column of cookies, as emitted
        // code loads from nothing else.
        unsafe { fentry::load_cookie(address) }
    }

    /// Calls a function as `core`, if it is still there.
    fn call(&self, core: usize, function: usize) {
        let core = &self.cores[core];
        let (from, leads) = {
            let mut place = core.place.lock().unwrap();
            if place.unloaded[function] {
                return;
            }
            let from = self.changes.load(Ordering::Relaxed) / 2;
            let site = self.plan.layout.site(entry(function)).get();
            let leads = self.fetch(site, &self.sites[function]);
            place.at = match leads {
                Leads::On => None,
                Leads::Call(target) | Leads::Jump(target) => Some(target),
            };
            (from, leads)
        };
        let mut runs = Vec::new();
        match leads {
            Leads::On => {}
            Leads::Call(code) => self.execute_called(core, code, function, &mut runs),
            Leads::Jump(thunk) => self.execute_thunk(core, thunk, function, &mut runs),
        }
        if !matches!(leads, Leads::On) {
            core.go(None, None);
        }
        let to = self.changes.load(Ordering::Relaxed).div_ceil(2);
        let lists = &self.plan.lists[from..=to];
        // The short jump lets a call pass while an image becomes another in three passes.
        let passes = from < to
            && runs.is_empty()
            && self.plan.protocol == Protocol::ShortJump
            && !self.plan.one_store;
        assert!(
            passes || lists.iter().any(|lists| lists[function] == runs),
            "a call of function {function} after change {from} and before {to} ran {runs:?}"
        );
        self.seen.call(function, runs);
    }

    /// One core's life.
    fn run(&self, core: usize) {
        for &function in self.plan.cores[core] {
            self.call(core, function);
        }
    }
}

/// Words of stack of the thread that changes: the engine keeps a list of classes by value.
const STACK: usize = 0x8000;

/// One execution of the model.
pub fn execute(plan: Plan, seen: Arc<Seen>) {
    let machine = Arc::new(Machine {
        plan,
        sites: core::array::from_fn(|_| AtomicU64::new(packed(NOP))),
        slots: core::array::from_fn(|_| AtomicU64::new(packed(PADDING))),
        cores: plan.cores.iter().map(|_| Core::default()).collect(),
        code: sync::Mutex::default(),
        tables: sync::Mutex::default(),
        programs: core::array::from_fn(|_| Lent::new()),
        changes: plain::AtomicUsize::new(0),
        seen,
    });
    let changing = {
        let machine = Arc::clone(&machine);
        let change = move || (plan.script)(&mut Operator::new(machine));
        thread::Builder::new().stack_size(STACK).spawn(change).unwrap()
    };
    let others = (1..plan.cores.len()).map(|core| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || machine.run(core))
    });
    let others: Vec<_> = others.collect();
    machine.run(0);
    for thread in others {
        thread.join().unwrap();
    }
    changing.join().unwrap();
}
