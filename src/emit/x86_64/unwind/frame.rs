//! Frame bodies and their thunks: `rbp` leads to the caller's, and to its return address above it,
//! as in any function with a frame pointer.

use super::expression::Expression;
use super::register::{RBP, RBX, RSP};
use super::table::{Rows, UnwindTable};
use super::{Marks, SLOT, hooked_function};
use crate::emit::x86_64::exit_thunk::{EXIT_THUNK_SIZE, FRAMED};

/// The rows of exit thunks.
pub(super) fn exit_thunks(rows: &mut Rows<'_>) {
    let mut cfa = Expression::new();
    cfa.register(RSP);
    cfa.is_within(EXIT_THUNK_SIZE as u8, FRAMED);
    cfa.choose(
        |rsp| rsp.plus(SLOT),
        |rsp| {
            rsp.drop();
            rsp.register(RBP);
            rsp.plus(16);
        },
    );
    rows.cfa_is(&cfa);
    let mut rbp = Expression::new();
    rbp.is_within(EXIT_THUNK_SIZE as u8, FRAMED);
    rbp.choose(
        |cfa| {
            cfa.drop();
            cfa.register(RBP);
        },
        |cfa| {
            cfa.minus(16);
            cfa.load();
        },
    );
    rows.value_is(RBP, &rbp);
}

/// The FDEs of the bodies.
pub(super) fn bodies(table: &mut UnwindTable, marks: &Marks, skip_until: u64) {
    let (exit, enter) = (&marks.exit, &marks.enter);
    let function = hooked_function(RBX, 0);

    // Filling.
    table.jumps(marks.start..exit.start);

    let mut rows = table.of(exit.start..exit.end);
    rows.cfa(RBP, 16);
    rows.saved(RBP, 16);
    rows.at(exit.found);
    in_body(&mut rows);
    rows.return_address_is(&function);
    rows.at(exit.until);
    rows.cfa(RSP, 16);
    rows.saved(RBP, 16);
    rows.same(RBX);
    rows.return_address_at(SLOT);
    // pop rbp
    rows.advance(1);
    rows.cfa(RSP, SLOT);
    rows.same(RBP);
    rows.end();

    // What skips the origin.
    let mut rows = table.of(exit.end..enter.start);
    in_body(&mut rows);
    rows.return_address_is(&function);
    rows.at(skip_until);
    to_thunk(&mut rows);
    rows.end();

    // Called by the thunk, where nothing tells that the frame is not yet made: the thunk is left
    // out until then.
    let mut rows = table.of(enter.start..enter.end);
    rows.cfa(RSP, 16);
    // push rbx
    rows.advance(1);
    rows.cfa(RSP, 24);
    rows.saved(RBX, 24);
    // mov rbx, [rsp + 8]; mov [rsp + 8], rbp
    rows.advance(10);
    rows.saved(RBP, 16);
    // lea rbp, [rsp + 8]
    rows.advance(5);
    rows.cfa(RBP, 16);
    rows.at(enter.found);
    in_body(&mut rows);
    rows.return_address_is(&function);
    rows.at(enter.until);
    to_thunk(&mut rows);
    rows.end();
}

/// The hooked function's return address is below the stack pointer that it has at its entry.
fn in_body(rows: &mut Rows<'_>) {
    rows.cfa(RBP, 8);
    rows.saved(RBP, 8);
    rows.saved(RBX, 16);
}

/// When the thunk's return address is on top of the stack, and `rbp` is its as well.
fn to_thunk(rows: &mut Rows<'_>) {
    let mut on_stack = Expression::new();
    on_stack.load_at(RSP, 0);
    rows.same(RBX);
    rows.same(RBP);
    rows.return_address_is(&on_stack);
}
