//! The programs that are attached: each tells its watch of every call.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use fentry::emit::Context;
use fentry::host::{Cookies, Program};

use crate::tally::What;
use crate::watch::{World, observe, wrong};

/// What a program holds while it may run.
const ALIVE: u64 = 0x600d_600d_600d_600d;
/// What it holds afterwards, until its memory is used again.
const DROPPED: u64 = 0xdead_dead_dead_dead;

/// Closures that have not been dropped.
static LIVING: AtomicU64 = AtomicU64::new(0);

/// How many closures have not been dropped.
pub fn living() -> u64 {
    LIVING.load(Ordering::SeqCst)
}

/// What a program that runs too late finds changed.
struct Canary(AtomicU64);

impl Canary {
    fn new() -> Self {
        LIVING.fetch_add(1, Ordering::SeqCst);
        Self(AtomicU64::new(ALIVE))
    }

    #[inline]
    fn look(&self, watch: usize) {
        let magic = self.0.load(Ordering::Relaxed);
        if magic != ALIVE {
            wrong(What::Dropped, [watch as u64, magic, 0, 0]);
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.store(DROPPED, Ordering::SeqCst);
        LIVING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a program learns which function it runs for.
#[derive(Clone, Copy)]
pub enum Kind {
    /// From its cookie, which is the function's number.
    Number,
    /// From its cookie, which is the function's position in the selection.
    Position,
    /// From the context; all cookies are the same.
    Same,
    /// As `Number`, in a plain function without a closure: the cookie also has the watch.
    Plain,
}

/// Makes a program for `watch` that adds `unit` for each call of one of `functions`.
pub fn program(
    world: &'static World,
    watch: usize,
    unit: u32,
    functions: &Arc<[u32]>,
    kind: Kind,
) -> Program {
    let canary = Canary::new();
    match kind {
        Kind::Number => {
            let cookies = functions.iter().map(|&function| function.into()).collect();
            Program::new(move |context, cookie| {
                canary.look(watch);
                observe(world, context, cookie as u32, watch, unit);
            })
            .cookies(Cookies::Each(cookies))
        }
        Kind::Position => {
            let functions = Arc::clone(functions);
            Program::new(move |context, cookie| {
                canary.look(watch);
                let function = functions.get(cookie as usize).copied().unwrap_or(u32::MAX);
                observe(world, context, function, watch, unit);
            })
            .cookies(Cookies::Position)
        }
        Kind::Same => Program::new(move |context, cookie| {
            canary.look(watch);
            let function = world.number_at(context.function().get());
            let function = if cookie == watch as u64 { function } else { u32::MAX };
            observe(world, context, function, watch, unit);
        })
        .cookies(Cookies::Same(watch as u64)),
        Kind::Plain => {
            PLAIN_WORLD.store(core::ptr::from_ref(world).cast_mut(), Ordering::Release);
            let tag = (watch as u64) << 48 | u64::from(unit == crate::watch::SECOND) << 56;
            let cookies = functions.iter().map(|&function| tag | u64::from(function)).collect();
            Program::from_fn(plain).cookies(Cookies::Each(cookies))
        }
    }
}

/// For programs that have nothing of their own.
static PLAIN_WORLD: core::sync::atomic::AtomicPtr<World> =
    core::sync::atomic::AtomicPtr::new(core::ptr::null_mut());

extern "C" fn plain(context: &mut Context, cookie: u64) {
    // SAFETY: null, or the world that was stored, which lives for ever.
    let Some(world) = (unsafe { PLAIN_WORLD.load(Ordering::Acquire).as_ref() }) else { return };
    let (watch, second) = ((cookie >> 48) as usize & 0xff, cookie >> 56 != 0);
    let unit = if second { crate::watch::SECOND } else { 1 };
    observe(world, context, cookie as u32, watch, unit);
}
