//! Whether memory stays flat.

use std::fs;

/// Memory that this process has in use, in KiB, sampled over the run.
pub struct Memory {
    samples: Vec<u64>,
}

impl Memory {
    pub fn new() -> Self {
        Self { samples: Vec::new() }
    }

    /// Takes a sample.
    pub fn sample(&mut self) -> u64 {
        let pages = || fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok();
        let resident = pages().unwrap_or(0_u64) * 4;
        self.samples.push(resident);
        resident
    }

    /// Without a first quarter to warm up: by how much the most that was in use in the second
    /// half of the rest is more than in the first. What is detached is freed every now and
    /// then, so that the most says more than the last.
    pub fn growth(&self) -> u64 {
        let warm = self.samples.get(self.samples.len() / 4..).unwrap_or_default();
        let (first, second) = warm.split_at(warm.len() / 2);
        let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
        most(second).saturating_sub(most(first))
    }
}
