//! What a program is shown of the call that it interrupts.

use crate::addr::{Entry, ReturnAddress};

/// The call of a hooked function, as its callee would see it. On the stack of the thread that
/// runs the program, 144 bytes and then the stack arguments:
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 64 | argument registers `x0` to `x7` |
/// | 64 | 8 | `x8`: where a result in memory goes |
/// | 72 | 8 | `x15`: the static chain of clang's nested functions |
/// | 80 | 8 | `x18`: the platform's, or the static chain of gcc's nested functions |
/// | 88 | 8 | the function's index |
/// | 96 | 8 | the function's entry |
/// | 104 | 8 | the address of the first argument on the stack |
/// | 112 | 16 | frame record of the function: the address of the next one, where its own body goes on |
/// | 128 | 16 | frame record of the caller: the caller's `x29`, where the function returns to |
///
/// The frame records show a stack walk the function and then its caller, as if the function had
/// called the program. With signed return addresses both are signed.
///
/// Registers are those of the procedure call standard (AAPCS64, section 6). What a program
/// writes to the argument registers is what the function sees.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    pub(super) args: [u64; 8],
    pub(super) x8: u64,
    pub(super) x15: u64,
    pub(super) x18: u64,
    pub(super) index: u64,
    pub(super) function: u64,
    pub(super) stack: u64,
    pub(super) function_record: u64,
    pub(super) origin: u64,
    pub(super) caller_record: u64,
    pub(super) caller: u64,
}

static_assertions::const_assert_eq!(size_of::<Context>(), 144);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, x8), 64);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, index), 88);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, function_record), 112);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, caller_record), 128);

impl Context {
    /// The eight argument registers, `x0` to `x7`. Which of them are arguments, and how many
    /// bits of each, the function's signature says.
    #[must_use]
    pub const fn args(&self) -> &[u64; 8] {
        &self.args
    }

    /// The eight argument registers, to be changed: the function sees what is written.
    pub const fn args_mut(&mut self) -> &mut [u64; 8] {
        &mut self.args
    }

    /// The index of the hooked function.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// The entry of the hooked function.
    #[must_use]
    pub const fn function(&self) -> Entry {
        Entry::new(self.function)
    }

    /// Where the hooked function returns to. Signed where return addresses are.
    #[must_use]
    pub const fn caller(&self) -> ReturnAddress {
        ReturnAddress::new(self.caller)
    }

    /// The address of the first argument on the stack.
    #[must_use]
    pub const fn stack_arguments(&self) -> u64 {
        self.stack
    }
}
