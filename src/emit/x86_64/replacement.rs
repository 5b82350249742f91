//! What runs instead of a function.

use crate::emit::EmitError;
use crate::encode::x86_64::{Reg, int3, jmp, jmp_reg, mov_imm64};
use crate::encode::{CodeBuffer, EncodeError};

/// Bytes of a jump to a replacement, and its alignment.
pub const REPLACEMENT_SIZE: usize = 16;

/// Emits the jump to the function at `target`, which runs instead of others. It changes no
/// register that the function may read.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`REPLACEMENT_SIZE`] bytes left.
pub fn replacement(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EmitError> {
    let start = code.position();
    match jmp(code, target) {
        // It is in another module, out of a direct jump's reach.
        Err(EncodeError::OutOfRange { .. }) => {
            mov_imm64(code, Reg::R11, target)?;
            jmp_reg(code, Reg::R11)?;
        }
        jumped => jumped?,
    }
    while code.position() - start < REPLACEMENT_SIZE {
        int3(code)?;
    }
    Ok(())
}
