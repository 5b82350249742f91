//! Frame bodies and their thunks: `rbp` leads to the caller's, and to its return address above it,
//! as in any function with a frame pointer.

use core::mem::offset_of;

use super::expression::Expression;
use super::table::{RBP, RBX, RSP, Rows, UnwindTable};
use super::{Marks, SLOT, hooked_function};
use crate::emit::ExitContext;
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
pub(super) fn bodies(table: &mut UnwindTable, marks: &Marks) {
    let (exit, enter) = (&marks.exit, &marks.enter);
    let function = hooked_function();
    let mut on_stack = Expression::new();
    on_stack.load_at(RSP, 0);

    // Filling.
    table.of(marks.start..exit.start).end();

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
    rows.at(marks.skip_until);
    rows.same(RBX);
    rows.return_address_is(&on_stack);
    rows.end();

    let mut rows = table.of(enter.start..enter.end);
    // push rbx
    rows.advance(1);
    rows.cfa(RSP, 16);
    rows.saved(RBX, 16);
    // mov rbx, [rsp + 8]; mov [rsp + 8], rbp
    rows.advance(10);
    rows.saved(RBP, 8);
    let mut in_rbx = Expression::new();
    in_rbx.register(RBX);
    rows.return_address_is(&in_rbx);
    // lea rbp, [rsp + 8]
    rows.advance(5);
    in_body(&mut rows);
    // lea rsp, [rsp - 176]; mov [rsp + 96], rbx; mov rbx, rsp
    rows.advance(16);
    let mut through = Expression::new();
    through.load_at(RBX, offset_of!(ExitContext, through) as i32);
    rows.return_address_is(&through);
    rows.at(enter.found);
    rows.return_address_is(&function);
    rows.at(enter.until);
    rows.same(RBX);
    rows.return_address_is(&on_stack);
    rows.end();
}

/// The hooked function's return address is below the stack pointer that it has at its entry.
fn in_body(rows: &mut Rows<'_>) {
    rows.cfa(RBP, 8);
    rows.saved(RBP, 8);
    rows.saved(RBX, 16);
}
