//! Side-stack bodies and their thunks.

use super::expression::{Expression, SideStackList};
use super::register::{RBP, RBX, RSP};
use super::table::{Rows, UnwindTable};
use super::{Marks, SLOT, hooked_function};
use crate::emit::x86_64::exit_thunk::{EXIT_THUNK_SIZE, MOVED};
use crate::emit::x86_64::side_stack::SLOT_ABOVE;

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
pub(super) fn bodies(table: &mut UnwindTable, marks: &Marks, side_stacks: &SideStackList) {
    let (exit, enter) = (&marks.exit, &marks.enter);
    let mut by_slot = Expression::new();
    by_slot.find_caller(side_stacks);
    let function = hooked_function();

    // The search for the frame of a function that others were left in.
    let mut rows = table.of(marks.start..exit.start);
    in_leave_body(&mut rows);
    rows.return_address_is(&by_slot);
    rows.end();

    let mut rows = table.of(exit.start..exit.end);
    rows.cfa(RSP, 0);
    rows.return_address_is(&by_slot);
    // sub rsp, 8; push rbx; push rbp; mov rbp, rsp
    rows.advance(4);
    rows.cfa(RSP, 8);
    rows.advance(1);
    rows.cfa(RSP, 16);
    rows.saved(RBX, 16);
    rows.advance(1);
    rows.cfa(RSP, 24);
    rows.saved(RBP, 24);
    rows.advance(3);
    rows.cfa(RBP, 24);
    // The slot is below the stack pointer, as it is at a function's entry.
    rows.at(exit.found);
    rows.cfa(RBP, SLOT_ABOVE as u8);
    rows.saved(RBX, 8);
    rows.saved(RBP, 16);
    rows.return_address_is(&function);
    rows.at(exit.until);
    in_leave_body(&mut rows);
    rows.return_address_at(SLOT);
    // pop rbp; pop rbx
    rows.at(exit.returns.wrapping_sub(1));
    rows.cfa(RSP, 16);
    rows.same(RBP);
    rows.at(exit.returns);
    rows.cfa(RSP, 8);
    rows.same(RBX);
    rows.end();

    // What returns to a thunk whose function runs unhooked, and what else seldom runs.
    let mut rows = table.of(exit.end..enter.start);
    in_enter_body(&mut rows);
    rows.at(marks.unhooked_until);
    rows.same(RBX);
    // pop rax; pop rbp; and the return
    rows.advance(2);
    returns(&mut rows);
    rows.at(marks.unhooked_end);
    in_enter_body(&mut rows);
    // Where the caller's place is overwritten, for a return thunk, the thunk is seen twice: once
    // at the place that will be returned to.
    rows.at(marks.skip_until);
    rows.same(RBX);
    rows.advance(2);
    returns(&mut rows);
    rows.end();

    let mut rows = table.of(enter.start..enter.end);
    rows.push_rbp();
    // push rax; push rbx
    rows.advance(2);
    in_enter_body(&mut rows);
    rows.at(enter.found);
    rows.return_address_is(&function);
    rows.at(enter.until);
    rows.same(RBX);
    rows.return_address_at(SLOT);
    rows.advance(2);
    returns(&mut rows);
    rows.end();
}

/// While `rbp` is the exit body's.
fn in_leave_body(rows: &mut Rows<'_>) {
    rows.cfa(RBP, 24);
    rows.saved(RBX, 16);
    rows.saved(RBP, 24);
}

/// While `rbp` is the enter body's, and what it works with is saved.
fn in_enter_body(rows: &mut Rows<'_>) {
    rows.cfa(RBP, 16);
    rows.saved(RBP, 16);
    rows.saved(RBX, 32);
}

/// When all is restored.
fn returns(rows: &mut Rows<'_>) {
    rows.cfa(RSP, SLOT);
    rows.same(RBP);
}
