//! How long calls took: a histogram for each function, and its quantiles.

use core::error::Error;
use core::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

/// Buckets for each doubling: a time is known to 1 part in 16, and its bucket's middle is at
/// most 1 part in 32 away from it.
const PARTS: u64 = 16;
/// Longer times, of hours, count as this.
const LONGEST: u64 = (1 << 44) - 1;
const BUCKETS: usize = bucket(LONGEST) + 1;

/// Where times of so many ticks are counted.
const fn bucket(ticks: u64) -> usize {
    let ticks = if ticks < LONGEST { ticks } else { LONGEST };
    let doublings = (ticks / PARTS).checked_ilog2();
    match doublings {
        None => ticks as usize,
        Some(doublings) => (PARTS * doublings as u64 + (ticks >> doublings)) as usize,
    }
}

/// The shortest time that is counted there, in ticks.
const fn shortest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket / PARTS).saturating_sub(1);
    (bucket - PARTS * doublings) << doublings
}

/// The middle of the times that are counted there, in ticks.
const fn middle(bucket: usize) -> f64 {
    (shortest(bucket) + shortest(bucket + 1)) as f64 / 2.0
}

// The buckets stand one behind the other, with no gap.
const _: () = {
    let mut number = 0;
    while number < BUCKETS {
        assert!(bucket(shortest(number)) == number);
        assert!(number == BUCKETS - 1 || bucket(shortest(number + 1) - 1) == number);
        number += 1;
    }
};

/// The times of one thread's calls of each function. One thread writes, so that adding needs
/// no locked instruction.
pub struct Latencies {
    counts: Box<[AtomicU64]>,
    longest: Box<[AtomicU64]>,
}

impl Latencies {
    pub fn new(functions: usize) -> Self {
        Self { counts: zeroes(functions * BUCKETS), longest: zeroes(functions) }
    }

    /// Counts a call of the function at `position` that took so many ticks.
    pub fn record(&self, position: usize, ticks: u64) {
        let (count, longest) = (position * BUCKETS + bucket(ticks), &self.longest);
        let (Some(count), Some(longest)) = (self.counts.get(count), longest.get(position)) else {
            return;
        };
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if ticks > longest.load(Ordering::Relaxed) {
            longest.store(ticks, Ordering::Relaxed);
        }
    }
}

/// Memory that costs only what is touched of it: most functions are never called, and most
/// times do not occur.
fn zeroes(count: usize) -> Box<[AtomicU64]> {
    let zeroes = vec![0_u64; count].into_boxed_slice();
    // SAFETY: an `AtomicU64` has the size and the bits of a `u64`, and on x86-64 its alignment.
    unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU64]) }
}

/// What is shown of a function's calls. Times are in nanoseconds. A quantile is at most 3.2 %
/// (half a bucket, and the three digits that quantiles are found with) or one nanosecond away
/// from what the processor's clock said, which on some processors goes in steps of 10.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    pub calls: u64,
    pub median: u64,
    /// 99 of 100 calls took no longer.
    pub percentile_99: u64,
    /// To the tick.
    pub longest: u64,
}

/// The latency of the function at `position`, from all threads.
pub fn latency(
    threads: &[&Latencies],
    position: usize,
    nanoseconds_of_tick: f64,
) -> Result<Latency, Box<dyn Error>> {
    let nanoseconds = |ticks: f64| ((ticks * nanoseconds_of_tick).round() as u64).max(1);
    let mut histogram = Histogram::<u64>::new(3)?;
    for thread in threads {
        let counts = thread.counts.chunks_exact(BUCKETS).nth(position).unwrap_or_default();
        for (bucket, count) in counts.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                histogram.record_n(nanoseconds(middle(bucket)), count)?;
            }
        }
    }
    let longest = threads.iter().filter_map(|thread| thread.longest.get(position));
    let longest = longest.map(|ticks| ticks.load(Ordering::Relaxed)).max().unwrap_or(0);
    let longest = nanoseconds(longest as f64);
    let quantile = |part| histogram.value_at_quantile(part).min(longest);
    Ok(Latency {
        calls: histogram.len(),
        median: quantile(0.5),
        percentile_99: quantile(0.99),
        longest,
    })
}
