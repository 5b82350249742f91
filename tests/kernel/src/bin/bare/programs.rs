//! The programs: they change arguments, so that a result tells which of them ran.

use fentry::attach::{Attachment, Cookies};
use fentry::emit::{Context, Vectors};

use crate::functions::{ADD, FLIPPED, FLIPPED_TOO};

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

/// The program `which`, attached with `cookies` if it is one with a cookie for each function.
pub fn attachment(which: u8, cookies: &[u64]) -> Attachment<'_> {
    // The kernel is compiled without vector registers.
    let vectors = Vectors::Untouched;
    if which == ADD {
        let target = add as extern "C" fn(_, _) as usize as u64;
        Attachment { target, data: None, vectors, cookies: Cookies::Each(cookies) }
    } else {
        let target = flip as extern "C" fn(_, _, _) as usize as u64;
        let data = Some(FLIPPED_TOO);
        Attachment { target, data, vectors, cookies: Cookies::Same(FLIPPED) }
    }
}
