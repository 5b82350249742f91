//! Words: the arm64 protocol, one store for each site.

use core::fmt::{Debug, Display};

use super::batch::{changing, examine, pass};
use super::{CheckError, Cores, PatchError, Poke, PokeState};
use crate::addr::PatchSite;
use crate::encode::aarch64::WORD;

/// Arm64 sites that are to change together, each one instruction into another.
///
/// An arm64 instruction is one aligned word, so one store replaces it whole. That alone is
/// not enough: a core that executes an instruction while it is modified may do *anything*,
/// unless the old one and the new one are both among B, BL, BRK, HVC, ISB, NOP, SMC and SVC.
/// Of those the architecture promises that a core executes the one or the other (Arm
/// Architecture Reference Manual, DDI 0487, B2.2.5 "Concurrent modification and execution of
/// instructions"). [`check`](Self::check) refuses all others, conditional branches with them:
/// a core may take the condition from the one and the target from the other.
///
/// ```text
/// old          1f 20 03 d5      nop
/// pass         NN NN NN 94      bl body
///              -- caches are flushed, every core synchronises --
/// ```
///
/// Until it has synchronised, a core executes the old instruction or the new one, one after
/// the other in any order: nothing here relies on its not going back.
#[derive(Debug)]
#[must_use = "a batch changes nothing until it is checked and landed"]
pub struct WordBatch<'a> {
    pokes: &'a mut [Poke<WORD>],
}

/// A [`WordBatch`] whose sites were all found to hold their old instruction, and may change.
#[derive(Debug)]
#[must_use = "a checked batch changes nothing until it is landed"]
pub struct CheckedWordBatch<'a> {
    pokes: &'a mut [Poke<WORD>],
}

/// Writing arm64 instructions that may be running.
///
/// # Safety
/// An implementer promises that, between a successful [`open`](WordText::open) and the
/// matching [`close`](WordText::close), for every site that was named to `open`:
/// - execution of the text is never interrupted: its pages stay executable throughout;
/// - [`store`](WordText::store) is one access to memory, so that no core sees half of it;
/// - a core that synchronises after [`flush`](WordText::flush) has returned fetches what was
///   stored before `flush` was called;
/// - a store that returns an error has changed nothing.
pub unsafe trait WordText {
    /// What the embedder reports when text cannot be opened or written.
    type Error: Debug + Display;

    /// Copies the instruction at `address` out of the text, in the order of its bytes.
    ///
    /// # Errors
    /// The embedder's, where the address is not in text it knows.
    fn read(&self, address: u64) -> Result<[u8; WORD], Self::Error>;

    /// Makes the text around every site in `pokes` writable. Nothing has been written yet.
    ///
    /// # Errors
    /// The embedder's; then nothing is open and nothing changed.
    fn open(&mut self, pokes: &[Poke<WORD>]) -> Result<(), Self::Error>;

    /// Ends what [`open`](WordText::open) began. Cannot fail the batch, which has landed.
    fn close(&mut self);

    /// Stores one instruction in one access.
    ///
    /// # Safety
    /// `address` is a site named to the open window, and a multiple of [`WORD`]; what stands
    /// there and `instruction` may be changed into each other while cores execute them.
    ///
    /// # Errors
    /// The embedder's; then the instruction is as before.
    unsafe fn store(&mut self, address: u64, instruction: [u8; WORD]) -> Result<(), Self::Error>;

    /// Makes what was stored at the sites of `pokes` what instruction fetches find, in every
    /// core's caches: cleans their data cache lines to the point of unification, and
    /// invalidates their instruction cache lines (`dc cvau`, `dsb ish`, `ic ivau`, `dsb ish`).
    /// What a core fetched earlier, it may still execute.
    fn flush(&mut self, pokes: &[Poke<WORD>]);
}

/// Short for the error of a batch over `T` and `C`.
type Failure<T, C> = PatchError<<T as WordText>::Error, <C as Cores>::Error, WORD>;

impl<'a> WordBatch<'a> {
    /// A batch of `pokes`, in any order; they are sorted by site.
    pub fn new(pokes: &'a mut [Poke<WORD>]) -> Self {
        Self { pokes }
    }

    /// Reads every site and compares it with its old instruction, and looks at whether that
    /// and the new one may be changed into each other. Writes nothing.
    ///
    /// # Errors
    /// [`CheckError`] says what was found.
    pub fn check<T: WordText>(
        self,
        text: &T,
    ) -> Result<CheckedWordBatch<'a>, CheckError<T::Error, WORD>> {
        let Self { pokes } = self;
        examine(pokes, |address| text.read(address), judge)?;
        Ok(CheckedWordBatch { pokes })
    }

    /// [Checks](Self::check) and [lands](CheckedWordBatch::land) in one call.
    ///
    /// # Safety
    /// As [`CheckedWordBatch::land`].
    ///
    /// # Errors
    /// Any [`PatchError`].
    pub unsafe fn apply<T: WordText, C: Cores>(
        self,
        text: &mut T,
        cores: &mut C,
    ) -> Result<(), Failure<T, C>> {
        let checked = self.check(text)?;
        // SAFETY: the caller's contract is the same.
        unsafe { checked.land(text, cores) }
    }
}

impl CheckedWordBatch<'_> {
    /// The sites of the batch, sorted.
    #[must_use]
    pub fn pokes(&self) -> &[Poke<WORD>] {
        self.pokes
    }

    /// Writes every site, flushes the caches, and synchronises the cores once.
    ///
    /// # Safety
    /// - Nobody else writes to these sites or to their text's protection until this returns.
    /// - Whatever a new instruction branches or traps to is ready to run, and every core that
    ///   may get there fetches it.
    ///
    /// # Errors
    /// [`Open`](PatchError::Open), [`Store`](PatchError::Store),
    /// [`Synchronise`](PatchError::Synchronise): the old instructions stand everywhere.
    /// [`Stuck`](PatchError::Stuck) where that could not be achieved.
    pub unsafe fn land<T: WordText, C: Cores>(
        self,
        text: &mut T,
        cores: &mut C,
    ) -> Result<(), Failure<T, C>> {
        let Self { pokes } = self;
        if pokes.is_empty() {
            return Ok(());
        }
        text.open(pokes).map_err(PatchError::Open)?;
        let mut stored = 0;
        // SAFETY: the text is open for exactly these sites; the rest is the caller's contract.
        let forward = unsafe { forward(text, cores, pokes, &mut stored) };
        let landed = forward.map_err(|failure| {
            // SAFETY: as above, and `stored` is what `forward` has stored.
            match unsafe { back(text, cores, pokes, stored) } {
                Ok(()) => failure,
                Err(site) => PatchError::Stuck { site },
            }
        });
        text.close();
        landed
    }
}

/// Writes the new instruction of every site, noting in `stored` how many have it.
///
/// # Safety
/// As [`CheckedWordBatch::land`], `text` is open for `pokes`, and they were checked.
unsafe fn forward<T: WordText, C: Cores>(
    text: &mut T,
    cores: &mut C,
    pokes: &[Poke<WORD>],
    stored: &mut usize,
) -> Result<(), Failure<T, C>> {
    pass(pokes, stored, |poke| {
        // SAFETY: the text is open; the check has looked at the address and at both.
        unsafe { text.store(poke.site.get(), poke.new) }
    })?;
    text.flush(pokes);
    cores.synchronise().map_err(PatchError::Synchronise)
}

/// Takes back what a failed [`forward`] has stored. Gives the site at which it could not go on.
///
/// # Safety
/// As [`forward`], and `stored` says what has been stored.
unsafe fn back<T: WordText, C: Cores>(
    text: &mut T,
    cores: &mut C,
    pokes: &[Poke<WORD>],
    stored: usize,
) -> Result<(), PatchSite> {
    let Some(first) = changing(pokes, stored).next() else { return Ok(()) };
    for poke in changing(pokes, stored) {
        // SAFETY: as in `forward`; what may change one way may change the other.
        unsafe { text.store(poke.site.get(), poke.old) }.map_err(|_| poke.site)?;
    }
    text.flush(pokes);
    cores.synchronise().map_err(|_| first.site)
}

/// How `poke`, whose old instruction stands, can be done.
fn judge(poke: &mut Poke<WORD>) -> PokeState {
    if !poke.site.get().is_multiple_of(WORD as u64) {
        return PokeState::Misaligned;
    }
    match [poke.old, poke.new].into_iter().find(|instruction| !is_listed(*instruction)) {
        Some(unlisted) => {
            poke.found = unlisted;
            PokeState::Unlisted
        }
        None => PokeState::Good,
    }
}

/// Whether the architecture lets `instruction` change into another of these, and another into
/// it, while cores execute it: the list in [`WordBatch`]. Encodings: DDI 0487, C4.1.
fn is_listed(instruction: [u8; WORD]) -> bool {
    let word = u32::from_le_bytes(instruction);
    // b and bl, with any displacement.
    word & 0x7c00_0000 == 0x1400_0000
        // svc, hvc, smc and brk, with any number.
        || matches!(word & 0xffe0_001f, 0xd400_0001..=0xd400_0003 | 0xd420_0000)
        // isb, with any option.
        || word & 0xffff_f0ff == 0xd503_30df
        // nop, and no other hint.
        || word == 0xd503_201f
}
