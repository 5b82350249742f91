//! The programs: they change arguments and what is returned, so that a result tells which of them ran.

use fentry::attach::{Attachment, Cookies, ProgramKind};
use fentry::emit::{Context, ExitContext, Vectors};

use crate::functions::{ADD, FLIPPED, FLIPPED_TOO, STAMP};

/// Adds the cookie to the first argument.
extern "C" fn add(context: &mut Context, cookie: u64) {
    let [first, ..] = context.args_mut();
    *first = first.wrapping_add(cookie);
}

/// Flips bits of the second argument.
extern "C" fn flip(context: &mut Context, cookie: u64, data: u64) {
    let [_, second, ..] = context.args_mut();
    *second ^= cookie ^ data;
}

/// Flips bits of what the function returns.
extern "C" fn stamp(context: &mut ExitContext, cookie: u64) {
    let [low, high] = context.returned();
    context.set_returned([low ^ cookie, high]);
}

/// The program `which`, attached with `cookies` if it is one with a cookie for each function.
pub fn attachment(which: u8, cookies: &[u64]) -> Attachment<'_> {
    let (target, kind, data, cookies) = match which {
        ADD => {
            let target = add as extern "C" fn(_, _) as usize;
            (target, ProgramKind::Entry, None, Cookies::Each(cookies))
        }
        STAMP => {
            let target = stamp as extern "C" fn(_, _) as usize;
            (target, ProgramKind::Exit, None, Cookies::Each(cookies))
        }
        _ => {
            let target = flip as extern "C" fn(_, _, _) as usize;
            (target, ProgramKind::Entry, Some(FLIPPED_TOO), Cookies::Same(FLIPPED))
        }
    };
    // The kernel is compiled without vector registers.
    let vectors = Vectors::Untouched;
    Attachment { target: target as u64, kind, data, vectors, cookies }
}
