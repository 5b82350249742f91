//! What each protocol stores in its three passes.

use super::{SITE_LEN, Text};
use crate::addr::PatchSite;

/// One protocol: how it keeps cores from a site's tail, and which bytes are the tail.
pub(super) trait Steps {
    /// Whether the bytes that guard `site` cannot be stored in one access.
    fn straddles<T: Text>(text: &T, site: PatchSite) -> bool;

    /// Pass 1: makes the start of the site keep cores away from its tail.
    ///
    /// # Safety
    /// `site` is open in `text`, and its tail holds what it held when every core last
    /// synchronised.
    unsafe fn guard<T: Text>(text: &mut T, site: PatchSite) -> Result<(), T::Error>;

    /// Pass 2: writes the part of `bytes` behind the guard.
    ///
    /// # Safety
    /// `site` is open in `text`, and every core has synchronised since it was guarded.
    unsafe fn tail<T: Text>(
        text: &mut T,
        site: PatchSite,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error>;

    /// Pass 3: replaces the guard by the start of `bytes`.
    ///
    /// # Safety
    /// `site` is open in `text`, its tail is that of `bytes`, and every core has
    /// synchronised since it was.
    unsafe fn head<T: Text>(
        text: &mut T,
        site: PatchSite,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error>;
}

/// `eb 03`: `jmp` over the three bytes behind it. A core that executes it goes on at the
/// origin, as if the site held a nop. That is the old behaviour when a program is switched
/// on, and the new one when it is switched off.
pub(super) struct ShortJump;

/// `jmp rel8` over the tail.
const JUMP_OVER_TAIL: [u8; 2] = [0xeb, (SITE_LEN - 2) as u8];

impl Steps for ShortJump {
    fn straddles<T: Text>(text: &T, site: PatchSite) -> bool {
        !text.can_store_pair(site.get())
    }

    unsafe fn guard<T: Text>(text: &mut T, site: PatchSite) -> Result<(), T::Error> {
        // SAFETY: the site is open (contract), and `Batch::check` refused one that straddles.
        // A core sees the old instruction or the whole jump, both of which are instructions.
        unsafe { text.store_pair(site.get(), JUMP_OVER_TAIL) }
    }

    unsafe fn tail<T: Text>(
        text: &mut T,
        site: PatchSite,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        let [_, _, tail @ ..] = *bytes;
        // SAFETY: the site is open, and every core has synchronised since the jump stood
        // there (contract), so none decodes the three bytes that it jumps over.
        unsafe { text.store_unexecuted(site.get().wrapping_add(2), tail) }
    }

    unsafe fn head<T: Text>(
        text: &mut T,
        site: PatchSite,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        let [first, second, ..] = *bytes;
        // SAFETY: as in `guard`; the tail that a core will now decode is in place (contract).
        unsafe { text.store_pair(site.get(), [first, second]) }
    }
}

/// `cc`: `int3`. A core that executes it traps, and its handler asks the resolver.
pub(super) struct Breakpoint;

/// `int3`, one byte.
pub(super) const INT3: u8 = 0xcc;

impl Steps for Breakpoint {
    fn straddles<T: Text>(_: &T, _: PatchSite) -> bool {
        false
    }

    unsafe fn guard<T: Text>(text: &mut T, site: PatchSite) -> Result<(), T::Error> {
        // SAFETY: the site is open (contract); one byte is always one access.
        unsafe { text.store_byte(site.get(), INT3) }
    }

    unsafe fn tail<T: Text>(
        text: &mut T,
        site: PatchSite,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        let [_, tail @ ..] = *bytes;
        // SAFETY: the site is open, and every core has synchronised since the `int3` stood
        // there (contract), so none decodes the four bytes behind it.
        unsafe { text.store_unexecuted(site.get().wrapping_add(1), tail) }
    }

    unsafe fn head<T: Text>(
        text: &mut T,
        site: PatchSite,
        bytes: &[u8; SITE_LEN],
    ) -> Result<(), T::Error> {
        // SAFETY: the site is open; the tail that a core will now decode is in place (contract).
        unsafe { text.store_byte(site.get(), bytes[0]) }
    }
}
