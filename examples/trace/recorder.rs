//! What runs at every entry and exit of a hooked function with `--exit`: no lock, no
//! allocation, no cache line that two threads write.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::clock::ticks;
use crate::counters::shard;
use crate::latency::Latencies;
use crate::paths::{Paths, ROOT};

thread_local! {
    /// The node of the hooked function that this thread is in.
    static PATH: Cell<u32> = const { Cell::new(ROOT) };
}

/// What is recorded, a part for each thread that has a shard.
pub struct Recorder {
    shards: Vec<Shard>,
}

struct Shard {
    paths: Paths,
    latencies: Latencies,
    /// Calls on paths that there was no room for.
    lost: AtomicU64,
}

impl Recorder {
    /// A recorder for this many functions and shards.
    pub fn new(functions: usize, shards: usize) -> Self {
        let shard = || Shard {
            paths: Paths::new(),
            latencies: Latencies::new(functions),
            lost: AtomicU64::new(0),
        };
        Self { shards: (0..shards).map(|_| shard()).collect() }
    }

    /// A call begins. When it began is what [`leave`](Self::leave) is to be given; `None` if
    /// this call is not recorded.
    pub fn enter(&self, position: u64) -> Option<u64> {
        let shard = self.shards.get(shard())?;
        let Some(node) = shard.paths.enter(PATH.get(), position as u32) else {
            shard.lost.store(shard.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            return None;
        };
        PATH.set(node);
        Some(ticks())
    }

    /// The call ends that began then.
    pub fn leave(&self, position: u64, began: u64) {
        let took = ticks().saturating_sub(began);
        if let Some(shard) = self.shards.get(shard()) {
            PATH.set(shard.paths.leave(PATH.get(), position as u32, took));
            shard.latencies.record(position as usize, took);
        }
    }

    /// The paths of each thread.
    pub fn paths(&self) -> impl Iterator<Item = &Paths> {
        self.shards.iter().map(|shard| &shard.paths)
    }

    /// The latencies of each thread.
    pub fn latencies(&self) -> Vec<&Latencies> {
        self.shards.iter().map(|shard| &shard.latencies).collect()
    }

    /// Calls that were not recorded, for lack of room.
    pub fn lost(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lost.load(Ordering::Relaxed)).sum()
    }
}
