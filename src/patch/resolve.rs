//! What a core does that trapped on a guard of the breakpoint protocol.

use core::ptr;

use super::steps::INT3;
use super::{Poke, SITE_LEN};
use crate::addr::PatchSite;
use crate::sync::{AtomicPtr, AtomicUsize, Lent, Ordering, fence, spin_loop};

/// How a core that trapped goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resume {
    /// Set the instruction pointer to this address.
    At(u64),
    /// Push `return_to` on the stack, then set the instruction pointer to `target`.
    Call {
        /// Where the call goes.
        target: u64,
        /// What it returns to.
        return_to: u64,
    },
    /// The breakpoint is no longer there: the batch finished between the trap and its
    /// handler. Set the instruction pointer back to the site.
    Retry,
    /// The breakpoint is somebody else's. Pass the trap on.
    NotOurs,
}

/// Tells trapped cores how to go on while a batch of the breakpoint protocol is in progress.
///
/// A core that traps behaves as the *new* instruction of its site. One resolver serves one
/// batch at a time; trap handlers on any number of cores may ask it at any moment, before,
/// during and after a batch.
#[derive(Debug)]
pub struct TrapResolver {
    /// The batch in progress, sorted by site; null when there is none.
    pokes: AtomicPtr<Poke>,
    /// How many pokes it has. Written before `pokes`, read after it.
    len: AtomicUsize,
    /// Handlers that may be reading the batch.
    readers: AtomicUsize,
    /// The pokes themselves, which are their caller's outside a batch.
    lent: Lent,
}

impl TrapResolver {
    /// A resolver without a batch.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pokes: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            lent: Lent::new(),
        }
    }

    /// A resolver without a batch.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self {
            pokes: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            lent: Lent::new(),
        }
    }

    /// Says how the core that executed an `int3` at `address` goes on.
    ///
    /// `reread` reads the byte that stands at `address` now. It is asked only when no batch
    /// has the site, to tell a breakpoint that has just been removed from a foreign one, and
    /// asked again where that byte alone cannot tell.
    ///
    /// Never blocks and takes no lock: it may run in a trap handler that interrupted the
    /// batch itself.
    pub fn resolve(&self, address: u64, reread: impl Fn() -> u8) -> Resume {
        self.readers.fetch_add(1, Ordering::AcqRel);
        // The increment must be visible before the batch is looked for: `withdraw` removes
        // the batch and then looks for readers, and one of the two must see the other.
        fence(Ordering::SeqCst);
        let resume = self.look_up(address).unwrap_or_else(|| {
            if reread() != INT3 {
                return Resume::Retry;
            }
            // The batch of the trap may be over, and the `int3` may be that of a batch that
            // began since. Such a batch was published before it stored one, and while we are
            // counted it cannot end, so it is either found now or has left its new bytes.
            fence(Ordering::Acquire);
            self.look_up(address)
                .unwrap_or_else(|| if reread() == INT3 { Resume::NotOurs } else { Resume::Retry })
        });
        self.readers.fetch_sub(1, Ordering::Release);
        resume
    }

    /// What the batch in progress, if it has a site at `address`, wants a core to do there.
    /// The caller is counted as a reader.
    fn look_up(&self, address: u64) -> Option<Resume> {
        let pokes = self.pokes.load(Ordering::Acquire);
        if pokes.is_null() {
            return None;
        }
        let len = self.len.load(Ordering::Relaxed);
        self.lent.read();
        // SAFETY: `publish` stored `len` before `pokes`, and its caller keeps the slice until
        // `withdraw` has returned, which waits for our count to be taken back.
        let pokes = unsafe { core::slice::from_raw_parts(pokes, len) };
        let found = pokes.binary_search_by_key(&PatchSite::new(address), |poke| poke.site).ok()?;
        pokes.get(found).map(|poke| behave_as(poke.site, &poke.new))
    }

    /// Makes `pokes`, sorted by site, the batch in progress.
    ///
    /// # Safety
    /// No other batch is in progress; `pokes` stays as it is until [`withdraw`](Self::withdraw)
    /// has returned.
    pub(super) unsafe fn publish(&self, pokes: &[Poke]) {
        self.lent.written();
        self.len.store(pokes.len(), Ordering::Relaxed);
        self.pokes.store(pokes.as_ptr().cast_mut(), Ordering::Release);
    }

    /// Ends the batch in progress and waits until no handler is reading it.
    pub(super) fn withdraw(&self) {
        self.pokes.store(ptr::null_mut(), Ordering::Release);
        fence(Ordering::SeqCst);
        while self.readers.load(Ordering::Acquire) != 0 {
            spin_loop();
        }
        self.lent.written();
    }
}

impl Default for TrapResolver {
    fn default() -> Self {
        Self::new()
    }
}

/// What the instruction `new` at `site` would do.
fn behave_as(site: PatchSite, new: &[u8; SITE_LEN]) -> Resume {
    let next = site.get().wrapping_add(SITE_LEN as u64);
    let [opcode, displacement @ ..] = *new;
    let target = next.wrapping_add_signed(i64::from(i32::from_le_bytes(displacement)));
    match opcode {
        // call rel32
        0xe8 => Resume::Call { target, return_to: next },
        // jmp rel32
        0xe9 => Resume::At(target),
        // Whatever else a site may hold is a nop.
        _ => Resume::At(next),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

    fn poke(site: u64, new: [u8; 5]) -> Poke {
        Poke::new(PatchSite::new(site), NOP, new)
    }

    #[test]
    fn a_trapped_core_does_what_the_new_instruction_does() {
        let pokes = [
            poke(0x1000, [0xe8, 0xfb, 0x0f, 0, 0]),
            poke(0x1010, [0xe9, 0xeb, 0xef, 0xff, 0xff]),
            poke(0x1020, NOP),
        ];
        let traps = TrapResolver::new();
        // SAFETY: one batch, and `pokes` outlives `withdraw`.
        unsafe { traps.publish(&pokes) };
        let never = || -> u8 { panic!("a site of the batch needs no second look") };
        // 0x1005 + 0xffb and 0x1015 - 0x1015, computed by hand.
        let call = Resume::Call { target: 0x2000, return_to: 0x1005 };
        assert_eq!(traps.resolve(0x1000, never), call);
        assert_eq!(traps.resolve(0x1010, never), Resume::At(0));
        assert_eq!(traps.resolve(0x1020, never), Resume::At(0x1025));
        assert_eq!(traps.resolve(0x1001, || INT3), Resume::NotOurs);
        traps.withdraw();
    }

    #[test]
    fn a_trap_that_arrives_after_its_batch_is_retried_or_passed_on() {
        let traps = TrapResolver::new();
        assert_eq!(traps.resolve(0x1000, || 0xe8), Resume::Retry);
        assert_eq!(traps.resolve(0x1000, || INT3), Resume::NotOurs);
    }
}
