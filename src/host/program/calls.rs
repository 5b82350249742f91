//! What emitted code calls for a program, and what it finds there.

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use crate::emit::{Context, ExitContext};

/// Whether a session's exit runs for this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Session {
    /// It runs.
    Exit = 0,
    /// It does not.
    NoExit = 1,
}

/// What keeps a program alive while emitted code may call it.
pub(crate) type Keep = Arc<dyn Code>;

/// A program's code, and how often it was skipped.
pub(crate) trait Code: Send + Sync {
    /// What emitted code gives the program as its data.
    fn address(&self) -> u64;
    fn set_skip(&self, skip: bool);
    fn skipped(&self) -> u64;
}

impl fmt::Debug for dyn Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({:#x})", self.address())
    }
}

/// A closure, or two, and what says whether it is skipped.
pub(super) struct Guarded<F> {
    pub skip: AtomicBool,
    pub skipped: AtomicU64,
    pub code: F,
}

impl<F: Send + Sync> Code for Guarded<F> {
    fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    fn set_skip(&self, skip: bool) {
        self.skip.store(skip, Ordering::Relaxed);
    }

    fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

std::thread_local! {
    /// Whether this thread is inside a program that skips.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl<F> Guarded<F> {
    /// Runs the program, unless it is to be skipped; then nothing comes of it.
    fn run<R>(&self, run: impl FnOnce(&F) -> R) -> Option<R> {
        if !self.skip.load(Ordering::Relaxed) {
            return Some(run(&self.code));
        }
        if INSIDE.replace(true) {
            self.skipped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let result = run(&self.code);
        INSIDE.set(false);
        Some(result)
    }
}

pub(super) extern "C" fn entry<F>(context: &mut Context, cookie: u64, program: &Guarded<F>)
where
    F: Fn(&mut Context, u64),
{
    program.run(|code| code(context, cookie));
}

pub(super) extern "C" fn exit<F>(context: &mut ExitContext, cookie: u64, program: &Guarded<F>)
where
    F: Fn(&mut ExitContext, u64),
{
    program.run(|code| code(context, cookie));
}

pub(super) extern "C" fn modify<F>(context: &mut Context, cookie: u64, program: &Guarded<F>) -> u64
where
    F: Fn(&mut Context, u64) -> u64,
{
    program.run(|code| code(context, cookie)).unwrap_or(0)
}

pub(super) extern "C" fn session_entry<F, G>(
    context: &mut Context,
    cookie: u64,
    program: &Guarded<(F, G)>,
    word: &mut u64,
) -> Session
where
    F: Fn(&mut Context, u64, &mut u64) -> Session,
{
    program.run(|(entry, _)| entry(context, cookie, word)).unwrap_or(Session::NoExit)
}

pub(super) extern "C" fn session_exit<F, G>(
    context: &mut ExitContext,
    cookie: u64,
    program: &Guarded<(F, G)>,
    word: &mut u64,
) where
    G: Fn(&mut ExitContext, u64, &mut u64),
{
    program.run(|(_, exit)| exit(context, cookie, word));
}
