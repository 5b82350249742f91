//! The entry-only thunk of a function without a slot.

use super::branch::Hardening;
use crate::emit::{EmitError, Mitigations};
use crate::encode::CodeBuffer;
use crate::encode::x86_64::{Reg, int3, mov_imm32, nop};
use crate::layout::x86_64::SITE_LEN;

/// Bytes of a thunk, and its alignment.
pub const THUNK_SIZE: usize = 16;

/// Bytes from the start of a thunk to the five that are patched: a nop while nothing is
/// attached, `jmp body` otherwise. They are a patch site like any other.
pub const THUNK_JUMP: usize = 6;

/// Emits the thunk that the patch site of the function with `index` calls.
///
/// ```text
/// +0   41 bb imm32      mov r11d, index
/// +6   0f 1f 44 00 00   nop               or: jmp body
/// +11  c3               ret
/// +12  cc x 4           int3
/// ```
///
/// The `ret` behind the jump is where the short-jump protocol sends cores while it rewrites
/// the jump: back to the function, as if nothing were attached. The body, too, returns to
/// the function: the thunk's `jmp` leaves the patch site's return address where it is, so
/// every `ret` meets its `call`.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`THUNK_SIZE`] bytes left.
pub fn entry_thunk(code: &mut CodeBuffer<'_>, index: u32) -> Result<(), EmitError> {
    entry_thunk_hardened(code, index, &Hardening::NONE)
}

/// As [`entry_thunk`], with mitigations: where there is a return thunk, the jump there stands
/// in the place of the `ret`, and of the `int3`. A stop behind that jump, straight behind which
/// is the next thunk, has no room; compilers leave direct jumps without one, too.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`THUNK_SIZE`] bytes left, or the return thunk
/// is 2 GiB or more away. [`EmitError::LowerHalf`] if the `ret` would not be where
/// [`Mitigations::ITS`] wants it: [`is_thunk_place`] says where thunks can be.
pub fn entry_thunk_hardened(
    code: &mut CodeBuffer<'_>,
    index: u32,
    hardening: &Hardening,
) -> Result<(), EmitError> {
    let (start, address) = (code.position(), code.here());
    if !is_thunk_place(address, hardening) {
        return Err(EmitError::LowerHalf { address });
    }
    mov_imm32(code, Reg::R11, index)?;
    nop(code, SITE_LEN as usize)?;
    hardening.back(code)?;
    while code.position() - start < THUNK_SIZE {
        int3(code)?;
    }
    Ok(())
}

/// Whether an entry thunk can be at `address`: with [`Mitigations::ITS`] and no return thunk,
/// in the upper half of a line of 64 bytes only.
#[must_use]
pub const fn is_thunk_place(address: u64, hardening: &Hardening) -> bool {
    let placed = hardening.has(Mitigations::ITS) && !hardening.has(Mitigations::RETURN_THUNK);
    !placed || address % 64 >= 32
}
