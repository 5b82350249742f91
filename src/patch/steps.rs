//! What each protocol stores in its three passes.

use super::{Poke, PokeState, SITE_LEN, Text};

/// One protocol: how it keeps cores from a site's tail, and which bytes are the tail.
pub(super) trait Steps {
    /// How `poke`, whose old bytes stand, can be done.
    fn judge<T: Text>(text: &T, poke: &Poke) -> PokeState;

    /// Pass 1: makes the start of the site keep cores away from its tail.
    ///
    /// # Safety
    /// The site is open in `text`, and its tail holds what it held when every core last
    /// synchronised.
    unsafe fn guard<T: Text>(text: &mut T, poke: &Poke) -> Result<(), T::Error>;

    /// Pass 2: writes the part of `bytes` behind the guard.
    ///
    /// # Safety
    /// The site is open in `text`, and every core has synchronised since it was guarded.
    unsafe fn tail<T: Text>(
        text: &mut T,
        poke: &Poke,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error>;

    /// Pass 3: replaces the guard by the start of `bytes`.
    ///
    /// # Safety
    /// The site is open in `text`, its tail is that of `bytes`, and every core has
    /// synchronised since it was.
    unsafe fn head<T: Text>(
        text: &mut T,
        poke: &Poke,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error>;
}

/// `eb 03`: `jmp` over the three bytes behind it. A core that executes it goes on at the
/// origin, as if the site held a nop. That is the old behaviour when a program is switched
/// on, and the new one when it is switched off.
pub(super) struct ShortJump;

/// Whether one near call becomes another, or one near jump.
fn is_retarget([old, ..]: &[u8; SITE_LEN], [new, ..]: &[u8; SITE_LEN]) -> bool {
    old == new && matches!(old, 0xe8 | 0xe9)
}

/// `jmp rel8` over the tail.
const JUMP_OVER_TAIL: [u8; 2] = [0xeb, (SITE_LEN - 2) as u8];

impl Steps for ShortJump {
    #[inline]
    fn judge<T: Text>(text: &T, poke: &Poke) -> PokeState {
        let site = poke.site.get();
        if is_retarget(&poke.old, &poke.new) && text.can_store_site(site) {
            PokeState::OneStore
        } else if text.can_store_pair(site) {
            PokeState::Good
        } else {
            PokeState::Straddles
        }
    }

    #[inline]
    unsafe fn guard<T: Text>(text: &mut T, poke: &Poke) -> Result<(), T::Error> {
        if poke.state == PokeState::OneStore {
            return Ok(());
        }
        // SAFETY: the site is open (contract), and `Batch::check` refused one that straddles.
        // A core sees the old instruction or the whole jump, both of which are instructions.
        unsafe { text.store_pair(poke.site.get(), JUMP_OVER_TAIL) }
    }

    #[inline]
    unsafe fn tail<T: Text>(
        text: &mut T,
        poke: &Poke,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        if poke.state == PokeState::OneStore {
            return Ok(());
        }
        let [_, _, tail @ ..] = *bytes;
        // SAFETY: the site is open, and every core has synchronised since the jump stood
        // there (contract), so none decodes the three bytes that it jumps over.
        unsafe { text.store_unexecuted(poke.site.get().wrapping_add(2), tail) }
    }

    #[inline]
    unsafe fn head<T: Text>(
        text: &mut T,
        poke: &Poke,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        if poke.state == PokeState::OneStore {
            // SAFETY: the site is open (contract), and `judge` asked whether it can be stored.
            // A core sees the old branch or the new one.
            return unsafe { text.store_site(poke.site.get(), *bytes) };
        }
        let [first, second, ..] = *bytes;
        // SAFETY: as in `guard`; the tail that a core will now decode is in place (contract).
        unsafe { text.store_pair(poke.site.get(), [first, second]) }
    }
}

/// `cc`: `int3`. A core that executes it traps, and its handler asks the resolver.
pub(super) struct Breakpoint;

/// `int3`, one byte.
pub(super) const INT3: u8 = 0xcc;

impl Steps for Breakpoint {
    fn judge<T: Text>(_: &T, _: &Poke) -> PokeState {
        PokeState::Good
    }

    #[inline]
    unsafe fn guard<T: Text>(text: &mut T, poke: &Poke) -> Result<(), T::Error> {
        // SAFETY: the site is open (contract); one byte is always one access.
        unsafe { text.store_byte(poke.site.get(), INT3) }
    }

    #[inline]
    unsafe fn tail<T: Text>(
        text: &mut T,
        poke: &Poke,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        let [_, tail @ ..] = *bytes;
        // SAFETY: the site is open, and every core has synchronised since the `int3` stood
        // there (contract), so none decodes the four bytes behind it.
        unsafe { text.store_unexecuted(poke.site.get().wrapping_add(1), tail) }
    }

    #[inline]
    unsafe fn head<T: Text>(
        text: &mut T,
        poke: &Poke,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        // SAFETY: the site is open; the tail that a core will now decode is in place (contract).
        unsafe { text.store_byte(poke.site.get(), bytes[0]) }
    }
}
