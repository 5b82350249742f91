//! What a program is shown of the return that it interrupts.

use crate::addr::{Entry, ReturnAddress};

/// The return of a hooked function, and what was kept of its call. 112 bytes:
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 48 | argument registers `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9`, as the caller gave them |
/// | 48 | 8 | `rax`: the return value, or its first half |
/// | 56 | 8 | `rdx`: its second half |
/// | 64 | 8 | the function's index |
/// | 72 | 8 | the function's entry |
/// | 80 | 8 | the session word, zero when the first entry program runs |
/// | 88 | 8 | where the function returns to, in its caller |
/// | 96 | 8 | 16 less than the address of the stack slot that its return address was in; all ones when free |
/// | 104 | 8 | what tells a tail call of this function from a frame that was left behind |
///
/// It is the call's frame on the [side stack](super::x86_64::SideStack), where there is one.
/// What a program writes to the return value is what the caller sees. Values returned in
/// `xmm0`, `xmm1` and on the x87 stack are not in it; they reach the caller as they are.
#[derive(Debug)]
#[repr(C)]
pub struct ExitContext {
    pub(crate) args: [u64; 6],
    pub(crate) rax: u64,
    pub(crate) rdx: u64,
    pub(crate) index: u64,
    pub(crate) function: u64,
    pub(crate) session: u64,
    pub(crate) caller: u64,
    pub(crate) slot: u64,
    pub(crate) through: u64,
}

static_assertions::const_assert_eq!(size_of::<ExitContext>(), 112);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, args), 0);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, rax), 48);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, rdx), 56);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, index), 64);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, function), 72);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, session), 80);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, caller), 88);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, slot), 96);
static_assertions::const_assert_eq!(memoffset::offset_of!(ExitContext, through), 104);

impl ExitContext {
    /// The six argument registers as the caller gave them, whatever the entry programs and
    /// the function made of them: `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9`.
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

    /// The entry of the hooked function.
    #[must_use]
    pub const fn function(&self) -> Entry {
        Entry::new(self.function)
    }

    /// The hooked function's index.
    #[must_use]
    pub const fn index(&self) -> u32 {
        // The body stores a zero-extended 32-bit value.
        self.index as u32
    }

    /// Where the hooked function returns to: an address in its caller.
    #[must_use]
    pub const fn caller(&self) -> ReturnAddress {
        ReturnAddress::new(self.caller)
    }

    /// What this call's entry programs have left in the session word. They get its address
    /// as their fourth argument.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }
}
