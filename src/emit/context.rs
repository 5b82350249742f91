//! What a program is shown of the call that it interrupts.

use core::ptr;

use super::Vectors;
use crate::addr::{Entry, ReturnAddress};

/// The call of a hooked function, as its callee would see it. 112 bytes:
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 48 | argument registers `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9` |
/// | 48 | 8 | `rax`: how many vector registers a variadic call uses, in `al` |
/// | 56 | 8 | `r10`: the static chain of a nested function |
/// | 64 | 4 | the function's index |
/// | 68 | 4 | which of the following are meant, see below |
/// | 72 | 8 | the function's entry |
/// | 80 | 8 | where the vector registers are saved |
/// | 88 | 8 | the caller's `rbp`; or 24 less than the address of the slot of its return address |
/// | 96 | 8 | where the function's own body goes on |
/// | 104 | 8 | where the function returns to, in its caller |
///
/// The word at 68 has these bits:
///
/// | bits | |
/// |---|---|
/// | 0 | the field at 88 is an address. The words at 48, 56 and 96 are then undefined |
/// | 1, 2 | width of the saved vector registers: 0 none (the word at 80 is then undefined), 1 `xmm`, 2 `ymm`, 3 `zmm` |
/// | 8 to 15 | the exit of this session is declined |
///
/// Registers are those of the System V psABI for x86-64, section 3.2.3. What a program writes
/// to the argument registers is what the function sees.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    pub(crate) args: [u64; 6],
    pub(crate) rax: u64,
    pub(crate) r10: u64,
    pub(crate) index: u32,
    pub(crate) state: u32,
    pub(crate) function: u64,
    pub(crate) vectors: u64,
    pub(crate) frame: u64,
    pub(crate) origin: u64,
    pub(crate) caller: u64,
}

static_assertions::const_assert_eq!(size_of::<Context>(), 112);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, args), 0);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, rax), 48);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, r10), 56);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, index), 64);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, state), 68);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, function), 72);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, vectors), 80);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, frame), 88);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, origin), 96);
static_assertions::const_assert_eq!(memoffset::offset_of!(Context, caller), 104);

/// Bits of [`Context::state`].
pub(crate) mod state {
    use crate::emit::Vectors;

    /// The frame's field is an address, 24 less than that of the slot.
    pub const FRAME_IS_ADDRESS: u32 = 1;
    const WIDTH_SHIFT: u32 = 1;

    /// What says how wide the saved vector registers are.
    pub const fn width(vectors: Vectors) -> u32 {
        (vectors as u32) << WIDTH_SHIFT
    }

    /// Bytes of one saved vector register.
    pub const fn bytes(state: u32) -> usize {
        match (state >> WIDTH_SHIFT) & 3 {
            0 => 0,
            width => 8 << width,
        }
    }

    /// The exit of this session is declined.
    pub const fn declined(session: u8) -> u32 {
        1_u32.wrapping_shl(8 + session as u32)
    }
}

static_assertions::const_assert_eq!(state::bytes(state::width(Vectors::Untouched)), 0);
static_assertions::const_assert_eq!(state::bytes(state::width(Vectors::Xmm)), 16);
static_assertions::const_assert_eq!(state::bytes(state::width(Vectors::Ymm)), 32);
static_assertions::const_assert_eq!(state::bytes(state::width(Vectors::Zmm)), 64);

/// Words from the one that holds the caller's `rbp` to the first argument on the stack:
/// behind it are the return address of the image, and that of the function.
const BEHIND_FRAME: usize = 3;
/// Words from where the frame's field points to: three up to the slot, and the slot.
const BEHIND_ADDRESS: usize = 4;

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

    /// The vector argument register `number`, 0 to 7: 16, 32 or 64 bytes, as many as are
    /// saved around programs, lowest first. `None` where none are: what the image's programs
    /// need saved ([`Vectors`]) says which.
    #[must_use]
    pub fn vector(&self, number: usize) -> Option<&[u8]> {
        let saved = saved(self.vectors, self.state, number, 8)?;
        // SAFETY: the image has saved eight registers of that width there, which stay while its
        // programs run.
        Some(unsafe { &*saved })
    }

    /// The vector argument register `number`, to be changed: the function sees what is written.
    pub fn vector_mut(&mut self, number: usize) -> Option<&mut [u8]> {
        let saved = saved(self.vectors, self.state, number, 8)?;
        // SAFETY: as in `vector`; programs run one after the other, and this one's context is
        // borrowed exclusively.
        Some(unsafe { &mut *saved })
    }

    /// The `double` in the vector argument register `number`, 0 to 7.
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
    pub unsafe fn stack_argument(&self, position: usize) -> u64 {
        // SAFETY: the argument exists (contract), and is where they are.
        unsafe { self.stack_arguments().wrapping_add(position).read() }
    }

    /// Changes the argument on the stack at `position`, 8 bytes each from 0: the function sees
    /// what is written.
    ///
    /// # Safety
    /// As [`stack_argument`](Self::stack_argument).
    pub unsafe fn set_stack_argument(&mut self, position: usize, value: u64) {
        // SAFETY: the argument exists (contract), and belongs to the function that is being
        // called (psABI 3.2.3).
        unsafe { self.stack_arguments().wrapping_add(position).cast_mut().write(value) }
    }

    /// Where the arguments on the stack are.
    fn stack_arguments(&self) -> *const u64 {
        if self.state & state::FRAME_IS_ADDRESS == 0 {
            (&raw const self.frame).wrapping_add(BEHIND_FRAME)
        } else {
            ptr::with_exposed_provenance::<u64>(self.frame as usize).wrapping_add(BEHIND_ADDRESS)
        }
    }
}

/// What an image has saved of the vector register `number` of `count`.
pub(crate) fn saved(vectors: u64, state: u32, number: usize, count: usize) -> Option<*mut [u8]> {
    let bytes = state::bytes(state);
    if bytes == 0 || number >= count {
        return None;
    }
    let first = ptr::with_exposed_provenance_mut::<u8>(vectors as usize);
    Some(ptr::slice_from_raw_parts_mut(first.wrapping_add(number * bytes), bytes))
}

/// The `double` in the lowest bytes of a vector register.
pub(crate) fn lowest_double(vector: &[u8]) -> Option<f64> {
    Some(f64::from_le_bytes(*vector.first_chunk()?))
}
