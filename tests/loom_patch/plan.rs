//! What a model explores, and what breaks in it.

use core::sync::atomic as plain;
use std::sync::Arc;

use fentry::patch::{PatchError, Protocol, SITE_LEN};

use crate::machine;
use crate::text::ToldToFail;

/// The five-byte nop.
pub const NOP: [u8; SITE_LEN] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `call`, no byte of which is the nop's at the same place.
pub const CALL: [u8; SITE_LEN] = [0xe8, 0xf1, 0xf2, 0xf3, 0x04];
/// How far behind its end `CALL` goes.
pub const CALL_DISTANCE: u64 = 0x04f3_f2f1;
/// `call` to elsewhere, no byte of whose distance is that of `CALL`.
pub const OTHER_CALL: [u8; SITE_LEN] = [0xe8, 0xe1, 0xe2, 0xe3, 0x05];

/// One model: batches, the cores that execute its sites meanwhile, and what breaks.
#[derive(Clone, Copy)]
pub struct Plan {
    pub protocol: Protocol,
    /// What every site holds at first, and what each batch makes of it in turn: the next one
    /// begins as soon as one has returned.
    pub stages: &'static [[u8; SITE_LEN]],
    /// Whether the machine can store a whole site at once.
    pub one_store: bool,
    /// Whether each of two sites is in batches of its own, applied by threads of their own.
    pub apart: bool,
    /// How many of [`machine::SITES`] the batch has.
    pub sites: usize,
    /// For each core, the sites that it executes, one after the other.
    pub cores: &'static [&'static [usize]],
    /// What breaks.
    pub breaks: Break,
}

/// What breaks in a machine: either an honest failure, or a broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    Nothing,
    /// The store of this number fails, honestly.
    Store(usize),
    /// This store and every later one fails, honestly.
    StoresFrom(usize),
    /// The synchronisation of this number fails, honestly, and reaches no core.
    Synchronise(usize),
    /// This synchronisation and every later one fails, honestly.
    SynchronisesFrom(usize),
    /// Mutant: the store of this number fails, and the synchronisation of the other number
    /// does nothing.
    StoreAndSkip(usize, usize),
    /// Mutant: the synchronisation of this number does nothing.
    Skip(usize),
    /// Mutant: neither does any later one.
    SkipFrom(usize),
    /// Mutant: the synchronisations of the second patching thread do nothing.
    SkipOfSecond,
    /// Mutant: the flush of this number does nothing.
    SkipFlush(usize),
    /// Mutant: the store of this number fails, and the flush of the other number does nothing.
    StoreAndSkipFlush(usize, usize),
    /// Mutant: what is stored at once becomes visible byte by byte.
    Split,
    /// Mutant: a tail is stored only after the head that follows it.
    LateTails,
    /// Mutant: stores to text may overtake what the core stored before.
    Overtake,
    /// Mutant: two batches at the same time have one resolver.
    OneResolver,
}

impl Break {
    /// Whether the store of this number fails.
    pub fn fails(self, store: usize) -> bool {
        match self {
            Self::Store(number)
            | Self::StoreAndSkip(number, _)
            | Self::StoreAndSkipFlush(number, _) => store == number,
            Self::StoresFrom(number) => store >= number,
            _ => false,
        }
    }

    /// Whether the synchronisation of this number, by the patching thread of that number,
    /// reaches any core.
    pub fn synchronises(self, call: usize, thread: usize) -> Result<bool, ToldToFail> {
        match self {
            Self::Synchronise(number) if number == call => Err(ToldToFail),
            Self::SynchronisesFrom(number) if number <= call => Err(ToldToFail),
            Self::Skip(number) | Self::StoreAndSkip(_, number) => Ok(number != call),
            Self::SkipFrom(number) => Ok(number > call),
            Self::SkipOfSecond => Ok(thread != 1),
            _ => Ok(true),
        }
    }

    /// Whether the flush of this number does anything.
    pub fn flushes(self, call: usize) -> bool {
        match self {
            Self::SkipFlush(number) | Self::StoreAndSkipFlush(_, number) => number != call,
            _ => true,
        }
    }

    /// Whether one of the stores is to fail, honestly, and the batch to be taken back.
    fn fails_a_store(self) -> bool {
        matches!(self, Self::Store(_) | Self::StoreAndSkip(..) | Self::StoreAndSkipFlush(..))
    }

    /// Whether `apply` is to succeed.
    pub fn lands(self) -> bool {
        !(self.fails_a_store() || matches!(self, Self::Synchronise(_)) || self.sticks())
    }

    /// Whether the batch can neither land nor be taken back.
    pub fn sticks(self) -> bool {
        matches!(self, Self::StoresFrom(_) | Self::SynchronisesFrom(_))
    }

    /// Checks what `apply` returned.
    pub fn judge<const N: usize>(self, applied: Result<(), PatchError<ToldToFail, ToldToFail, N>>) {
        let right = match &applied {
            Ok(()) => self.lands(),
            Err(PatchError::Store { .. }) => self.fails_a_store(),
            Err(PatchError::Synchronise(ToldToFail)) => matches!(self, Self::Synchronise(_)),
            Err(PatchError::Stuck { .. }) => self.sticks(),
            Err(_) => false,
        };
        assert!(right, "{self:?} ended in {applied:?}");
    }
}

/// Which events the executions of a model had, so that a model that shows nothing fails.
#[derive(Default)]
pub struct Seen {
    pub executions: Count,
    /// How often each stage was decoded, one that comes again where it came first.
    pub stages: [Count; 3],
    pub guard: Count,
    /// Traps whose core was told to behave as the new instruction.
    pub emulated: Count,
    /// Traps that arrived when their batch was over.
    pub retried: Count,
}

/// A count over all executions, which is no part of the model.
#[derive(Default)]
pub struct Count(plain::AtomicUsize);

impl Count {
    pub fn up(&self) {
        self.0.fetch_add(1, plain::Ordering::Relaxed);
    }

    pub fn get(&self) -> usize {
        self.0.load(plain::Ordering::Relaxed)
    }
}

impl Plan {
    /// Batches of one site, and cores that fetch as `cores` says.
    pub const fn one(
        protocol: Protocol,
        stages: &'static [[u8; SITE_LEN]],
        cores: &'static [&'static [usize]],
    ) -> Self {
        let (one_store, apart, breaks) = (false, false, Break::Nothing);
        Self { protocol, stages, one_store, apart, sites: 1, cores, breaks }
    }

    /// The same, but for what breaks.
    pub const fn broken(self, breaks: Break) -> Self {
        Self { breaks, ..self }
    }

    /// How many sites get their new head: a store of each site makes a pass, and the heads
    /// are the third.
    pub fn heads(&self) -> usize {
        match self.breaks {
            Break::Store(number) | Break::StoresFrom(number) | Break::StoreAndSkip(number, _) => {
                let before = if self.one_store { 0 } else { 2 * self.sites };
                (number - 1).saturating_sub(before)
            }
            Break::Synchronise(1 | 2) | Break::SynchronisesFrom(1 | 2) => 0,
            _ => self.sites,
        }
    }

    /// How many threads apply batches.
    pub fn threads(&self) -> usize {
        if self.apart { 2 } else { 1 }
    }

    /// Explores the model: one core applies the batch while the others execute its sites.
    /// `preemptions` bounds how often one execution takes a thread off its core where it
    /// could have gone on; without it the exploration is exhaustive. Returns what was seen.
    pub fn explore(self, preemptions: Option<usize>) -> Arc<Seen> {
        let seen = Arc::new(Seen::default());
        let mut model = loom::model::Builder::new();
        model.preemption_bound = preemptions;
        model.max_branches = 10_000;
        let watch = Arc::clone(&seen);
        model.check(move || {
            watch.executions.up();
            machine::execute(self, Arc::clone(&watch));
        });
        println!("{:?} {:?}: {} executions", self.protocol, self.breaks, seen.executions.get());
        seen
    }
}
