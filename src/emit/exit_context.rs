//! What a program is shown of the return that it interrupts.

use super::SESSIONS;
use super::context::{lowest_double, saved};
use crate::addr::{Entry, ReturnAddress};

/// The return of a hooked function, and what was kept of its call. 176 bytes, of which the
/// first are those of the call's [`Context`](super::Context):
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 48 | argument registers `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9`, as the function got them |
/// | 48 | 8 | `rax`: the return value, or its first half |
/// | 56 | 8 | `rdx`: its second half |
/// | 64 | 4 | the function's index |
/// | 68 | 4 | as in [`Context`](super::Context) |
/// | 72 | 8 | the function's entry |
/// | 80 | 8 | where the vector registers are saved |
/// | 88 | 8 | 24 less than the address of the stack slot that its return address was in |
/// | 96 | 8 | on a side stack, the caller's `rbp`: with the next word, what a frame pointer points at |
/// | 104 | 8 | where the function returns to, in its caller |
/// | 112 | 64 | the session words, of which those that programs have are zero when the first entry program runs |
///
/// It is the call's frame on the [side stack](super::x86_64::SideStack), where there is one.
/// What a program writes to the return value is what the caller sees. A value returned on the
/// x87 stack is not in it, and reaches the caller as it is.
#[derive(Debug)]
#[repr(C)]
pub struct ExitContext {
    pub(crate) args: [u64; 6],
    pub(crate) rax: u64,
    pub(crate) rdx: u64,
    pub(crate) index: u32,
    pub(crate) state: u32,
    pub(crate) function: u64,
    pub(crate) vectors: u64,
    pub(crate) slot: u64,
    pub(crate) link: u64,
    pub(crate) caller: u64,
    pub(crate) sessions: [u64; SESSIONS as usize],
}

static_assertions::const_assert_eq!(size_of::<ExitContext>(), 176);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, args), 0);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, rax), 48);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, rdx), 56);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, index), 64);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, state), 68);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, function), 72);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, vectors), 80);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, slot), 88);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, link), 96);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, caller), 104);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, sessions), 112);

impl ExitContext {
    /// The six argument registers as the function got them from the entry programs: `rdi`,
    /// `rsi`, `rdx`, `rcx`, `r8`, `r9`.
    #[must_use]
    pub const fn args(&self) -> &[u64; 6] {
        &self.args
    }

    /// `rax` and `rdx`, which an integer return value takes in this order (psABI 3.2.3). How
    /// many bits of them, if any, the function's signature says.
    #[must_use]
    pub const fn returned(&self) -> [u64; 2] {
        [self.rax, self.rdx]
    }

    /// Gives the caller another return value.
    pub const fn set_returned(&mut self, [rax, rdx]: [u64; 2]) {
        self.rax = rax;
        self.rdx = rdx;
    }

    /// The vector register `number`, 0 or 1, which a floating-point return value takes in this
    /// order: 16, 32 or 64 bytes, as many as are saved around programs, lowest first. `None`
    /// where none are.
    #[must_use]
    pub fn vector(&self, number: usize) -> Option<&[u8]> {
        let saved = saved(self.vectors, self.state, number, 2)?;
        // SAFETY: the image has saved two registers of that width there, which stay while its
        // programs run.
        Some(unsafe { &*saved })
    }

    /// The vector register `number`, 0 or 1, to be changed: the caller sees what is written.
    pub fn vector_mut(&mut self, number: usize) -> Option<&mut [u8]> {
        let saved = saved(self.vectors, self.state, number, 2)?;
        // SAFETY: as in `vector`; programs run one after the other, and this one's context is
        // borrowed exclusively.
        Some(unsafe { &mut *saved })
    }

    /// The `double` that is returned in the vector register `number`, 0 or 1.
    #[must_use]
    pub fn double(&self, number: usize) -> Option<f64> {
        lowest_double(self.vector(number)?)
    }

    /// The entry of the hooked function.
    #[must_use]
    pub const fn function(&self) -> Entry {
        Entry::new(self.function)
    }

    /// The hooked function's index.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Where the hooked function returns to: an address in its caller.
    #[must_use]
    pub const fn caller(&self) -> ReturnAddress {
        ReturnAddress::new(self.caller)
    }
}
