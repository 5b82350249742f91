//! DWARF expressions: programs for a stack machine, which an unwinder runs.

use core::mem::offset_of;
use core::ops::RangeInclusive;

use super::register::RETURN_ADDRESS;
use crate::emit::ExitContext;
use crate::emit::x86_64::side_stack::{FRAME_SIZE, LINK, SLOT_ABOVE, control};

/// Bytes of the longest expression.
const MAX: usize = 192;

/// `DW_OP` operations. `LIT` and `BREG` have an operand added.
const CONST1U: u8 = 0x08;
const CONST2U: u8 = 0x0a;
const CONST8U: u8 = 0x0e;
const DEREF: u8 = 0x06;
const DUP: u8 = 0x12;
const DROP: u8 = 0x13;
const OVER: u8 = 0x14;
const PICK: u8 = 0x15;
const SWAP: u8 = 0x16;
const ROT: u8 = 0x17;
const AND: u8 = 0x1a;
const DIV: u8 = 0x1b;
const MINUS: u8 = 0x1c;
const MUL: u8 = 0x1e;
const NOT: u8 = 0x20;
const PLUS: u8 = 0x22;
const PLUS_UCONST: u8 = 0x23;
const BRA: u8 = 0x28;
const EQ: u8 = 0x29;
const GE: u8 = 0x2a;
const GT: u8 = 0x2b;
const LE: u8 = 0x2c;
const LT: u8 = 0x2d;
const NE: u8 = 0x2e;
const SKIP: u8 = 0x2f;
const LIT: u8 = 0x30;
const BREG: u8 = 0x70;

/// An expression. Comments show the machine's stack, its top on the right.
pub(super) struct Expression {
    bytes: [u8; MAX],
    len: usize,
}

/// Where an unwinder finds the side stacks of all threads: in a list whose elements are never
/// freed.
///
/// A side stack whose thread has ended may have frames, with slots in memory that is another
/// thread's stack now. It stands behind the side stack of that other thread, whose frames are
/// found first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SideStackList {
    /// The address of a pointer to the first element, null if there is none.
    pub first: u64,
    /// Bytes, less than 128, from the start of an element to a pointer to the next one, null in
    /// the last.
    pub next: u8,
    /// Bytes, less than 128, from the start of an element to its
    /// [`SideStack`](crate::emit::x86_64::SideStack).
    pub side_stack: u8,
}

/// A branch whose target is not known yet.
struct Ahead(usize);

impl Expression {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; MAX], len: 0 }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Pushes a register's value.
    pub(super) fn register(&mut self, register: u8) {
        self.add(&[BREG + register, 0]);
    }

    /// Pushes the word at `offset`, from -64 to 127, from a register's value.
    pub(super) fn load_at(&mut self, register: u8, offset: i32) {
        // Signed LEB128 of one byte or two.
        let (low, high) = (offset as u8 & 0x7f, (offset >> 7) as u8 & 0x7f);
        self.add(&[BREG + register, low | 0x80, high, DEREF]);
    }

    /// Pushes 1 if the place of the instruction pointer in its aligned `size` bytes is in
    /// `places`, and 0 otherwise.
    pub(super) fn is_within(&mut self, size: u8, places: RangeInclusive<u8>) {
        self.register(RETURN_ADDRESS);
        self.add(&[LIT + (size - 1), AND]);
        self.add(&[DUP, LIT + *places.start(), GE]);
        self.add(&[SWAP, LIT + *places.end(), LE, AND]);
    }

    /// Of `value condition` makes what one of the two makes of the value: the first if the
    /// condition is zero.
    pub(super) fn choose(&mut self, zero: impl FnOnce(&mut Self), other: impl FnOnce(&mut Self)) {
        let not_zero = self.branch(BRA);
        zero(self);
        let end = self.branch(SKIP);
        self.land(not_zero);
        other(self);
        self.land(end);
    }

    /// Adds a number below 128.
    pub(super) fn plus(&mut self, number: u8) {
        self.add(&[PLUS_UCONST, number]);
    }

    /// Subtracts a number.
    pub(super) fn minus(&mut self, number: u8) {
        self.add(&[CONST1U, number, MINUS]);
    }

    pub(super) fn round_down_to_word(&mut self) {
        self.add(&[LIT + 7, NOT, AND]);
    }

    pub(super) fn drop(&mut self) {
        self.add(&[DROP]);
    }

    pub(super) fn load(&mut self) {
        self.add(&[DEREF]);
    }

    /// Of a caller's stack pointer makes the return address that a side stack has for it, or 0
    /// if none has.
    ///
    /// Slots get smaller from frame to frame. Of frames with one slot, which a tail call makes, the
    /// first has the return address; it is found by halving.
    pub(super) fn find_caller(&mut self, list: &SideStackList) {
        // From a frame's link.
        const SLOT_BELOW: u8 = LINK as u8 - offset_of!(ExitContext, slot) as u8;
        const CALLER: u8 = offset_of!(ExitContext, caller) as u8 - LINK as u8;
        const { assert!(SLOT_BELOW < 32 && CALLER < 0x80, "operands of one byte") };
        const UNUSED: u8 = control::UNUSED as u8;
        const LAST: u8 = control::LAST as u8;
        // libgcc (12.2) picks any element but the lowest: so that is one that nobody needs.
        self.add(&[DUP]);
        // What a frame has of its slot.
        self.minus(SLOT_ABOVE as u8 + 8);
        self.add(&[CONST8U]);
        self.add(&list.first.to_le_bytes());
        self.load();

        let next = self.len; // slot, element
        self.add(&[DUP]);
        let element = self.branch(BRA);
        let none = self.branch(SKIP);
        self.land(element);
        self.add(&[DUP]);
        self.plus(list.side_stack);
        self.add(&[DUP, PLUS_UCONST, UNUSED, DEREF]);
        self.next_frame();
        self.add(&[OVER, PLUS_UCONST, LAST, DEREF]);

        let halve = self.len; // slot, element, side stack, low, high
        self.add(&[OVER, OVER, LT, LIT, EQ]);
        let found = self.branch(BRA);
        self.add(&[OVER, OVER, SWAP, MINUS]);
        self.number(2 * FRAME_SIZE as u16);
        self.add(&[DIV]);
        self.number(FRAME_SIZE as u16);
        self.add(&[MUL, PICK, 2, PLUS]); // ..., low, high, middle
        self.add(&[DUP, LIT + SLOT_BELOW, MINUS, DEREF, PICK, 6, GT]);
        let above = self.branch(BRA);
        self.add(&[SWAP, DROP]);
        self.back(halve);
        self.land(above);
        self.next_frame();
        self.add(&[ROT, SWAP, DROP]);
        self.back(halve);

        self.land(found); // slot, element, side stack, frame, frame
        self.add(&[DROP, SWAP, PLUS_UCONST, LAST, DEREF]);
        self.add(&[OVER, LT]);
        let free = self.branch(BRA); // slot, element, frame
        self.add(&[DUP, LIT + SLOT_BELOW, MINUS, DEREF, PICK, 3, NE]);
        let another = self.branch(BRA);
        self.add(&[PLUS_UCONST, CALLER, DEREF]);
        let end = self.branch(SKIP);
        self.land(free);
        self.land(another);
        self.add(&[DROP]);
        self.plus(list.next);
        self.load();
        self.back(next);
        self.land(none);
        self.land(end);
    }

    fn next_frame(&mut self) {
        self.number(FRAME_SIZE as u16);
        self.add(&[PLUS]);
    }

    /// Pushes a number.
    fn number(&mut self, number: u16) {
        self.add(&[CONST2U]);
        self.add(&number.to_le_bytes());
    }

    fn branch(&mut self, operation: u8) -> Ahead {
        self.add(&[operation, 0, 0]);
        Ahead(self.len)
    }

    /// A branch leads here. Its operand counts from behind it.
    fn land(&mut self, Ahead(from): Ahead) {
        let distance = (self.len - from) as i16;
        if let Some(place) = self.bytes.get_mut(from - 2..from) {
            place.copy_from_slice(&distance.to_le_bytes());
        }
    }

    /// Goes back to what begins at `target`.
    fn back(&mut self, target: usize) {
        let distance = target.wrapping_sub(self.len + 3) as i16;
        self.add(&[SKIP]);
        self.add(&distance.to_le_bytes());
    }

    fn add(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
        }
        self.len = end;
    }
}
