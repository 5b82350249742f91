//! Emitted images: what they look like, what holds for every one of them, and what happens
//! when they run.
//!
//! * [`golden`] shows images as listings, beside the call that emits each.
//! * [`space`] emits every kind of image there is, and [`symbolic`] executes each on symbols.
//! * [`golden_exit`], [`golden_frame`], [`golden_compared`] and [`walk`] do the same for images with exit programs,
//!   which have branches; [`paths`] follows them.
//! * [`hardened`] does the same with mitigations.
//! * [`run`] executes images on this machine.

mod golden;
mod golden_compared;
mod golden_exit;
mod golden_frame;
mod hardened;
#[cfg(all(target_os = "linux", feature = "std"))]
#[allow(dead_code, reason = "each test binary uses its own part of this")]
#[path = "../support/hooks.rs"]
mod hooks;
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "each test binary uses its own part of this")]
#[path = "../support/mitigated.rs"]
mod mitigated;
mod paths;
#[cfg(target_os = "linux")]
mod run;
mod space;
#[cfg(all(target_os = "linux", feature = "std"))]
#[path = "../support/mod.rs"]
mod support;
mod symbolic;
mod walk;

use fentry::emit::x86_64::EntryBody;
use fentry::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use fentry::layout::EntryLayout;

/// A body's image, emitted for `address`.
fn emit(body: &EntryBody<'_>, address: u64) -> Vec<u8> {
    let mut bytes = vec![0; EntryBody::max_size(body.calls.len())];
    let mut code = CodeBuffer::new(&mut bytes, address);
    body.emit(&mut code).unwrap();
    let len = code.position();
    bytes.truncate(len);
    bytes
}

/// The body of functions with `layout` that have their index in the slot, if they have one.
fn body<'a>(layout: &EntryLayout, vectors: Vectors, calls: &'a [ProgramCall]) -> EntryBody<'a> {
    let index = match layout.return_to_index() {
        Some(return_to_index) => IndexFrom::Slot { return_to_index },
        None => IndexFrom::Thunk,
    };
    EntryBody { index, return_to_entry: layout.return_to_entry(), vectors, calls }
}

/// A call of a program whose cookies stand in a record table at `table`.
const fn in_records(target: u64, table: u64) -> ProgramCall {
    let cookie = CookiePlace { column: table, stride: Stride::Sixteen };
    ProgramCall { target, data: None, cookie, session: None }
}

/// A call of a program whose cookies stand in a column at `column`.
const fn in_column(target: u64, column: u64) -> ProgramCall {
    let cookie = CookiePlace { column, stride: Stride::Eight };
    ProgramCall { target, data: None, cookie, session: None }
}
