//! Unwind tables of emitted code: where each of its frames ends, and who called it.
//!
//! Format: `.eh_frame`, as in the Linux Standard Base, core specification 5.0, "Exception
//! frames"; the instructions are those of DWARF 4, section 6.4.2. Addresses are absolute, so a
//! table may be read wherever it stands.

use super::entry::BODY_END;

/// Bytes of the longest table.
const MAX: usize = 96;

/// Numbers of registers (psABI 3.6.2).
const RBP: u8 = 6;
const RSP: u8 = 7;
const RETURN_ADDRESS: u8 = 16;

/// `DW_CFA` instructions; the last two have their operand in the low six bits.
const ADVANCE4: u8 = 0x04;
const DEF_CFA: u8 = 0x0c;
const DEF_CFA_REGISTER: u8 = 0x0d;
const DEF_CFA_OFFSET: u8 = 0x0e;
const ADVANCE: u8 = 0x40;
const OFFSET: u8 = 0x80;

/// What offsets of saved registers are multiples of: -8.
const DATA_ALIGNMENT: u8 = 0x78;

/// The unwind table of one piece of emitted code: a CIE, an FDE, and the end.
#[derive(Clone, Copy, Debug)]
pub struct UnwindTable {
    bytes: [u8; MAX],
    len: usize,
}

impl UnwindTable {
    /// Of an [`EntryBody`](super::EntryBody) of `size` bytes, emitted for `address`.
    ///
    /// A stack that is looked at in one of its programs shows the program, the body, the hooked
    /// function as it is at its entry, and the function's caller.
    #[must_use]
    pub fn of_entry_body(address: u64, size: usize) -> Self {
        let mut table = Self::begin(address, size);
        // push rbp
        table.advance(1);
        table.add(&[DEF_CFA_OFFSET, 16, OFFSET | RBP, 2]);
        // mov rbp, rsp
        table.advance(3);
        table.add(&[DEF_CFA_REGISTER, RBP]);
        // Behind the pop of rbp.
        table.advance(size.saturating_sub(1 + 3 + BODY_END));
        table.add(&[DEF_CFA, RSP, 8]);
        table.end()
    }

    /// Of [entry thunks](super::entry_thunk), `size` bytes of them.
    #[must_use]
    pub fn of_entry_thunk(address: u64, size: usize) -> Self {
        Self::begin(address, size).end()
    }

    /// The whole table, as a runtime's `__register_frame` expects it: the entries, and four
    /// zero bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// The entries alone, which may stand behind others' in a table.
    #[must_use]
    pub fn entries(&self) -> &[u8] {
        self.bytes.get(..self.len.saturating_sub(4)).unwrap_or(&[])
    }

    /// The CIE, which says what holds at a function's entry, and the beginning of the FDE.
    fn begin(address: u64, size: usize) -> Self {
        let mut table = Self { bytes: [0; MAX], len: 0 };
        // Its length, its identity, version 1, no augmentation, code is counted in bytes.
        table.add(&[20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, DATA_ALIGNMENT, RETURN_ADDRESS]);
        table.add(&[DEF_CFA, RSP, 8, OFFSET | RETURN_ADDRESS, 1]);
        table.len = FDE;
        // Its length comes later; how far back the CIE is, from here.
        table.add(&[0, 0, 0, 0, FDE as u8 + 4, 0, 0, 0]);
        table.add(&address.to_le_bytes());
        table.add(&(size as u64).to_le_bytes());
        table
    }

    /// The length of the FDE, and the end.
    fn end(mut self) -> Self {
        self.len = self.len.next_multiple_of(8);
        let size = self.len.saturating_sub(FDE + 4);
        if let Some(place) = self.bytes.get_mut(FDE) {
            *place = size as u8;
        }
        self.len += 4;
        self
    }

    /// What follows holds so many bytes of code later.
    fn advance(&mut self, bytes: usize) {
        match u8::try_from(bytes) {
            Ok(few) if few < 0x40 => self.add(&[ADVANCE | few]),
            _ => {
                self.add(&[ADVANCE4]);
                self.add(&(bytes as u32).to_le_bytes());
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
        }
        self.len = end;
    }
}

/// Where the FDE begins: behind the CIE.
const FDE: usize = 24;
