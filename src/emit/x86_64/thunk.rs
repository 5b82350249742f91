//! The entry-only thunk of a function without a slot.

use crate::emit::EmitError;
use crate::encode::x86_64::{Reg, int3, mov_imm32, nop, ret};
use crate::encode::{CodeBuffer, EncodeError};
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
pub const fn entry_thunk(code: &mut CodeBuffer<'_>, index: u32) -> Result<(), EmitError> {
    match emit(code, index) {
        Ok(()) => Ok(()),
        Err(error) => Err(EmitError::Encode(error)),
    }
}

const fn emit(code: &mut CodeBuffer<'_>, index: u32) -> Result<(), EncodeError> {
    let start = code.position();
    if let Err(error) = mov_imm32(code, Reg::R11, index) {
        return Err(error);
    }
    if let Err(error) = nop(code, SITE_LEN as usize) {
        return Err(error);
    }
    if let Err(error) = ret(code) {
        return Err(error);
    }
    while code.position() - start < THUNK_SIZE {
        if let Err(error) = int3(code) {
            return Err(error);
        }
    }
    Ok(())
}
