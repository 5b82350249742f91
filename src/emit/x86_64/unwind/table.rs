//! Writing a table: a CIE, an FDE for each piece of code, and the end.

use core::ops::Range;

use super::expression::Expression;
use super::register::{RBP, RETURN_ADDRESS, RSP};

/// Bytes of the longest table.
const MAX: usize = 1024;

/// `DW_CFA` instructions. The last three have an operand in the low six bits.
const ADVANCE4: u8 = 0x04;
const SAME_VALUE: u8 = 0x08;
const DEF_CFA: u8 = 0x0c;
const DEF_CFA_EXPRESSION: u8 = 0x0f;
const VAL_EXPRESSION: u8 = 0x16;
const ADVANCE: u8 = 0x40;
const OFFSET: u8 = 0x80;

/// `DW_EH_PE_absptr`: an address as it is.
const ABSOLUTE: u8 = 0x00;

/// Bytes of a word, and what the places of saved registers are counted in.
const WORD: u8 = 8;
/// Minus eight, signed LEB128.
const DATA_ALIGNMENT: u8 = 0x78;

/// The unwind table of a piece of emitted code.
#[derive(Clone, Debug)]
pub struct UnwindTable {
    bytes: [u8; MAX],
    len: usize,
    /// Whether the CIE has an augmentation, of which each FDE then has a part.
    augmented: bool,
}

impl UnwindTable {
    /// The CIE, which says what holds at a function's entry.
    pub(super) fn new() -> Self {
        Self::with_personality(None)
    }

    /// The same, and what an exception calls that passes.
    pub(super) fn with_personality(personality: Option<u64>) -> Self {
        let mut table = Self { bytes: [0; MAX], len: 0, augmented: personality.is_some() };
        // Its length comes later; its identity, version 1.
        table.add(&[0, 0, 0, 0, 0, 0, 0, 0, 1]);
        table.add(if table.augmented { b"zP\0" } else { b"\0" });
        // Code is counted in bytes.
        table.add(&[1, DATA_ALIGNMENT, RETURN_ADDRESS]);
        if let Some(personality) = personality {
            table.add(&[1 + size_of::<u64>() as u8, ABSOLUTE]);
            table.add(&personality.to_le_bytes());
        }
        table.add(&[DEF_CFA, RSP, WORD, OFFSET | RETURN_ADDRESS, 1]);
        table.close(0);
        table
    }

    /// An FDE, whose first row is the CIE's.
    pub(super) fn of(&mut self, code: Range<u64>) -> Rows<'_> {
        let start = self.len;
        // Its length comes later; how far back the CIE is, from here.
        self.add(&[0; 4]);
        self.add(&(start as u32 + 4).to_le_bytes());
        self.add(&code.start.to_le_bytes());
        self.add(&code.end.wrapping_sub(code.start).to_le_bytes());
        if self.augmented {
            // Nothing more is said of this code.
            self.add(&[0]);
        }
        Rows { start, here: code.start, end: code.end, table: self }
    }

    /// An FDE of code that leaves the stack as it is, if there is any: an unwinder that looks for
    /// an address among FDEs may stop at an empty one.
    pub(super) fn jumps(&mut self, code: Range<u64>) {
        if !code.is_empty() {
            self.of(code).end();
        }
    }

    pub(super) fn end(&mut self) {
        self.add(&[0; 4]);
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

    /// Fills up the entry that began at `start`, and says how long it has become.
    fn close(&mut self, start: usize) {
        self.len = self.len.next_multiple_of(8);
        let len = self.len.saturating_sub(start + 4) as u32;
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&len.to_le_bytes());
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

/// The rows of an FDE, from the code's start to its end.
pub(super) struct Rows<'a> {
    table: &'a mut UnwindTable,
    start: usize,
    here: u64,
    end: u64,
}

impl Rows<'_> {
    /// The next row holds from `bytes` later on.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.here = self.here.wrapping_add(bytes);
        match u8::try_from(bytes) {
            Ok(few) if few < 0x40 => self.table.add(&[ADVANCE | few]),
            _ => {
                self.table.add(&[ADVANCE4]);
                self.table.add(&(bytes as u32).to_le_bytes());
            }
        }
    }

    /// The next row holds from `address` on.
    pub(super) fn at(&mut self, address: u64) {
        self.advance(address.wrapping_sub(self.here));
    }

    /// The next row holds from `bytes` before the end on.
    pub(super) fn before_end(&mut self, bytes: usize) {
        self.at(self.end.wrapping_sub(bytes as u64));
    }

    /// The caller's stack pointer is `register` plus `offset`.
    pub(super) fn cfa(&mut self, register: u8, offset: u8) {
        self.table.add(&[DEF_CFA, register, offset]);
    }

    /// The caller's stack pointer is this.
    pub(super) fn cfa_is(&mut self, expression: &Expression) {
        self.table.add(&[DEF_CFA_EXPRESSION]);
        self.block(expression);
    }

    /// The caller's value of `register` is `below` bytes below its stack pointer.
    pub(super) fn saved(&mut self, register: u8, below: u8) {
        self.table.add(&[OFFSET | register, below / WORD]);
    }

    /// The caller's value of `register` is in it.
    pub(super) fn same(&mut self, register: u8) {
        self.table.add(&[SAME_VALUE, register]);
    }

    /// The return address is `below` bytes below the caller's stack pointer.
    pub(super) fn return_address_at(&mut self, below: u8) {
        self.saved(RETURN_ADDRESS, below);
    }

    /// The caller's value of `register` is this, of the CFA.
    pub(super) fn value_is(&mut self, register: u8, expression: &Expression) {
        self.table.add(&[VAL_EXPRESSION, register]);
        self.block(expression);
    }

    /// The return address is this, of the CFA.
    pub(super) fn return_address_is(&mut self, expression: &Expression) {
        self.value_is(RETURN_ADDRESS, expression);
    }

    /// After `push rbp` and `mov rbp, rsp`, which the code begins with.
    pub(super) fn push_rbp(&mut self) {
        self.advance(1);
        self.cfa(RSP, 2 * WORD);
        self.saved(RBP, 2 * WORD);
        self.advance(3);
        self.cfa(RBP, 2 * WORD);
    }

    fn block(&mut self, expression: &Expression) {
        let bytes = expression.as_bytes();
        // LEB128 of up to 14 bits.
        let len = bytes.len();
        if len < 0x80 {
            self.table.add(&[len as u8]);
        } else {
            self.table.add(&[len as u8 | 0x80, (len >> 7) as u8]);
        }
        self.table.add(bytes);
    }

    /// No row follows.
    pub(super) fn end(self) {
        let Self { table, start, .. } = self;
        table.close(start);
    }
}
