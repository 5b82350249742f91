//! An embedder that is only numbers: text and images at made-up addresses, cores that count,
//! and a step that fails when it is told to.

use core::alloc::Layout;
use core::cell::{RefCell, RefMut};
use core::fmt;
use core::ptr::NonNull;
use std::alloc::{alloc_zeroed, dealloc};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use fentry::attach::{Embedder, ImageMemory, Parts, Region};
use fentry::emit::x86_64::Hardening;
use fentry::metadata::TableMemory;
use fentry::patch::{Cores, Poke, Text};

/// What a fake part reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step was told to fail.
    Injected { step: usize },
    /// Nothing is there.
    Unmapped { address: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Injected { step } => write!(f, "step {step} was told to fail"),
            Self::Unmapped { address } => write!(f, "nothing is at {address:#x}"),
        }
    }
}

/// Which steps fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    None,
    /// This one.
    At(usize),
    /// This one and every one after it.
    From(usize),
}

/// What the engine did that can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Open,
    Close,
    Store { address: u64, bytes: Vec<u8> },
    Synchronise,
    Allocate { region: Region, address: u64, size: usize },
    Free { address: u64 },
    Commit,
}

/// Table memory: real, because emitted code has its addresses.
#[derive(Debug)]
struct Reservation {
    block: NonNull<u8>,
    base: NonNull<u8>,
    bytes: usize,
    committed: usize,
}

impl Reservation {
    const ALIGN: usize = 64;

    /// An alignment that the allocator has without touching the memory.
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + Self::ALIGN, 16).unwrap()
    }

    fn new(bytes: usize) -> Self {
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { alloc_zeroed(Self::layout(bytes)) }).unwrap();
        let offset = block.as_ptr().align_offset(Self::ALIGN);
        // SAFETY: less than `ALIGN` bytes into a block that is so much larger.
        let base = unsafe { block.add(offset) };
        Self { block, base, bytes, committed: 0 }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.block.as_ptr(), Self::layout(self.bytes)) }
    }
}

#[derive(Debug)]
pub struct State {
    /// Text and images, by where they begin.
    memory: BTreeMap<u64, Vec<u8>>,
    /// Images, and how large they are.
    pub images: BTreeMap<u64, usize>,
    /// Where each region's next image goes. No address is ever given out twice.
    next_image: BTreeMap<u16, u64>,
    open: Option<BTreeSet<u64>>,
    pub failing: Failing,
    steps: usize,
    pub events: Vec<Event>,
    tables: Vec<Reservation>,
}

/// What memory held at some time.
pub struct Memory(BTreeMap<u64, Vec<u8>>);

impl Memory {
    /// Where another time's memory differs, or is gone.
    pub fn differences(&self, other: &Self) -> Vec<u64> {
        let mut differences = Vec::new();
        for (&start, bytes) in &self.0 {
            let other = other.0.get(&start).map_or(&[][..], Vec::as_slice);
            let differs = |&offset: &usize| other.get(offset) != bytes.get(offset);
            let differ = (0..bytes.len()).filter(differs);
            differences.extend(differ.map(|offset| start + offset as u64));
        }
        differences
    }

    /// Writes to what memory held.
    pub fn set(&mut self, address: u64, bytes: &[u8]) {
        let (start, place) = self.0.range_mut(..=address).next_back().unwrap();
        place[(address - start) as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// The made-up machine; every part of the embedder has one and the same.
#[derive(Clone, Debug)]
pub struct World(Rc<RefCell<State>>);

/// Where a region's text begins.
pub const fn text_of(region: u16) -> u64 {
    0x1000_0000 + ((region as u64) << 32)
}

/// Where a region's images begin.
pub const fn images_of(region: u16) -> u64 {
    0x1800_0000 + ((region as u64) << 32)
}

impl World {
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(State {
            memory: BTreeMap::new(),
            images: BTreeMap::new(),
            next_image: BTreeMap::new(),
            open: None,
            failing: Failing::None,
            steps: 0,
            events: Vec::new(),
            tables: Vec::new(),
        })))
    }

    pub fn parts(&self) -> Parts<Self> {
        Parts {
            text: self.clone(),
            cores: self.clone(),
            images: self.clone(),
            tables: self.clone(),
            side_stack: None,
            hardening: Hardening::NONE,
        }
    }

    pub fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// Starts counting steps from 0, with these failing, and events from none.
    pub fn arm(&self, failing: Failing) {
        let mut state = self.state();
        state.failing = failing;
        state.steps = 0;
        state.events.clear();
    }

    /// Lets no step fail. Gives the number of steps there were.
    pub fn disarm(&self) -> usize {
        let mut state = self.state();
        state.failing = Failing::None;
        state.steps
    }

    /// Writes behind the engine's back; gives the five bytes that were there.
    pub fn overwrite(&self, address: u64, bytes: &[u8]) -> [u8; 5] {
        let mut state = self.state();
        let before = state.place(address, 5).unwrap().try_into().unwrap();
        state.place(address, bytes.len()).unwrap().copy_from_slice(bytes);
        before
    }

    /// Puts text at `address`.
    pub fn add_text(&self, address: u64, bytes: Vec<u8>) {
        self.state().memory.insert(address, bytes);
    }

    /// The `len` bytes at `address`.
    pub fn bytes(&self, address: u64, len: usize) -> Result<Vec<u8>, Fault> {
        let mut state = self.state();
        state.place(address, len).map(|place| place.to_vec())
    }

    /// Everything that can be executed.
    pub fn memory(&self) -> Memory {
        Memory(self.state().memory.clone())
    }

    /// Everything that can be executed, but for images and thunks.
    pub fn text(&self) -> Memory {
        let state = self.state();
        let mut memory = state.memory.clone();
        memory.retain(|start, _| !state.images.contains_key(start));
        Memory(memory)
    }

    /// The word of a table at `address`. Panics unless it is committed.
    pub fn table_word(&self, address: u64) -> u64 {
        let state = self.state();
        let committed = |table: &&Reservation| {
            let base = table.base.as_ptr() as u64;
            (base..base + table.committed as u64).contains(&address)
        };
        state.tables.iter().find(committed).expect("a cookie in committed memory");
        // SAFETY: in committed memory of a table, and aligned; the engine is not running.
        unsafe { (address as *const u64).read() }
    }

    /// How often something happened since the world was armed.
    pub fn count(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.state().events.iter().filter(|event| what(event)).count()
    }

    fn step(&self) -> Result<(), Fault> {
        let mut state = self.state();
        let step = state.steps;
        state.steps += 1;
        match state.failing {
            Failing::At(at) if at == step => Err(Fault::Injected { step }),
            Failing::From(from) if from <= step => Err(Fault::Injected { step }),
            _ => Ok(()),
        }
    }

    /// Stores bytes where the open window lets it.
    fn store(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.step()?;
        let mut state = self.state();
        let open = state.open.as_ref().expect("a store while text is not open");
        let len = bytes.len() as u64;
        // In a site, or in the 64 bytes before it, where padding and landing pad are.
        let mut sites = open.range(address + len - 5..=address + 64);
        assert!(sites.next().is_some(), "a store at {address:#x}, which is not open");
        state.place(address, bytes.len())?.copy_from_slice(bytes);
        state.events.push(Event::Store { address, bytes: bytes.to_vec() });
        Ok(())
    }
}

impl State {
    fn place(&mut self, address: u64, len: usize) -> Result<&mut [u8], Fault> {
        let unmapped = Fault::Unmapped { address };
        let (start, bytes) = self.memory.range_mut(..=address).next_back().ok_or(unmapped)?;
        let offset = (address - start) as usize;
        bytes.get_mut(offset..).and_then(|bytes| bytes.get_mut(..len)).ok_or(unmapped)
    }
}

impl Embedder for World {
    type Error = Fault;
    type Text = Self;
    type Cores = Self;
    type Images = Self;
    type Tables = Self;
}

// SAFETY: nobody executes this text, and a store that fails does so before it stores.
unsafe impl Text for World {
    type Error = Fault;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Fault> {
        self.step()?;
        let mut state = self.state();
        Ok(state.place(address, N)?.try_into().expect("as many bytes as were asked for"))
    }

    fn open(&mut self, pokes: &[Poke]) -> Result<(), Fault> {
        self.step()?;
        let mut state = self.state();
        assert!(state.open.is_none(), "text is opened twice");
        state.open = Some(pokes.iter().map(|poke| poke.site.get()).collect());
        state.events.push(Event::Open);
        Ok(())
    }

    fn close(&mut self) {
        let mut state = self.state();
        assert!(state.open.take().is_some(), "text is closed that was not open");
        state.events.push(Event::Close);
    }

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Fault> {
        self.store(address, &[byte])
    }

    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), Fault> {
        assert_ne!(address % 8, 7, "two bytes in two words");
        self.store(address, &bytes)
    }

    fn can_store_site(&self, address: u64) -> bool {
        address % 16 <= 11
    }

    unsafe fn store_site(&mut self, address: u64, bytes: [u8; 5]) -> Result<(), Fault> {
        assert!(address % 16 <= 11, "five bytes in two blocks of 16");
        self.store(address, &bytes)
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Fault> {
        self.store(address, &bytes)
    }
}

// SAFETY: no core executes this text.
unsafe impl Cores for World {
    type Error = Fault;

    fn synchronise(&mut self) -> Result<(), Fault> {
        self.step()?;
        self.state().events.push(Event::Synchronise);
        Ok(())
    }
}

// SAFETY: images are within 256 MiB of their region's text, and nobody executes them.
unsafe impl ImageMemory for World {
    type Error = Fault;

    fn allocate(&mut self, region: Region, size: usize) -> Result<u64, Fault> {
        self.step()?;
        let mut state = self.state();
        let next = state.next_image.entry(region.0).or_insert(images_of(region.0));
        let address = *next;
        *next += size.next_multiple_of(64) as u64;
        state.memory.insert(address, vec![0xcc; size]);
        state.images.insert(address, size);
        state.events.push(Event::Allocate { region, address, size });
        Ok(address)
    }

    unsafe fn write(&mut self, address: u64, code: &[u8]) -> Result<(), Fault> {
        self.step()?;
        self.state().place(address, code.len())?.copy_from_slice(code);
        Ok(())
    }

    unsafe fn free(&mut self, address: u64, size: usize) {
        let mut state = self.state();
        assert_eq!(state.images.remove(&address), Some(size), "what is freed was allocated");
        state.memory.remove(&address);
        state.events.push(Event::Free { address });
    }
}

// SAFETY: reservations are zeroed heap blocks, which never move.
unsafe impl TableMemory for World {
    type Error = Fault;

    fn reserve(&mut self, bytes: usize) -> Result<NonNull<u8>, Fault> {
        self.step()?;
        let reservation = Reservation::new(bytes);
        let base = reservation.base;
        self.state().tables.push(reservation);
        Ok(base)
    }

    unsafe fn commit(&mut self, base: NonNull<u8>, from: usize, to: usize) -> Result<(), Fault> {
        self.step()?;
        let mut state = self.state();
        let table = state.tables.iter_mut().find(|table| table.base == base);
        let table = table.expect("a reservation");
        assert_eq!(table.committed, from, "bytes are committed in order, each of them once");
        assert!(to <= table.bytes);
        table.committed = to;
        state.events.push(Event::Commit);
        Ok(())
    }

    unsafe fn release(&mut self, base: NonNull<u8>, bytes: usize) {
        let mut state = self.state();
        let table =
            state.tables.iter().position(|table| (table.base, table.bytes) == (base, bytes));
        state.tables.swap_remove(table.expect("a reservation"));
    }
}
