//! What runs instead of a function.

use super::branch::Hardening;
use crate::emit::EmitError;
use crate::encode::x86_64::{Reg, int3, jmp, mov_imm64};
use crate::encode::{CodeBuffer, EncodeError};

/// Bytes of a jump to a replacement, and its alignment.
pub const REPLACEMENT_SIZE: usize = 16;

/// Bytes of one with mitigations.
pub const HARDENED_REPLACEMENT_SIZE: usize = 64;

/// Emits the jump to the function at `target`, which runs instead of others. It changes no
/// register that the function may read.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`REPLACEMENT_SIZE`] bytes left.
pub fn replacement(code: &mut CodeBuffer<'_>, target: u64) -> Result<(), EmitError> {
    emit(code, target, &Hardening::NONE, REPLACEMENT_SIZE)
}

/// As [`replacement`], with mitigations. The target stands in the code, where nobody can change
/// it, and a check would change registers that it may read: there is none. Where entries are
/// guarded against indirect jumps, the target must be in a direct jump's reach.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`HARDENED_REPLACEMENT_SIZE`] bytes left, or if the
/// thunk of indirect jumps is needed and 2 GiB or more away.
pub fn replacement_hardened(
    code: &mut CodeBuffer<'_>,
    target: u64,
    hardening: &Hardening,
) -> Result<(), EmitError> {
    emit(code, target, hardening, HARDENED_REPLACEMENT_SIZE)
}

fn emit(
    code: &mut CodeBuffer<'_>,
    target: u64,
    hardening: &Hardening,
    size: usize,
) -> Result<(), EmitError> {
    let start = code.position();
    match jmp(code, target) {
        // It is in another module, out of a direct jump's reach.
        Err(EncodeError::OutOfRange { .. }) => {
            mov_imm64(code, Reg::R11, target)?;
            hardening.emit_computed_jump(code)?;
        }
        jumped => jumped?,
    }
    while code.position() - start < size {
        int3(code)?;
    }
    Ok(())
}
