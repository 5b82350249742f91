//! An engine on a made-up machine, and its functions.

use std::collections::BTreeMap;

use fentry::addr::Entry;
use fentry::attach::{
    AttachError, Attachment, Cookies, Engine, FunctionId, FunctionSpec, Lanes, Parts, ProgramKind,
    Region, SiteNop,
};
use fentry::emit::Vectors;
use fentry::emit::x86_64::Hardening;
use fentry::layout::EntryLayout;
use fentry::layout::x86_64::PLAIN;
use fentry::patch::{Poke, Protocol, TrapResolver};

use crate::decode::{self, Run};
use crate::fake::{Event, Fault, World, text_of};

pub type Outcome<T> = Result<T, AttachError<Fault>>;

/// Bytes from one function to the next.
pub const STEP: u64 = 0x40;
/// Bytes from the start of a function's place to its entry: room for its padding.
pub const BEFORE: u64 = 0x10;

/// Bytes in which memory for thunks is allocated: 64 thunks. No image here is so large.
const THUNKS: usize = 1024;

/// A function to be made.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub layout: EntryLayout,
    pub nop: SiteNop,
    pub region: u16,
    /// Bytes that it is put behind where it would be.
    pub shift: u64,
}

impl Kind {
    pub const PLAIN: Self = Self::of(PLAIN);

    pub const fn of(layout: EntryLayout) -> Self {
        Self { layout, nop: SiteNop::FiveByte, region: 0, shift: 0 }
    }

    pub const fn nop(self, nop: SiteNop) -> Self {
        Self { nop, ..self }
    }

    pub const fn region(self, region: u16) -> Self {
        Self { region, ..self }
    }

    pub const fn shift(self, shift: u64) -> Self {
        Self { shift, ..self }
    }

    /// What a compiler would leave at function number `position` of its region.
    pub fn place(&self, position: u64) -> (FunctionSpec, Vec<u8>) {
        let start = text_of(self.region) + position * STEP;
        let entry = Entry::new(start + BEFORE + self.shift);
        let mut bytes = vec![0x90; STEP as usize];
        let at = |address: u64| (address - start) as usize;
        if self.layout.landing_pad().size() == 4 {
            bytes[at(entry.get())..][..4].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa]);
        }
        let site = at(self.layout.site(entry).get());
        bytes[site..][..5].copy_from_slice(&nop_bytes(self.nop));
        // `ret`
        bytes[at(self.layout.origin(entry).get())] = 0xc3;
        let Self { layout, nop, region, .. } = *self;
        (FunctionSpec { entry, layout, nop, region: Region(region), stack_arguments: None }, bytes)
    }
}

/// The bytes of each nop, from the Intel SDM.
pub fn nop_bytes(nop: SiteNop) -> [u8; 5] {
    match nop {
        SiteNop::FiveByte => [0x0f, 0x1f, 0x44, 0x00, 0x00],
        SiteNop::Clang => [0x0f, 0x1f, 0x44, 0x00, 0x08],
        SiteNop::OneByte => [0x90; 5],
        SiteNop::Prefixed | SiteNop::Unsettled => [0x66, 0x66, 0x66, 0x66, 0x90],
        _ => panic!("a nop that these tests do not know: {nop:?}"),
    }
}

#[derive(Debug)]
pub struct Bench {
    pub world: World,
    pub engine: Engine<World>,
    pub functions: Vec<FunctionSpec>,
    pub ids: Vec<FunctionId>,
    /// The pokes of the last operation.
    pub pokes: Vec<Poke>,
}

impl Bench {
    pub fn new(protocol: Protocol, kinds: &[Kind]) -> Self {
        Self::hardened(protocol, kinds, Hardening::NONE)
    }

    pub fn hardened(protocol: Protocol, kinds: &[Kind], hardening: Hardening) -> Self {
        Self::of_parts(protocol, kinds, |parts| Parts { hardening, ..parts })
    }

    /// With other parts than the world's.
    pub fn of_parts(
        protocol: Protocol,
        kinds: &[Kind],
        change: impl FnOnce(Parts<World>) -> Parts<World>,
    ) -> Self {
        let world = World::new();
        let traps = Box::leak(Box::new(TrapResolver::new()));
        let parts = change(world.parts());
        let mut engine = Engine::new(parts, protocol, traps).unwrap();
        let mut functions = Vec::new();
        let mut texts = BTreeMap::<_, Vec<u8>>::new();
        for kind in kinds {
            let text = texts.entry(kind.region).or_default();
            let (function, bytes) = kind.place(text.len() as u64 / STEP);
            functions.push(function);
            text.extend(bytes);
        }
        for (region, text) in texts {
            world.add_text(text_of(region), text);
        }
        let ids = functions.iter().map(|function| engine.register(function).unwrap()).collect();
        let pokes = Vec::new();
        world.arm(crate::fake::Failing::None);
        Self { world, engine, functions, ids, pokes }
    }

    /// So many functions of one kind.
    pub fn of(protocol: Protocol, kind: Kind, count: usize) -> Self {
        Self::new(protocol, &vec![kind; count])
    }

    /// The ids of the functions at these positions.
    pub fn ids(&self, positions: &[usize]) -> Vec<FunctionId> {
        positions.iter().map(|&position| self.ids[position]).collect()
    }

    /// Every position.
    pub fn all(&self) -> Vec<usize> {
        (0..self.ids.len()).collect()
    }

    fn scratch(&mut self, ids: &[FunctionId]) {
        self.pokes = vec![Poke::EMPTY; self.engine.pokes_needed(ids)];
    }

    pub fn attach(&mut self, to: &[usize], programs: &[Attachment<'_>]) -> Outcome<Lanes> {
        let ids = self.ids(to);
        self.scratch(&ids);
        // SAFETY: nobody executes the text.
        unsafe { self.engine.attach(&ids, programs, &mut self.pokes) }
    }

    pub fn detach(&mut self, from: &[usize], lanes: Lanes) -> Outcome<()> {
        let ids = self.ids(from);
        self.scratch(&ids);
        // SAFETY: as above.
        unsafe { self.engine.detach(&ids, lanes, &mut self.pokes) }
    }

    pub fn set_enabled(&mut self, of: &[usize], lanes: Lanes, enabled: bool) -> Outcome<()> {
        let ids = self.ids(of);
        self.scratch(&ids);
        // SAFETY: as above.
        unsafe { self.engine.set_enabled(&ids, lanes, enabled, &mut self.pokes) }
    }

    pub fn prepare(&mut self, of: &[usize]) -> Outcome<()> {
        let ids = self.ids(of);
        self.scratch(&ids);
        // SAFETY: as above; no thread is in a site.
        unsafe { self.engine.prepare(&ids, &mut self.pokes, |_| Ok(())) }
    }

    /// Lets the engine free what it thinks is unused, and checks that no call ends there.
    pub fn quiesced(&mut self) -> usize {
        let all = self.all();
        let before: Vec<_> = all.iter().map(|&function| self.runs(function)).collect();
        // SAFETY: no core is anywhere.
        let freed = unsafe { self.engine.quiesced() };
        for function in all {
            assert_eq!(self.runs(function), before[function], "after retiring");
        }
        freed
    }

    /// Images there are, besides memory for thunks.
    pub fn images(&self) -> usize {
        self.world.state().images.values().filter(|&&size| size != THUNKS).count()
    }

    pub fn site(&self, position: usize) -> u64 {
        let FunctionSpec { layout, entry, .. } = self.functions[position];
        layout.site(entry).get()
    }

    pub fn site_bytes(&self, position: usize) -> [u8; 5] {
        self.bytes(self.site(position))
    }

    /// Where the slot of a function is that has one.
    pub fn slot(&self, position: usize) -> u64 {
        let FunctionSpec { layout, entry, .. } = self.functions[position];
        layout.slot(entry).unwrap().get()
    }

    pub fn slot_bytes(&self, position: usize) -> [u8; 5] {
        self.bytes(self.slot(position))
    }

    pub fn bytes(&self, address: u64) -> [u8; 5] {
        self.world.bytes(address, 5).unwrap().try_into().unwrap()
    }

    /// What a call of the function would run.
    pub fn runs(&self, position: usize) -> Vec<Run> {
        decode::runs(&self.world, &self.functions[position], self.ids[position].index())
    }

    /// The images that were emitted since the world was armed: address and size. Thunks are
    /// allocated too, [`THUNKS`] bytes at a time.
    pub fn emitted(&self) -> Vec<(u64, usize)> {
        self.allocated(|size| size != THUNKS)
    }

    /// Memory for thunks that was allocated since the world was armed.
    pub fn thunks(&self) -> Vec<u64> {
        self.allocated(|size| size == THUNKS).into_iter().map(|(address, _)| address).collect()
    }

    fn allocated(&self, which: impl Fn(usize) -> bool) -> Vec<(u64, usize)> {
        let state = self.world.state();
        let events = state.events.iter();
        let allocated = events.filter_map(|event| match *event {
            Event::Allocate { address, size, .. } if which(size) => Some((address, size)),
            _ => None,
        });
        allocated.collect()
    }

    pub fn synchronisations(&self) -> usize {
        self.world.count(|event| *event == Event::Synchronise)
    }

    /// How many bytes each store wrote, in order.
    pub fn store_lengths(&self) -> Vec<usize> {
        let events = self.world.state().events.clone();
        let length = |event: &Event| match event {
            Event::Store { bytes, .. } => Some(bytes.len()),
            _ => None,
        };
        events.iter().filter_map(length).collect()
    }

    pub fn stores(&self) -> usize {
        self.world.count(|event| matches!(event, Event::Store { .. }))
    }
}

/// A program that is only an address.
pub const fn program(target: u64, cookies: Cookies<'_>) -> Attachment<'_> {
    Attachment {
        target,
        kind: ProgramKind::Entry,
        data: None,
        vectors: Vectors::Untouched,
        cookies,
    }
}

/// What `program` makes a function run.
pub const fn run(target: u64, cookie: u64) -> Run {
    Run { target, cookie, data: None }
}

/// `call` from `from` to `to` (Intel SDM volume 2, CALL, `E8 cd`).
pub fn call(from: u64, to: u64) -> [u8; 5] {
    branch(0xe8, from, to)
}

/// `jmp` from `from` to `to` (Intel SDM volume 2, JMP, `E9 cd`).
pub fn jump(from: u64, to: u64) -> [u8; 5] {
    branch(0xe9, from, to)
}

fn branch(opcode: u8, from: u64, to: u64) -> [u8; 5] {
    let displacement = i32::try_from(to as i64 - (from as i64 + 5)).unwrap();
    let [a, b, c, d] = displacement.to_le_bytes();
    [opcode, a, b, c, d]
}

/// `mov eax, index` (Intel SDM volume 2, MOV, `B8+ rd id`).
pub fn slot_of(index: u32) -> [u8; 5] {
    let [a, b, c, d] = index.to_le_bytes();
    [0xb8, a, b, c, d]
}
