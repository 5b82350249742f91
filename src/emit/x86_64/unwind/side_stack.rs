//! Side-stack bodies and their thunks.

use super::expression::{Expression, SideStackList};
use super::register::{RBP, RSP};
use super::table::{Rows, UnwindTable};
use super::{Marks, SLOT, hooked_function};
use crate::emit::x86_64::enter::Aside;
use crate::emit::x86_64::exit_thunk::{EXIT_THUNK_SIZE, MOVED};
use crate::emit::x86_64::side_stack::{FRAME_SLOT, LINK, SLOT_ABOVE};

/// What a thunk's CFA is above the caller's stack pointer, while the caller's return address is
/// on the side stack. By its callee's CFA an unwinder tells a frame from others, and that of
/// the thunk's callee, which is where the thunk would be without it, is that stack pointer. No
/// other frame's is anything but a multiple of 8.
const IDENTITY: u8 = 4;

/// The rows of exit thunks.
pub(super) fn exit_thunks(rows: &mut Rows<'_>, side_stacks: &SideStackList) {
    let mut cfa = Expression::new();
    cfa.register(RSP);
    cfa.is_within(EXIT_THUNK_SIZE as u8, MOVED);
    cfa.choose(|rsp| rsp.plus(SLOT), |rsp| rsp.plus(IDENTITY));
    rows.cfa_is(&cfa);
    let mut rsp = Expression::new();
    rsp.round_down_to_word();
    rows.value_is(RSP, &rsp);
    let mut caller = Expression::new();
    caller.is_within(EXIT_THUNK_SIZE as u8, MOVED);
    caller.choose(
        |cfa| {
            cfa.minus(SLOT);
            cfa.load();
        },
        |cfa| {
            cfa.minus(IDENTITY);
            cfa.find_caller(side_stacks);
        },
    );
    rows.return_address_is(&caller);
}

/// The FDEs of the bodies.
pub(super) fn bodies(
    table: &mut UnwindTable,
    marks: &Marks,
    framed: u64,
    aside: &Aside,
    side_stacks: &SideStackList,
) {
    let (exit, enter) = (&marks.exit, &marks.enter);
    let mut by_slot = Expression::new();
    by_slot.find_caller(side_stacks);

    // The search for the frame of a function that others were left in.
    let mut rows = table.of(marks.start..exit.start);
    rows.cfa(RSP, 32);
    rows.saved(RBP, 16);
    rows.return_address_is(&by_slot);
    rows.end();

    let mut rows = table.of(exit.start..exit.end);
    rows.cfa(RSP, 0);
    rows.return_address_is(&by_slot);
    // sub rsp, 32; mov [rsp + 16], rbp
    rows.advance(4);
    rows.cfa(RSP, 32);
    rows.advance(5);
    rows.saved(RBP, 16);
    rows.at(exit.found);
    in_frame(&mut rows);
    rows.at(exit.until);
    rows.cfa(RSP, 32);
    rows.same(RBP);
    rows.return_address_at(SLOT);
    rows.at(exit.returns);
    rows.cfa(RSP, 8);
    rows.end();

    // What calls go on at that run unhooked, and what else seldom runs.
    let mut rows = table.of(exit.end..enter.start);
    working(&mut rows);
    rows.at(aside.unhooked);
    restore_working(&mut rows);
    rows.at(aside.full);
    working(&mut rows);
    rows.at(aside.dropping.0);
    rows.cfa(RSP, 32);
    rows.at(aside.dropping.1);
    working(&mut rows);
    if aside.making.0 != aside.making.1 {
        rows.at(aside.making.0);
        // push rbp; mov rbp, rsp
        rows.advance(1);
        rows.cfa(RSP, 32);
        rows.saved(RBP, 32);
        rows.advance(3);
        rows.cfa(RBP, 32);
        rows.at(aside.making.1);
        working(&mut rows);
        rows.same(RBP);
    }
    if aside.skip_until != aside.skip {
        rows.at(aside.skip);
        in_frame(&mut rows);
        // Where the caller's place is overwritten, for a return thunk, the thunk is seen twice:
        // once at the place that will be returned to.
        rows.at(aside.skip_until);
        to_thunk(&mut rows);
        rows.at(aside.end);
        working(&mut rows);
    }
    rows.end();

    let mut rows = table.of(enter.start..enter.end);
    // push rax; push r10
    rows.advance(1);
    rows.cfa(RSP, 16);
    rows.advance(2);
    working(&mut rows);
    rows.at(framed);
    rows.value_is(RBP, &link());
    rows.at(enter.found);
    in_frame(&mut rows);
    rows.at(enter.until);
    to_thunk(&mut rows);
    rows.end();
}

/// While the enter body looks for a frame.
fn working(rows: &mut Rows<'_>) {
    rows.cfa(RSP, 24);
}

/// At `pop r10; pop rax` and the return.
fn restore_working(rows: &mut Rows<'_>) {
    rows.advance(2);
    rows.cfa(RSP, 16);
    rows.advance(1);
    rows.cfa(RSP, SLOT);
}

/// When the enter body has left the frame.
fn to_thunk(rows: &mut Rows<'_>) {
    working(rows);
    rows.same(RBP);
    rows.return_address_at(SLOT);
    restore_working(rows);
}

/// While `rbp` is in the frame, and that is complete. The slot is below the hooked function's
/// stack pointer, as it is at its entry.
fn in_frame(rows: &mut Rows<'_>) {
    let mut cfa = Expression::new();
    cfa.load_at(RBP, FRAME_SLOT.disp);
    cfa.plus(SLOT_ABOVE as u8);
    rows.cfa_is(&cfa);
    rows.value_is(RBP, &link());
    rows.return_address_is(&hooked_function(RBP, LINK));
}

/// The caller's `rbp`, while it is in the frame.
fn link() -> Expression {
    let mut link = Expression::new();
    link.load_at(RBP, 0);
    link
}
