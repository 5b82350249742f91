//! What a program is shown of the call that it interrupts.

use crate::addr::{Entry, ReturnAddress};

/// The call of a hooked function, as its callee would see it. On the stack of the thread that
/// runs the program, 104 bytes and then the stack arguments:
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 48 | argument registers `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9` |
/// | 48 | 8 | `rax`: how many vector registers a variadic call uses, in `al` |
/// | 56 | 8 | `r10`: the static chain of a nested function |
/// | 64 | 8 | the function's index |
/// | 72 | 8 | the function's entry |
/// | 80 | 8 | the caller's `rbp` |
/// | 88 | 8 | where the function's own body goes on |
/// | 96 | 8 | where the function returns to, in its caller |
/// | 104 | | arguments on the stack, 8 bytes each |
///
/// Registers are those of the System V psABI for x86-64, section 3.2.3. What a program writes
/// to the argument registers is what the function sees.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    pub(crate) args: [u64; 6],
    pub(crate) rax: u64,
    pub(crate) r10: u64,
    pub(crate) index: u64,
    pub(crate) function: u64,
    pub(crate) frame: u64,
    pub(crate) origin: u64,
    pub(crate) caller: u64,
}

static_assertions::const_assert_eq!(size_of::<Context>(), 104);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, args), 0);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, rax), 48);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, r10), 56);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, index), 64);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, function), 72);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, frame), 80);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, origin), 88);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, caller), 96);

impl Context {
    /// The six argument registers, in the order of the psABI: `rdi`, `rsi`, `rdx`, `rcx`,
    /// `r8`, `r9`. Which of them are arguments, and how many bits of each, the function's
    /// signature says.
    #[must_use]
    pub const fn args(&self) -> &[u64; 6] {
        &self.args
    }

    /// The six argument registers, to be changed: the function sees what is written.
    pub const fn args_mut(&mut self) -> &mut [u64; 6] {
        &mut self.args
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

    /// Where the hooked function will return to: an address in its caller.
    #[must_use]
    pub const fn caller(&self) -> ReturnAddress {
        ReturnAddress::new(self.caller)
    }

    /// The argument on the stack at `position`, 8 bytes each from 0, as it was passed.
    ///
    /// # Safety
    /// The function has so many bytes of stack arguments: its signature says so.
    #[must_use]
    pub const unsafe fn stack_argument(&self, position: usize) -> u64 {
        let end = core::ptr::from_ref(self).wrapping_add(1).cast::<u64>();
        // SAFETY: stack arguments follow the return address (psABI 3.2.3), which is the last
        // field, and this one exists (contract).
        unsafe { end.wrapping_add(position).read() }
    }
}
