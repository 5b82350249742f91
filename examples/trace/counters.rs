//! Counters for a program that runs millions of times a second on every thread: no lock,
//! no allocation, no cache line that two threads write.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    // Const-initialised and without a destructor: reading it is one load, at any time in
    // the thread's life.
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Makes shard `number` the calling thread's own. No two threads may have the same.
pub fn claim_shard(number: usize) {
    SHARD.set(number);
}

/// The number of the calling thread's shard; of no shard, if it has none.
pub fn shard() -> usize {
    SHARD.get()
}

/// One counter for each function in each shard.
pub struct Counters {
    shards: Vec<Vec<AtomicU64>>,
    /// For threads that claimed no shard.
    common: Vec<AtomicU64>,
}

impl Counters {
    /// Counters for this many functions, all zero, in this many shards.
    pub fn new(functions: usize, shards: usize) -> Self {
        let zeroes = || (0..functions).map(|_| AtomicU64::new(0)).collect();
        Self { shards: (0..shards).map(|_| zeroes()).collect(), common: zeroes() }
    }

    /// Counts one call of the function at `position`; one that does not exist is ignored.
    pub fn count(&self, position: u64) {
        let position = position as usize;
        if let Some(shard) = self.shards.get(shard()) {
            if let Some(counter) = shard.get(position) {
                // Only this thread writes here, so the addition needs no locked instruction.
                counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            }
        } else if let Some(counter) = self.common.get(position) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The calls of each function, in the order of their positions.
    pub fn by_function(&self) -> Vec<u64> {
        let mut calls: Vec<u64> = self.common.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        for shard in &self.shards {
            for (sum, counter) in calls.iter_mut().zip(shard) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        calls
    }

    /// The calls of all functions together.
    pub fn total(&self) -> u64 {
        self.by_function().iter().sum()
    }
}
