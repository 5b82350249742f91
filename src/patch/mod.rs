//! Changing instructions that other cores are executing.
//!
//! A patch site is five bytes that hold one instruction, and any core may be about to fetch
//! it while it is rewritten. Instruction fetch is not a memory access that program order or
//! fences speak of: a core may see some of the new bytes and some of the old ones until it
//! executes a serialising instruction (Intel SDM volume 3, 10.1.3 "Handling Self- and
//! Cross-Modifying Code"; AMD APM volume 2, 7.6.1). So no protocol here ever has a core
//! decode a mixture: it first makes the *start* of the site something that keeps cores away
//! from its tail, waits until every core has [synchronised](Cores::synchronise), writes the
//! tail, waits again, and then writes the start.
//!
//! ```text
//!              short jump                      breakpoint
//! old          0f 1f 44 00 00                  0f 1f 44 00 00
//! pass 1       eb 03 44 00 00   jmp +3         cc 1f 44 00 00   int3
//!              -- every core synchronises --
//! pass 2       eb 03 T2 T3 T4                  cc T1 T2 T3 T4
//!              -- every core synchronises --
//! pass 3       N0 N1 T2 T3 T4                  N0 T1 T2 T3 T4
//!              -- every core synchronises --
//! ```
//!
//! * [`ShortJump`](Protocol::ShortJump) needs no trap, so it is what a process uses: a thread
//!   that blocks `SIGTRAP` and meets an `int3` is killed. While it runs, calls pass the site
//!   without running what the site calls. Its first two bytes are one store, and therefore
//!   must lie where the embedder can [store a pair](Text::can_store_pair).
//!   A call or jump that becomes another is written as a whole in pass 3, in one store, where
//!   the embedder [can](Text::can_store_site): then a core runs the old target or the new one,
//!   and no call passes unhooked.
//! * [`Breakpoint`](Protocol::Breakpoint) works at any alignment. A core that traps is told
//!   by a [`TrapResolver`] to behave as the new instruction would.
//!
//! A batch has any number of sites and pays for three synchronisations in all
//! ([`Batch::apply`]). It lands whole or not at all: every site's bytes are checked before
//! the first store, and a store that fails has everything before it taken back.
//!
//! Where every instruction is one aligned word, as on arm64, there is no tail to guard, and
//! one store and one synchronisation do it: [`WordBatch`].

mod batch;
mod error;
mod resolve;
mod sort;
mod steps;
mod word;

pub use batch::{Batch, CheckedBatch};
pub use error::{CheckError, Conflict, PatchError};
pub use resolve::{Resume, TrapResolver};
pub use word::{CheckedWordBatch, WordBatch, WordText};

use core::fmt::{Debug, Display};

use crate::addr::PatchSite;
use crate::encode::aarch64::WORD;

/// Bytes of an x86-64 patch site: one `call rel32`, `jmp rel32` or five-byte nop.
pub const SITE_LEN: usize = crate::layout::x86_64::SITE_LEN as usize;

/// How sites are rewritten while cores execute them. The module's page draws both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Guard the tail with a two-byte jump over it. Needs no trap handler.
    ShortJump,
    /// Guard the tail with `int3`. Needs a trap handler that asks a [`TrapResolver`].
    Breakpoint,
}

/// One site of a batch: what must stand there, and what shall.
///
/// `N` is the bytes of the site. The x86-64 protocols take the default, and a [`WordBatch`]
/// takes [`WORD`]. 24 bytes, so that a batch of 100,000 streams through a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Poke<const N: usize = SITE_LEN> {
    /// The site.
    pub site: PatchSite,
    /// The bytes that must stand at the site before anything is written.
    pub old: [u8; N],
    /// The bytes that stand there afterwards: one instruction.
    pub new: [u8; N],
    /// What a check took exception to, once it has failed; see [`Poke::conflict`].
    pub(crate) found: [u8; N],
    pub(crate) state: PokeState,
}

/// What the checks of a batch said of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PokeState {
    /// Not checked yet, or as expected.
    Good,
    /// Other bytes than the old ones stand there.
    Changed,
    /// The first two bytes cannot be stored at once.
    Straddles,
    /// As expected, and all five bytes are stored at once: a branch gets another target.
    OneStore,
    /// As expected, and it stays so: nothing is stored.
    Unchanged,
    /// No instruction begins at this address: it is no multiple of a word.
    Misaligned,
    /// The old instruction or the new one may not be changed under a core that executes it.
    Unlisted,
}

const _: () = assert!(size_of::<Poke>() == 24 && size_of::<Poke<WORD>>() == 24);

impl<const N: usize> Poke<N> {
    /// A poke of nothing, to fill a buffer with.
    pub const EMPTY: Self = Self::new(PatchSite::new(0), [0; N], [0; N]);

    /// A change of `site` from `old` to `new`.
    #[must_use]
    pub const fn new(site: PatchSite, old: [u8; N], new: [u8; N]) -> Self {
        Self { site, old, new, found: [0; N], state: PokeState::Good }
    }
}

/// Writing to text that may be running.
///
/// # Safety
/// An implementer promises that, between a successful [`open`](Text::open) and the matching
/// [`close`](Text::close), for every site that was named to `open`:
/// - execution of the text is never interrupted: its pages stay executable throughout;
/// - [`store_pair`](Text::store_pair) and [`store_byte`](Text::store_byte) are each one
///   access to memory, so that no core sees half of it;
/// - a store is visible to other cores' loads in program order, and to their instruction
///   fetch at the latest when they have synchronised through [`Cores`];
/// - a store that returns an error has changed nothing.
pub unsafe trait Text {
    /// What the embedder reports when text cannot be opened or written.
    type Error: Debug + Display;

    /// Copies the `N` bytes at `address` out of the text.
    ///
    /// # Errors
    /// The embedder's, where the address is not in text it knows.
    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Self::Error>;

    /// Makes the text around every site in `pokes` writable. Nothing has been written yet.
    ///
    /// # Errors
    /// The embedder's; then nothing is open and nothing changed.
    fn open(&mut self, pokes: &[Poke]) -> Result<(), Self::Error>;

    /// Ends what [`open`](Text::open) began. Cannot fail the batch, which has landed.
    fn close(&mut self);

    /// Stores one byte.
    ///
    /// # Safety
    /// `address` is in a site named to the open window, or in the padding before it; what
    /// results there is what the protocol in progress wants cores to execute.
    ///
    /// # Errors
    /// The embedder's; then the byte is as before.
    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Self::Error>;

    /// Whether the two bytes at `address` can be stored in one access: by default, whether
    /// they lie in one aligned 8-byte word (Intel SDM volume 3, 10.1.1; AMD APM volume 2,
    /// 7.3.2).
    fn can_store_pair(&self, address: u64) -> bool {
        address % 8 != 7
    }

    /// Stores two bytes in one access.
    ///
    /// # Safety
    /// As [`store_byte`](Text::store_byte), and [`can_store_pair`](Text::can_store_pair) says
    /// so of `address`.
    ///
    /// # Errors
    /// The embedder's; then both bytes are as before.
    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), Self::Error>;

    /// Whether all bytes of the site at `address` can be stored in one access, which the
    /// instruction fetch of a running core sees whole or not at all. By default not.
    fn can_store_site(&self, address: u64) -> bool {
        let _ = address;
        false
    }

    /// Stores all bytes of a site in one access.
    ///
    /// # Safety
    /// As [`store_byte`](Text::store_byte), and [`can_store_site`](Text::can_store_site) says
    /// so of `address`; cores may be executing the site.
    ///
    /// # Errors
    /// The embedder's; then every byte is as before.
    unsafe fn store_site(
        &mut self,
        address: u64,
        bytes: [u8; SITE_LEN],
    ) -> Result<(), Self::Error> {
        // SAFETY: never reached: an embedder that can store sites overrides both.
        unsafe { self.store_unexecuted(address, bytes) }
    }

    /// Stores `N` bytes, in any order and any number of accesses.
    ///
    /// # Safety
    /// As [`store_byte`](Text::store_byte), and no core can be executing these bytes.
    ///
    /// # Errors
    /// The embedder's; then every byte is as before.
    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Self::Error>;
}

/// Making every core forget what it has fetched.
///
/// # Safety
/// An implementer promises that when [`synchronise`](Cores::synchronise) has returned `Ok`,
/// every core that may execute the patched text has executed a serialising instruction, or
/// had what Arm calls a context synchronization event, after the call began, or will before
/// it next executes that text.
pub unsafe trait Cores {
    /// What the embedder reports when cores cannot be synchronised.
    type Error: Debug + Display;

    /// Synchronises every core.
    ///
    /// # Errors
    /// The embedder's; then no promise holds.
    fn synchronise(&mut self) -> Result<(), Self::Error>;
}
