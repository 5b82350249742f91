//! What the benchmarks share. Everything that is compared is measured in turn in one
//! process: on a shared machine only figures of the same moment can be divided.
#![allow(dead_code, reason = "each benchmark uses its own part of this")]

#[path = "../../tests/support/mod.rs"]
pub mod common;

pub mod assembly;
pub mod floor;
pub mod memory;

use std::time::Instant;

/// The middle of `values` (the upper of the two middles where their number is even).
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// One thing to be timed: a call of it does the work once.
pub type Work<'a> = Box<dyn FnMut() + 'a>;

/// Times all `works` in turn, `rounds` times, and returns for each its nanoseconds, one
/// value a round. Every timed run follows an untimed one, so that none pays for what the
/// one before it evicted.
pub fn interleaved(rounds: usize, works: &mut [Work<'_>]) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(rounds); works.len()];
    for round in 0..rounds {
        for turn in 0..works.len() {
            // Begins with another each time: nobody always follows the same neighbour.
            let which = (turn + round) % works.len();
            works[which]();
            let start = Instant::now();
            works[which]();
            times[which].push(start.elapsed().as_nanos() as f64);
        }
    }
    times
}

/// The median over rounds of `of / by`, each pair measured within one round.
pub fn ratio(of: &[f64], by: &[f64]) -> f64 {
    let ratios: Vec<f64> = of.iter().zip(by).map(|(of, by)| of / by).collect();
    median(&ratios)
}
