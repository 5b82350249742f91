//! What the bytes around an entry are: landing pads, patch sites, padding.

use core::fmt;

use super::Reason;
use crate::attach::SiteNop;
use crate::layout::LandingPad;
use crate::layout::x86_64::SITE_LEN;

/// Bytes of a patch site, as a length of arrays.
const SITE: usize = SITE_LEN as usize;

/// `endbr64` (Intel SDM volume 2).
pub(super) const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Which nop `bytes` begins with.
pub(super) fn nop_at(bytes: &[u8]) -> Option<SiteNop> {
    SiteNop::of(*bytes.first_chunk::<SITE>()?)
}

/// Bytes as `0f 1f 44 00 00`.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}

/// The landing pad that `bytes` begins with.
pub(super) fn landing_pad(bytes: &[u8]) -> LandingPad {
    if bytes.starts_with(&ENDBR64) { LandingPad::Endbr64 } else { LandingPad::None }
}

/// Judges the bytes from a patch site on, of which the first `own` belong to the function.
pub(super) fn judge(bytes: &[u8], own: usize) -> Result<SiteNop, Reason> {
    let bytes = bytes.get(..own).unwrap_or(bytes);
    if let Some(nop) = nop_at(bytes) {
        return Ok(nop);
    }
    let mut found = [0; SITE];
    for (to, from) in found.iter_mut().zip(bytes) {
        *to = *from;
    }
    let mut nops = 0;
    while nops < SITE {
        match bytes.get(nops..).and_then(nop_len) {
            Some(len) => nops += len,
            None => break,
        }
    }
    Err(match found {
        _ if nops >= SITE => Reason::OtherNops { found },
        [0xe8 | 0xe9 | 0xeb | 0xcc, ..] | [0xff, 0x25, ..] => Reason::ForeignBytes { found },
        _ => Reason::ShortSite { found, nops: nops as u8 },
    })
}

/// Whether `bytes` are padding: nops, and at most one `mov eax, imm32` among them, which is
/// a slot or what kCFI put there.
pub(super) fn is_padding(mut bytes: &[u8]) -> bool {
    let mut moved = false;
    while let Some(first) = bytes.first() {
        let len = match nop_len(bytes) {
            Some(len) => len,
            None if *first == 0xb8 && !moved => {
                moved = true;
                5
            }
            None => return false,
        };
        match bytes.get(len..) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    true
}

/// The length of the nop that `bytes` begins with: `90`, or `0f 1f /0` with any operand
/// (Intel SDM volume 2, NOP), with any number of prefixes that change nothing.
pub(super) fn nop_len(bytes: &[u8]) -> Option<usize> {
    // Operand size and the segment overrides, which stand in nops only to make them longer.
    let prefix = |byte: &u8| matches!(byte, 0x66 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65);
    let prefixes = bytes.iter().take_while(|byte| prefix(byte)).count();
    let len = match *bytes.get(prefixes..)? {
        [0x90, ..] => 1,
        [0x0f, 0x1f, modrm, ref rest @ ..] if modrm >> 3 & 7 == 0 => {
            let sib = modrm & 7 == 4 && modrm >> 6 != 3;
            let base_is_disp32 = match (sib, rest) {
                (true, [sib, ..]) => sib & 7 == 5,
                (true, []) => return None,
                (false, _) => modrm & 7 == 5,
            };
            let displacement = match modrm >> 6 {
                0 if base_is_disp32 => 4,
                1 => 1,
                2 => 4,
                _ => 0,
            };
            3 + usize::from(sib) + displacement
        }
        _ => return None,
    };
    // An instruction has at most 15 bytes.
    Some(prefixes + len).filter(|&len| len <= bytes.len() && len <= 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    #[test]
    fn lengths_of_nops_agree_with_a_disassembler() {
        let mut checked = 0;
        let prefixes: [&[u8]; 5] = [&[], &[0x66], &[0x66, 0x2e], &[0x2e, 0x66], &[0x66; 6]];
        for prefix in prefixes {
            for opcode in [[0x0f, 0x1f], [0x90, 0x90], [0x0f, 0x1e], [0x0f, 0x0d], [0x48, 0x90]] {
                for modrm in 0..=255 {
                    for sib in [0x00, 0x04, 0x05, 0x25, 0x80, 0xfd] {
                        let mut bytes = prefix.to_vec();
                        bytes.extend(opcode);
                        bytes.extend([modrm, sib, 1, 2, 3, 4, 5]);
                        let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                        if let Some(len) = nop_len(&bytes) {
                            assert_eq!(instruction.mnemonic(), Mnemonic::Nop, "{bytes:02x?}");
                            assert_eq!(instruction.len(), len, "{bytes:02x?}");
                            checked += 1;
                        } else {
                            let plain = opcode == [0x90, 0x90]
                                || opcode == [0x0f, 0x1f] && modrm >> 3 & 7 == 0;
                            assert!(!plain, "{bytes:02x?} is a nop");
                        }
                    }
                }
            }
        }
        assert!(checked > 1_000);
    }

    #[test]
    fn sites_are_judged_by_their_bytes() {
        for nop in [SiteNop::FiveByte, SiteNop::Clang, SiteNop::Prefixed, SiteNop::OneByte] {
            assert_eq!(judge(&nop.bytes(), 5), Ok(nop));
            assert_eq!(nop_at(&nop.bytes()[..4]), None);
        }
        let found = [0x90, 0x90, 0x8d, 0x47, 0x01];
        assert_eq!(judge(&found, 99), Err(Reason::ShortSite { found, nops: 2 }));
        // A function of four bytes owns no patch site, whatever its neighbour begins with.
        let found = [0x90, 0x90, 0x90, 0x90, 0];
        assert_eq!(judge(&[0x90; 9], 4), Err(Reason::ShortSite { found, nops: 4 }));
        let found = [0xe9, 1, 2, 3, 4];
        assert_eq!(judge(&found, 99), Err(Reason::ForeignBytes { found }));
        // clang's nop of seven bytes: five of it would leave half an instruction.
        let found = [0x0f, 0x1f, 0x80, 0, 2];
        let seven = [0x0f, 0x1f, 0x80, 0, 2, 0, 0];
        assert_eq!(judge(&seven, 99), Err(Reason::OtherNops { found }));
    }

    #[test]
    fn padding_is_nops_and_one_slot() {
        assert!(is_padding(&[]));
        assert!(is_padding(&[0x90; 16]));
        assert!(is_padding(&[0xb8, 1, 2, 3, 4, 0x90, 0x90]));
        assert!(is_padding(&[0x90, 0xb8, 1, 2, 3, 4, 0x66, 0x90]));
        assert!(!is_padding(&[0xb8, 1, 2, 3]));
        assert!(!is_padding(&[0xb8, 1, 2, 3, 4, 0xb8, 1, 2, 3, 4]));
        assert!(!is_padding(&[0x90, 0xc3]));
        assert!(!is_padding(&[0x0f, 0x1f, 0x80, 0]));
    }
}
