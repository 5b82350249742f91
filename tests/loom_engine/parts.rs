//! The embedder's parts over a machine, with what breaks in it.

use core::alloc::Layout;
use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt::{self, Display};
use core::ops::Range;
use core::ptr::NonNull;
use std::alloc::{alloc_zeroed, dealloc};
use std::sync::Arc;

use fentry::attach::{Embedder, ImageMemory, Parts, Region};
use fentry::emit::x86_64::SideStackPlace;
use fentry::metadata::TableMemory;
use fentry::patch::{Cores, Poke, SITE_LEN, Text};
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{Code, FUNCTIONS, LAYOUT, Lent, Machine, NOP, PADDING, entry, packed};
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
}

impl Memory {
    /// The site or the slot that `address` is in: its bytes, where in them, and what the cores
    /// see.
    fn locate(&mut self, address: u64) -> (&mut [u8; SITE_LEN], usize, &AtomicU64) {
        let Self { machine, sites, slots } = self;
        for function in 0..FUNCTIONS {
            let site = LAYOUT.site(entry(function)).get();
            let slot = LAYOUT.slot(entry(function)).unwrap().get();
            if let Some(offset) = address.checked_sub(site).filter(|&offset| offset < 5) {
                return (&mut sites[function], offset as usize, &machine.sites[function]);
            }
            if let Some(offset) = address.checked_sub(slot).filter(|&offset| offset < 5) {
                return (&mut slots[function], offset as usize, &machine.slots[function]);
            }
        }
        panic!("{address:#x} is in no site and no slot")
    }

    fn store(&mut self, address: u64, bytes: &[u8]) {
        let (place, offset, seen) = self.locate(address);
        place[offset..][..bytes.len()].copy_from_slice(bytes);
        seen.store(packed(*place), Ordering::Release);
    }
}

// SAFETY: a site and a slot are one atomic each, whose stores release.
unsafe impl Text for Memory {
    type Error = Infallible;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Infallible> {
        let function = (0..FUNCTIONS).find(|&at| LAYOUT.site(entry(at)).get() == address);
        let slot_of = |at: &usize| LAYOUT.slot(entry(*at)).unwrap().get() == address;
        let bytes = match function {
            Some(function) => self.sites[function],
            None => self.slots[(0..FUNCTIONS).find(slot_of).unwrap()],
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
        let code = Code { memory: Lent::new(), bytes: code.to_vec() };
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
