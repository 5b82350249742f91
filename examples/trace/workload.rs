//! Threads that query their databases until told to stop. Nothing here knows that it is
//! being traced.

use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::shop::{Shop, Tally};

/// The running threads. Dropping it stops them.
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    crashed: u64,
}

struct Shared {
    stop: AtomicBool,
    tallies: Vec<Tally>,
}

impl Workload {
    /// Opens a database for each of `threads` threads and starts them. Each first calls
    /// `on_start` with its number. The same `seed` gives the same statements.
    pub fn start(
        threads: usize,
        seed: u64,
        on_start: fn(usize),
    ) -> Result<Self, Box<dyn core::error::Error>> {
        let shops = (0..threads)
            .map(|number| Shop::open(number, seed.wrapping_add(number as u64)))
            .collect::<Result<Vec<_>, _>>()?;
        let tallies = (0..threads).map(|_| Tally::default()).collect();
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), tallies });
        let mut workload = Self { shared, threads: Vec::new(), crashed: 0 };
        for (number, shop) in shops.into_iter().enumerate() {
            workload.spawn(number, shop, on_start)?;
        }
        Ok(workload)
    }

    fn spawn(&mut self, number: usize, mut shop: Shop, on_start: fn(usize)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = Builder::new().name(format!("queries-{number}")).spawn(move || {
            on_start(number);
            while !shared.stop.load(Ordering::Relaxed) {
                shop.round(&shared.tallies[number]);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Statements executed so far, by all threads.
    pub fn queries(&self) -> u64 {
        self.shared.tallies.iter().map(|tally| tally.queries.load(Ordering::Relaxed)).sum()
    }

    /// Stops the threads; how many statements were wrong. A thread that panicked is one.
    pub fn finish(mut self) -> u64 {
        self.join();
        let wrong = self.shared.tallies.iter().map(|tally| tally.wrong.load(Ordering::Relaxed));
        wrong.sum::<u64>() + self.crashed
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            self.crashed += u64::from(thread.join().is_err());
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.join();
    }
}
