//! Instructions that do nothing, and the nops that patch sites hold.

use crate::encode::{CodeBuffer, EncodeError};

/// Longest nop that [`nop`] makes, in bytes.
pub const NOP_MAX: usize = 9;

/// `nop dword [rax + rax * 1 + 0]`: the five-byte nop of the Intel SDM, and what
/// `-mfentry -mnop-mcount` of gcc leaves.
pub const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// `nop` behind four operand-size prefixes: one instruction, each of whose suffixes, and each
/// of whose byte-wise mixtures with five one-byte nops, is again only nops. The nops of the
/// form `0F 1F` have neither property.
///
/// It can therefore take the place of [`NOP1X5`], or give way to it, whatever order the
/// bytes become visible in and wherever between them a thread is about to go on.
pub const NOP5_PREFIXED: [u8; 5] = [0x66, 0x66, 0x66, 0x66, 0x90];

/// `nop dword [rax + rax * 1 + 8]`: what clang leaves at a patchable entry of five bytes.
pub const NOP5_CLANG: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x08];

/// Five one-byte nops, `90`: what gcc leaves at a patchable entry of five bytes.
pub const NOP1X5: [u8; 5] = [0x90; 5];

/// One nop of `len` bytes, as the Intel SDM recommends it (volume 2, NOP, table
/// "Recommended Multi-Byte Sequence of NOP Instruction"): `90`, `66 90`, `0F 1F /0`, and
/// from six bytes on `66` where the length needs it.
///
/// # Errors
/// [`EncodeError::NopLength`] for lengths other than 1 to [`NOP_MAX`], and
/// [`EncodeError::Overflow`].
pub const fn nop(code: &mut CodeBuffer<'_>, len: usize) -> Result<(), EncodeError> {
    match len {
        1 => code.bytes(&[0x90]),
        2 => code.bytes(&[0x66, 0x90]),
        3 => code.bytes(&[0x0f, 0x1f, 0x00]),
        4 => code.bytes(&[0x0f, 0x1f, 0x40, 0x00]),
        5 => code.bytes(&NOP5),
        6 => code.bytes(&[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00]),
        7 => code.bytes(&[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00]),
        8 => code.bytes(&[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00]),
        9 => code.bytes(&[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00]),
        _ => Err(EncodeError::NopLength { len }),
    }
}
