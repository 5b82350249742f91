//! Several tracers, each with its own set of functions, some of which are in several sets: which
//! of them want this call? `cargo bench --bench tracers`.
//!
//! Ftrace asks each tracer's filter, a hash of instruction pointers. With a record for each
//! function the answer can stand there, a bit for each tracer. Both are measured on the same
//! calls, of functions in a random order that at least one tracer has in its set, and run the
//! same tracers, which count. (What this library does for program sets is neither: there is an
//! image for each set of programs, which calls those and asks nothing.)

mod support;

use core::hint::black_box;

use hashbrown::HashSet;
use support::common::Random;
use support::{Work, interleaved, median, ratio};

/// How many calls one timed run makes.
const CALLS: usize = 10_000;
const ROUNDS: usize = 101;
/// Most tracers, one for each bit.
const MOST: usize = 64;
/// A function is in one of so many tracers' sets, by chance.
const RARITY: usize = 8;
/// Distance of the functions' entries, as of small ones.
const SIZE: u64 = 64;
const TEXT: u64 = 0x40_0000;

/// What there is on each side.
struct Tracers {
    /// The bits in the records, by index.
    bits: Vec<u64>,
    /// The filter of each tracer.
    filters: Vec<HashSet<u64>>,
    /// Indexes of the functions that are called.
    calls: Vec<u32>,
}

fn entry(index: u32) -> u64 {
    TEXT + SIZE * u64::from(index)
}

impl Tracers {
    fn new(tracers: usize, functions: u32) -> Self {
        let mut random = Random::new(tracers as u64);
        let mut bits = vec![0_u64; functions as usize];
        let mut filters = vec![HashSet::new(); tracers];
        for (index, record) in (0..).zip(&mut bits) {
            for (tracer, filter) in filters.iter_mut().enumerate() {
                if random.below(RARITY) == 0 {
                    *record |= 1 << tracer;
                    filter.insert(entry(index));
                }
            }
        }
        let attached: Vec<u32> =
            (0..).zip(&bits).filter(|&(_, &set)| set != 0).map(|(index, _)| index).collect();
        let calls = (0..CALLS).map(|_| *random.pick(&attached)).collect();
        Self { bits, filters, calls }
    }

    /// Runs every tracer that has the function in its set, by the bits in its record.
    fn by_bits(&self, runs: &mut [u64; MOST]) {
        for &index in &self.calls {
            let mut left = self.bits[index as usize];
            while left != 0 {
                runs[left.trailing_zeros() as usize] += 1;
                left &= left - 1;
            }
        }
    }

    /// The same by asking each tracer's filter.
    fn by_hash(&self, runs: &mut [u64; MOST]) {
        for &index in &self.calls {
            let entry = entry(index);
            for (filter, runs) in self.filters.iter().zip(&mut *runs) {
                if filter.contains(&entry) {
                    *runs += 1;
                }
            }
        }
    }
}

fn line(tracers: usize, functions: u32) -> String {
    let all = Tracers::new(tracers, functions);
    let runs = |run: fn(&Tracers, &mut [u64; MOST])| {
        let mut runs = [0; MOST];
        run(&all, &mut runs);
        runs
    };
    let by_bits = runs(Tracers::by_bits);
    assert_eq!(by_bits, runs(Tracers::by_hash), "both run the same tracers");
    let run: u64 = by_bits.iter().sum();
    assert!(run >= CALLS as u64, "every call is wanted by somebody");
    let mut works: Vec<Work<'_>> = [Tracers::by_bits, Tracers::by_hash]
        .map(|run: fn(&Tracers, &mut [u64; MOST])| {
            let all = &all;
            Box::new(move || {
                let mut runs = [0; MOST];
                run(black_box(all), &mut runs);
                black_box(runs);
            }) as Work<'_>
        })
        .into();
    let times = interleaved(ROUNDS, &mut works);
    let ns = |times: &[f64]| median(times) / CALLS as f64;
    format!(
        "tracers: tracers={tracers} functions={functions} run_per_call={:.1} bitset_ns={:.2} \
         hash_ns={:.2} ratio={:.2}",
        run as f64 / CALLS as f64,
        ns(&times[0]),
        ns(&times[1]),
        ratio(&times[1], &times[0]),
    )
}

fn main() {
    for functions in [100, 10_000] {
        for tracers in [2, 8, MOST] {
            println!("{}", line(tracers, functions));
        }
    }
}
