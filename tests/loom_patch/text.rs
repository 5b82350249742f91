//! The embedder's traits over a machine, with what breaks in it.

use core::fmt::{self, Display};
use std::sync::Arc;

use fentry::patch::{Cores, Poke, SITE_LEN, Text};
use loom::sync::atomic::Ordering;

use crate::machine::{Head, Machine, SITES};
use crate::plan::Break;

/// The machine's text, as the core that patches writes it.
pub struct Memory {
    machine: Arc<Machine>,
    /// What the patching core has stored, which is what it reads.
    bytes: Vec<[u8; SITE_LEN]>,
    /// Stores so far, the first of which is number 1.
    stores: usize,
    /// The tail that [`Break::LateTails`] holds back: its site, and where it starts.
    late: Option<(usize, usize)>,
}

/// What the model's text and cores report.
#[derive(Debug)]
pub struct ToldToFail;

impl Display for ToldToFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("told to fail")
    }
}

/// The site that `address` is in, and which byte of it.
fn locate(address: u64) -> (usize, usize) {
    let site = SITES.iter().position(|&site| (site..site + 5).contains(&address)).unwrap();
    (site, (address - SITES[site]) as usize)
}

impl Memory {
    pub fn new(machine: Arc<Machine>) -> Self {
        let bytes = vec![machine.plan.stages[0]; machine.plan.sites];
        Self { machine, bytes, stores: 0, late: None }
    }

    /// Counts a store, and fails it if that is the plan.
    fn count(&mut self) -> Result<(), ToldToFail> {
        self.stores += 1;
        let fails = self.machine.plan.breaks.fails(self.stores);
        if fails { Err(ToldToFail) } else { Ok(()) }
    }

    /// Stores `bytes` one by one.
    fn store(&mut self, site: usize, offset: usize, bytes: &[u8]) {
        let overtakes = self.machine.plan.breaks == Break::Overtake;
        let order = if overtakes { Ordering::Relaxed } else { Ordering::Release };
        for (offset, &byte) in (offset..).zip(bytes) {
            self.machine.sites[site].store(self.stores as u64, offset, byte, order);
        }
    }

    /// Stores what was held back for longer than it may be.
    fn store_late(&mut self) {
        if let Some((site, offset)) = self.late.take() {
            let bytes = self.bytes[site];
            self.store(site, offset, &bytes[offset..]);
        }
    }
}

// SAFETY: the machine's bytes are atomics, a pair is one of them, and its stores release. The
// mutants break that on purpose.
unsafe impl Text for Memory {
    type Error = ToldToFail;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], ToldToFail> {
        let (site, offset) = locate(address);
        Ok(self.bytes[site][offset..offset + N].try_into().unwrap())
    }

    fn open(&mut self, _: &[Poke]) -> Result<(), ToldToFail> {
        Ok(())
    }

    fn close(&mut self) {}

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), ToldToFail> {
        self.count()?;
        let (site, offset) = locate(address);
        self.bytes[site][offset] = byte;
        self.store(site, offset, &[byte]);
        self.store_late();
        Ok(())
    }

    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), ToldToFail> {
        self.count()?;
        let (site, offset) = locate(address);
        assert_eq!(offset, 0, "a pair inside a site");
        self.bytes[site][..2].copy_from_slice(&bytes);
        let machine = Arc::clone(&self.machine);
        match &machine.sites[site].head {
            Head::Pair(pair) => pair.store(self.stores as u64, &bytes, Ordering::Release),
            Head::Bytes(_) => self.store(site, 0, &bytes),
        }
        self.store_late();
        Ok(())
    }

    fn can_store_site(&self, _: u64) -> bool {
        self.machine.plan.one_store
    }

    unsafe fn store_site(&mut self, address: u64, bytes: [u8; 5]) -> Result<(), ToldToFail> {
        self.count()?;
        let (site, offset) = locate(address);
        assert_eq!(offset, 0, "a site inside a site");
        self.bytes[site] = bytes;
        let machine = Arc::clone(&self.machine);
        match &machine.sites[site].whole {
            Some(whole) if machine.plan.breaks != Break::Split => {
                whole.store(self.stores as u64, &bytes, Ordering::Release);
            }
            _ => self.store(site, 0, &bytes),
        }
        Ok(())
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), ToldToFail> {
        self.count()?;
        let (site, offset) = locate(address);
        self.bytes[site][offset..offset + N].copy_from_slice(&bytes);
        if self.machine.plan.breaks == Break::LateTails {
            self.late = Some((site, offset));
        } else {
            self.store(site, offset, &bytes);
        }
        Ok(())
    }
}

/// What interrupts the machine's cores.
pub struct Wires {
    machine: Arc<Machine>,
    /// Which of the patching threads has it.
    thread: usize,
    calls: usize,
}

impl Wires {
    pub fn new(machine: Arc<Machine>, thread: usize) -> Self {
        Self { machine, thread, calls: 0 }
    }
}

// SAFETY: a core whose boundary was held since has not fetched in between, and what it fetches
// next happens after that. The mutants break that on purpose.
unsafe impl Cores for Wires {
    type Error = ToldToFail;

    fn synchronise(&mut self) -> Result<(), ToldToFail> {
        self.calls += 1;
        if self.machine.plan.breaks.synchronises(self.calls, self.thread)? {
            for core in &self.machine.cores {
                drop(core.boundary.lock());
            }
        }
        Ok(())
    }
}
