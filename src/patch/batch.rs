//! A batch: any number of sites, three passes, whole or not at all.

use super::error::{CheckError, PatchError};
use super::sort::sort_by_key;
use super::steps::{Breakpoint, ShortJump, Steps};
use super::{Cores, Poke, PokeState, Protocol, Text, TrapResolver};
use crate::addr::PatchSite;

/// Sites that are to change together.
#[derive(Debug)]
#[must_use = "a batch changes nothing until it is checked and landed"]
pub struct Batch<'a> {
    protocol: Protocol,
    pokes: &'a mut [Poke],
}

/// A [`Batch`] whose sites were all found to hold their old bytes.
#[derive(Debug)]
#[must_use = "a checked batch changes nothing until it is landed"]
pub struct CheckedBatch<'a> {
    protocol: Protocol,
    pokes: &'a mut [Poke],
}

/// Short for the error of a batch over `T` and `C`.
type Failure<T, C> = PatchError<<T as Text>::Error, <C as Cores>::Error>;

impl<'a> Batch<'a> {
    /// A batch of `pokes`, in any order; they are sorted by site.
    pub fn new(protocol: Protocol, pokes: &'a mut [Poke]) -> Self {
        Self { protocol, pokes }
    }

    /// Reads every site and compares it with its old bytes. Writes nothing.
    ///
    /// # Errors
    /// [`CheckError`] says what was found.
    pub fn check<T: Text>(self, text: &T) -> Result<CheckedBatch<'a>, CheckError<T::Error>> {
        let Self { protocol, pokes } = self;
        let judge = match protocol {
            Protocol::ShortJump => ShortJump::judge::<T>,
            Protocol::Breakpoint => Breakpoint::judge::<T>,
        };
        examine(pokes, |address| text.read(address), |poke| judge(text, poke))?;
        Ok(CheckedBatch { protocol, pokes })
    }

    /// [Checks](Self::check) and [lands](CheckedBatch::land) in one call.
    ///
    /// # Safety
    /// As [`CheckedBatch::land`].
    ///
    /// # Errors
    /// Any [`PatchError`].
    pub unsafe fn apply<T: Text, C: Cores>(
        self,
        text: &mut T,
        cores: &mut C,
        traps: &TrapResolver,
    ) -> Result<(), Failure<T, C>> {
        let checked = self.check(text)?;
        // SAFETY: the caller's contract is the same.
        unsafe { checked.land(text, cores, traps) }
    }
}

impl CheckedBatch<'_> {
    /// The sites of the batch, sorted.
    #[must_use]
    pub fn pokes(&self) -> &[Poke] {
        self.pokes
    }

    /// Writes every site, in three passes with a synchronisation of the cores after each.
    ///
    /// # Safety
    /// - Nobody else writes to these sites or to their text's protection until this returns.
    /// - No core is *inside* a site, that is, has one of a site's bytes but the first as its
    ///   next instruction: the old bytes have been one instruction since before any core that
    ///   could be there last passed.
    /// - Whatever a new instruction branches to is emitted, and ready to run.
    /// - With [`Protocol::Breakpoint`], every core's trap handler asks `traps`, and nobody
    ///   else lands a batch with the same resolver at the same time.
    ///
    /// # Errors
    /// [`Open`](PatchError::Open), [`Store`](PatchError::Store),
    /// [`Synchronise`](PatchError::Synchronise): the old bytes stand everywhere.
    /// [`Stuck`](PatchError::Stuck) where that could not be achieved.
    pub unsafe fn land<T: Text, C: Cores>(
        self,
        text: &mut T,
        cores: &mut C,
        traps: &TrapResolver,
    ) -> Result<(), Failure<T, C>> {
        let Self { protocol, pokes } = self;
        if pokes.is_empty() {
            return Ok(());
        }
        text.open(pokes).map_err(PatchError::Open)?;
        // SAFETY: the text is open for exactly these sites; the rest is the caller's contract.
        let landed = unsafe {
            match protocol {
                Protocol::ShortJump => passes::<ShortJump, T, C>(text, cores, pokes),
                Protocol::Breakpoint => {
                    traps.publish(pokes);
                    let landed = passes::<Breakpoint, T, C>(text, cores, pokes);
                    traps.withdraw();
                    landed
                }
            }
        };
        text.close();
        landed
    }
}

/// Sorts `pokes` by site, and compares what `read` finds at each with its old bytes. `judge`
/// says how those can be done that do change.
pub(super) fn examine<E, const N: usize>(
    pokes: &mut [Poke<N>],
    read: impl Fn(u64) -> Result<[u8; N], E>,
    judge: impl Fn(&mut Poke<N>) -> PokeState,
) -> Result<(), CheckError<E, N>> {
    if !pokes.is_sorted_by(|a, b| a.site < b.site) {
        sort_by_key(pokes, |poke| poke.site.get());
        let twice = pokes.iter().zip(pokes.iter().skip(1)).find(|(a, b)| a.site == b.site);
        if let Some((twice, _)) = twice {
            return Err(CheckError::Duplicate { site: twice.site });
        }
    }
    let mut count = 0;
    let mut first = None;
    for poke in pokes {
        let found =
            read(poke.site.get()).map_err(|cause| CheckError::Read { site: poke.site, cause })?;
        poke.state = if found != poke.old {
            poke.found = found;
            PokeState::Changed
        } else if poke.old == poke.new {
            PokeState::Unchanged
        } else {
            judge(poke)
        };
        if let Some(conflict) = poke.conflict() {
            count += 1;
            first = first.or(Some(conflict));
        }
    }
    match first {
        Some(first) => Err(CheckError::Conflicts { count, first }),
        None => Ok(()),
    }
}

/// How far a batch came: the sites before these positions have been through the pass.
#[derive(Clone, Copy, Default)]
struct Progress {
    guarded: usize,
    tails: usize,
    heads: usize,
}

/// The three passes, and the way back if one fails.
///
/// # Safety
/// As [`CheckedBatch::land`], and `text` is open for `pokes`.
unsafe fn passes<S: Steps, T: Text, C: Cores>(
    text: &mut T,
    cores: &mut C,
    pokes: &[Poke],
) -> Result<(), Failure<T, C>> {
    let mut progress = Progress::default();
    // SAFETY: the contract is handed on.
    let failure = match unsafe { forward::<S, T, C>(text, cores, pokes, &mut progress) } {
        Ok(()) => return Ok(()),
        Err(failure) => failure,
    };
    // SAFETY: the contract is handed on, and `progress` is what `forward` has stored.
    match unsafe { back::<S, T, C>(text, cores, pokes, progress) } {
        Ok(()) => Err(failure),
        Err(site) => Err(PatchError::Stuck { site }),
    }
}

/// Writes the new bytes of every site, noting in `progress` what has been stored.
///
/// # Safety
/// As [`passes`].
unsafe fn forward<S: Steps, T: Text, C: Cores>(
    text: &mut T,
    cores: &mut C,
    pokes: &[Poke],
    progress: &mut Progress,
) -> Result<(), Failure<T, C>> {
    pass(pokes, &mut progress.guarded, |poke| {
        // SAFETY: the text is open; no core is inside the site and its tail is the old one.
        unsafe { S::guard(text, poke) }
    })?;
    cores.synchronise().map_err(PatchError::Synchronise)?;
    pass(pokes, &mut progress.tails, |poke| {
        // SAFETY: every site is guarded, and every core has synchronised since.
        unsafe { S::tail(text, poke, &poke.new) }
    })?;
    cores.synchronise().map_err(PatchError::Synchronise)?;
    pass(pokes, &mut progress.heads, |poke| {
        // SAFETY: every tail is the new one, and every core has synchronised since.
        unsafe { S::head(text, poke, &poke.new) }
    })?;
    cores.synchronise().map_err(PatchError::Synchronise)
}

/// Takes one step at each site that changes, counting the sites that are done.
#[inline]
pub(super) fn pass<T, C, const N: usize>(
    pokes: &[Poke<N>],
    done: &mut usize,
    mut step: impl FnMut(&Poke<N>) -> Result<(), T>,
) -> Result<(), PatchError<T, C, N>> {
    for poke in pokes {
        if poke.state != PokeState::Unchanged {
            step(poke).map_err(|cause| PatchError::Store { site: poke.site, cause })?;
        }
        *done += 1;
    }
    Ok(())
}

/// The first `count` pokes, but for those at which nothing is stored.
pub(super) fn changing<const N: usize>(
    pokes: &[Poke<N>],
    count: usize,
) -> impl Iterator<Item = &Poke<N>> {
    pokes.iter().take(count).filter(|poke| poke.state != PokeState::Unchanged)
}

/// Takes back what a failed [`forward`] has stored: the same three passes towards the old
/// bytes, each over the sites that need it. Gives the site at which it could not go on.
///
/// # Safety
/// As [`passes`], and `progress` says what has been stored.
unsafe fn back<S: Steps, T: Text, C: Cores>(
    text: &mut T,
    cores: &mut C,
    pokes: &[Poke],
    progress: Progress,
) -> Result<(), PatchSite> {
    let Some(first) = pokes.first() else { return Ok(()) };
    let mut synchronise = || cores.synchronise().map_err(|_| first.site);
    for poke in changing(pokes, progress.heads) {
        // SAFETY: these sites hold the new instruction whole; guarding it changes no tail.
        unsafe { S::guard(text, poke) }.map_err(|_| poke.site)?;
    }
    if progress.tails > 0 {
        synchronise()?;
        for poke in changing(pokes, progress.tails) {
            // SAFETY: every site is guarded, and every core has synchronised since.
            unsafe { S::tail(text, poke, &poke.old) }.map_err(|_| poke.site)?;
        }
        synchronise()?;
    }
    for poke in changing(pokes, progress.guarded) {
        // SAFETY: every tail is the old one; where one was written, every core has
        // synchronised since, and where none was, cores never saw another.
        unsafe { S::head(text, poke, &poke.old) }.map_err(|_| poke.site)?;
    }
    synchronise()
}
