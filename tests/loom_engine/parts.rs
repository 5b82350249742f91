//! The embedder's parts over a machine, with what breaks in it.

use core::alloc::Layout;
use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt::{self, Display};
use core::ops::Range;
use core::ptr::NonNull;
use std::alloc::{alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Arc;

use fentry::attach::{Embedder, ImageMemory, Parts, Region};
use fentry::emit::x86_64::{SideStackPlace, THUNK_JUMP, THUNK_SIZE};
use fentry::metadata::TableMemory;
use fentry::patch::{Cores, Poke, SITE_LEN, Text};
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{Code, FUNCTIONS, Lent, Machine, NOP, PADDING, entry, packed};
use crate::plan::Break;

/// The machine's embedder.
#[derive(Debug)]
pub struct World;

/// What a synchronisation reports that was told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldToFail;

impl Display for ToldToFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("told to fail")
    }
}

impl From<Infallible> for ToldToFail {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Embedder for World {
    type Error = ToldToFail;
    type Text = Memory;
    type Cores = Wires;
    type Images = Images;
    type Tables = Tables;
}

/// The parts of one machine.
pub fn parts(machine: &Arc<Machine>) -> Parts<World> {
    Parts {
        text: Memory {
            machine: Arc::clone(machine),
            sites: [NOP; FUNCTIONS],
            slots: [PADDING; FUNCTIONS],
            jumps: BTreeMap::new(),
        },
        cores: Wires { machine: Arc::clone(machine), calls: 0 },
        images: Images { machine: Arc::clone(machine), next: 0x1800_0000 },
        tables: Tables { machine: Arc::clone(machine) },
        side_stack: Some(SideStackPlace { thread_offset: -8, make: None }),
    }
}

/// The machine's text, as the thread that changes it reads it.
pub struct Memory {
    machine: Arc<Machine>,
    sites: [[u8; SITE_LEN]; FUNCTIONS],
    slots: [[u8; SITE_LEN]; FUNCTIONS],
    /// The jumps of entry thunks, by where they are; those that are not here are nops.
    jumps: BTreeMap<u64, [u8; SITE_LEN]>,
}

/// Which five bytes, and what is at an address there.
enum Place {
    Site(usize),
    Slot(usize),
    /// The jump at this address.
    Jump(u64),
}

impl Memory {
    /// What `address` is in, and how far behind its start.
    fn locate(&self, address: u64) -> (Place, usize) {
        let layout = self.machine.plan.layout;
        let within = |start: u64| address.checked_sub(start).filter(|&offset| offset < 5);
        for function in 0..FUNCTIONS {
            if let Some(offset) = within(layout.site(entry(function)).get()) {
                return (Place::Site(function), offset as usize);
            }
            let slot = layout.slot(entry(function));
            if let Some(offset) = slot.and_then(|slot| within(slot.get())) {
                return (Place::Slot(function), offset as usize);
            }
        }
        let jump = address - address % THUNK_SIZE as u64 + THUNK_JUMP as u64;
        (Place::Jump(jump), within(jump).expect("no site and no slot is there") as usize)
    }

    fn store(&mut self, address: u64, bytes: &[u8]) {
        let (place, offset) = self.locate(address);
        let Self { machine, sites, slots, jumps } = self;
        let store = |all: &mut [u8; SITE_LEN], seen: &AtomicU64| {
            all[offset..][..bytes.len()].copy_from_slice(bytes);
            seen.store(packed(*all), Ordering::Release);
        };
        match place {
            Place::Site(function) => store(&mut sites[function], &machine.sites[function]),
            Place::Slot(function) => store(&mut slots[function], &machine.slots[function]),
            Place::Jump(jump) => {
                let thunk = jump - THUNK_JUMP as u64;
                let thunk = Arc::clone(&machine.code.lock().unwrap()[&thunk]);
                let seen = thunk.jump.as_ref().expect("an entry thunk has a jump");
                store(jumps.entry(jump).or_insert(NOP), seen);
            }
        }
    }
}

// SAFETY: a site, a slot and a jump are one atomic each, whose stores release.
unsafe impl Text for Memory {
    type Error = Infallible;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Infallible> {
        let bytes = match self.locate(address) {
            (Place::Site(function), 0) => self.sites[function],
            (Place::Slot(function), 0) => self.slots[function],
            (Place::Jump(jump), 0) => self.jumps.get(&jump).copied().unwrap_or(NOP),
            _ => panic!("what is read begins elsewhere"),
        };
        Ok(bytes[..N].try_into().unwrap())
    }

    fn open(&mut self, _: &[Poke]) -> Result<(), Infallible> {
        Ok(())
    }

    fn close(&mut self) {}

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Infallible> {
        self.store(address, &[byte]);
        Ok(())
    }

    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), Infallible> {
        self.store(address, &bytes);
        Ok(())
    }

    fn can_store_site(&self, _: u64) -> bool {
        self.machine.plan.one_store
    }

    unsafe fn store_site(&mut self, address: u64, bytes: [u8; 5]) -> Result<(), Infallible> {
        self.store(address, &bytes);
        Ok(())
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Infallible> {
        self.store(address, &bytes);
        Ok(())
    }
}

/// What interrupts the machine's cores.
pub struct Wires {
    machine: Arc<Machine>,
    calls: usize,
}

// SAFETY: a core whose place was held since has not fetched in between, and what it fetches
// next happens after that. The mutants break that on purpose.
unsafe impl Cores for Wires {
    type Error = ToldToFail;

    fn synchronise(&mut self) -> Result<(), ToldToFail> {
        self.calls += 1;
        match self.machine.plan.breaks {
            Break::Fail(number) if number == self.calls => return Err(ToldToFail),
            Break::Skip(number) if number == self.calls => {}
            Break::SkipFrom(number) if number <= self.calls => {}
            _ => {
                for core in &self.machine.cores {
                    drop(core.place.lock());
                }
            }
        }
        Ok(())
    }
}

/// The machine's memory for images and thunks. No address is given out twice.
pub struct Images {
    machine: Arc<Machine>,
    next: u64,
}

// SAFETY: images are within 256 MiB of all text, and an image is there until it is freed.
unsafe impl ImageMemory for Images {
    type Error = Infallible;

    fn allocate(&mut self, _: Region, size: usize) -> Result<u64, Infallible> {
        let address = self.next;
        self.next += size.next_multiple_of(64) as u64;
        Ok(address)
    }

    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Infallible> {
        let jump = (code.len() == THUNK_SIZE).then(|| AtomicU64::new(packed(NOP)));
        let code = Code { memory: Lent::new(), bytes: code.to_vec(), jump };
        self.machine.code.lock().unwrap().insert(address, Arc::new(code));
        Ok(())
    }

    unsafe fn free(&mut self, address: u64, size: usize) {
        self.machine.code.lock().unwrap().retain(|at, code| {
            let gone = (address..address + size as u64).contains(at);
            if gone {
                code.memory.taken_back();
            }
            !gone
        });
    }
}

/// Address space for one table, zeroed.
struct Block {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory.
unsafe impl Send for Block {}

impl Block {
    fn new(layout: Layout) -> Self {
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        Self { base, layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

thread_local! {
    /// Blocks of executions that are over: the system takes its time to make one.
    static SPARE: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// One reservation for a table.
pub struct Reservation {
    /// Until it is dropped.
    block: Option<Block>,
    /// What is committed, piece by piece. Nobody may read one that it does not know of.
    pieces: Vec<(Range<u64>, Lent)>,
}

impl Reservation {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 64).unwrap();
        let spare = SPARE.with_borrow_mut(|spare| {
            let fits = spare.iter().position(|block| block.layout == layout)?;
            Some(spare.swap_remove(fits))
        });
        let block = spare.unwrap_or_else(|| Block::new(layout));
        Self { block: Some(block), pieces: Vec::new() }
    }

    fn base(&self) -> NonNull<u8> {
        self.block.as_ref().expect("it is not dropped").base
    }

    /// Whether `address` is in a committed piece, which the caller reads.
    pub fn read(&self, address: u64) -> bool {
        let piece = self.pieces.iter().find(|(range, _)| range.contains(&address));
        piece.inspect(|(_, memory)| memory.read()).is_some()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for (range, _) in &self.pieces {
            let length = (range.end - range.start) as usize;
            // SAFETY: in the block, and the execution that used it is over.
            unsafe { (range.start as *mut u8).write_bytes(0, length) };
        }
        if let Some(block) = self.block.take() {
            SPARE.with_borrow_mut(|spare| spare.push(block));
        }
    }
}

/// The machine's memory for tables.
pub struct Tables {
    machine: Arc<Machine>,
}

// SAFETY: reservations are zeroed heap blocks, which never move.
unsafe impl TableMemory for Tables {
    type Error = Infallible;

    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Infallible> {
        let reservation = Reservation::new(bytes);
        let base = reservation.base();
        self.machine.tables.lock().unwrap().push(reservation);
        Ok(base)
    }

    unsafe fn commit(
        &mut self,
        base: NonNull<u8>,
        from: usize,
        to: usize,
    ) -> Result<(), Infallible> {
        let mut tables = self.machine.tables.lock().unwrap();
        let table = tables.iter_mut().find(|table| table.base() == base).unwrap();
        let at = |offset: usize| base.as_ptr() as u64 + offset as u64;
        table.pieces.push((at(from)..at(to), Lent::new()));
        Ok(())
    }

    unsafe fn release(&mut self, base: NonNull<u8>, _: usize) {
        self.machine.tables.lock().unwrap().retain(|table| table.base() != base);
    }
}
