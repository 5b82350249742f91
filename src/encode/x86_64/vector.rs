//! Saving and restoring vector registers. No alignment of the memory is asked for.

use super::form::{Prefix, with_memory};
use super::operand::{Mem, Vector};
use crate::encode::{CodeBuffer, EncodeError};

/// `movups xmm, [mem]`: `NP 0F 10 /r` (SSE). 2 + M bytes + REX.
///
/// Leaves the rest of the `ymm` register as it is.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn movups_load(
    code: &mut CodeBuffer<'_>,
    dst: Vector,
    src: Mem,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy0f, 0x10, dst.number(), src)
}

/// `movups [mem], xmm`: `NP 0F 11 /r` (SSE), 16 bytes of memory. 2 + M bytes + REX.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn movups_store(
    code: &mut CodeBuffer<'_>,
    dst: Mem,
    src: Vector,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Legacy0f, 0x11, src.number(), dst)
}

/// `vmovups ymm, [mem]`: `VEX.256.0F.WIG 10 /r` (AVX). 3 + M bytes, or 4 + M where the base
/// or the index is one of the registers 8 to 15.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn vmovups256_load(
    code: &mut CodeBuffer<'_>,
    dst: Vector,
    src: Mem,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Vex256, 0x10, dst.number(), src)
}

/// `vmovups [mem], ymm`: `VEX.256.0F.WIG 11 /r` (AVX), 32 bytes of memory. 3 + M bytes, or
/// 4 + M where the base or the index is one of the registers 8 to 15.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn vmovups256_store(
    code: &mut CodeBuffer<'_>,
    dst: Mem,
    src: Vector,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Vex256, 0x11, src.number(), dst)
}

/// `vmovups zmm, [mem]`: `EVEX.512.0F.W0 10 /r` (AVX-512F), no mask. 5 + M bytes; a
/// displacement takes 1 byte where it is a multiple of 64 from -8192 to 8128.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn vmovups512_load(
    code: &mut CodeBuffer<'_>,
    dst: Vector,
    src: Mem,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Evex512, 0x10, dst.number(), src)
}

/// `vmovups [mem], zmm`: `EVEX.512.0F.W0 11 /r` (AVX-512F), no mask, 64 bytes of memory.
/// 5 + M bytes; a displacement takes 1 byte where it is a multiple of 64 from -8192 to 8128.
///
/// # Errors
/// [`EncodeError::Overflow`], [`EncodeError::IndexIsRsp`].
pub const fn vmovups512_store(
    code: &mut CodeBuffer<'_>,
    dst: Mem,
    src: Vector,
) -> Result<(), EncodeError> {
    with_memory(code, Prefix::Evex512, 0x11, src.number(), dst)
}

/// `vzeroupper`: `VEX.128.0F.WIG 77` (AVX). Clears all but the lowest 128 bits of the vector
/// registers 0 to 15. 3 bytes.
///
/// # Errors
/// [`EncodeError::Overflow`].
pub const fn vzeroupper(code: &mut CodeBuffer<'_>) -> Result<(), EncodeError> {
    code.bytes(&[0xc5, 0xf8, 0x77])
}
