//! Programs, as a process writes them.

use core::any::Any;
use core::fmt;
use core::ptr::from_ref;
use std::sync::Arc;
use std::vec::Vec;

use crate::attach;
use crate::emit::{Context, Vectors};

/// A program's cookie for each function: a number that the program gets with every call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cookies {
    /// The same for every function.
    Same(u64),
    /// The function's position in the selection that is attached to, from 0.
    Position,
    /// One for each function of the selection, in its order.
    Each(Vec<u64>),
}

impl Cookies {
    pub(super) fn as_engine(&self) -> attach::Cookies<'_> {
        match self {
            Self::Same(cookie) => attach::Cookies::Same(*cookie),
            Self::Position => attach::Cookies::Position,
            Self::Each(cookies) => attach::Cookies::Each(cookies),
        }
    }
}

/// What keeps a closure alive while emitted code may call it.
pub(super) type Keep = Arc<dyn Any + Send + Sync>;

/// What runs at the entry of functions: a closure or an `extern "C"` function that takes the
/// [`Context`] of the call and the program's cookie for the function.
///
/// ```
/// use core::sync::atomic::{AtomicU64, Ordering};
/// use fentry::host::{Cookies, Program};
///
/// static CALLS: AtomicU64 = AtomicU64::new(0);
///
/// let count = Program::new(|_, _| { CALLS.fetch_add(1, Ordering::Relaxed); });
/// let per_function = Program::new(|context, cookie| {
///     let _ = (cookie, context.args()[0]);
/// })
/// .cookies(Cookies::Position);
/// # let _ = (count, per_function);
/// ```
#[derive(Clone)]
#[must_use = "a program runs when it is attached"]
pub struct Program {
    pub(super) target: u64,
    pub(super) data: Option<u64>,
    pub(super) vectors: Option<Vectors>,
    pub(super) cookies: Cookies,
    pub(super) keep: Option<Keep>,
    /// What emitted code that runs it is named after.
    pub(super) name: Option<&'static str>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("target", &format_args!("{:#x}", self.target))
            .field("vectors", &self.vectors)
            .field("cookies", &self.cookies)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// A closure. If it panics, the process aborts: there is no frame to unwind into.
    ///
    /// The closure is dropped once it is detached and no thread can be in it any more; see
    /// [`Process::synchronize`](super::Process::synchronize).
    pub fn new<F>(program: F) -> Self
    where
        F: Fn(&mut Context, u64) + Send + Sync + 'static,
    {
        let program = Arc::new(program);
        let data = from_ref::<F>(&program).expose_provenance() as u64;
        let target = call_closure::<F> as *const () as u64;
        let keep: Keep = program;
        Self {
            target,
            data: Some(data),
            vectors: None,
            cookies: Cookies::Same(0),
            keep: Some(keep),
            name: Some(core::any::type_name::<F>()),
        }
    }

    /// A function, which is never dropped. If it is part of a library, the library must stay.
    pub fn from_fn(program: extern "C" fn(&mut Context, u64)) -> Self {
        Self {
            target: program as *const () as u64,
            data: None,
            vectors: None,
            cookies: Cookies::Same(0),
            keep: None,
            name: None,
        }
    }

    /// Its cookies; without this, each is 0.
    pub fn cookies(mut self, cookies: Cookies) -> Self {
        self.cookies = cookies;
        self
    }

    /// Says what the program does to vector registers, so that less is saved around it.
    /// Without this, all that can hold arguments on this CPU are saved.
    ///
    /// # Safety
    /// The program, and all that it calls, changes no vector register that is not saved:
    /// compiled code may use them for anything, and the C library does. With
    /// [`Vectors::Untouched`], it changes none of `xmm0` to `xmm7` and their wider forms.
    pub unsafe fn vectors(mut self, vectors: Vectors) -> Self {
        self.vectors = Some(vectors);
        self
    }

    pub(super) fn as_engine(&self) -> attach::Attachment<'_> {
        attach::Attachment {
            target: self.target,
            data: self.data,
            vectors: self.vectors.unwrap_or_else(widest),
            cookies: self.cookies.as_engine(),
        }
    }
}

/// One program or several.
pub trait Programs {
    /// The programs, in the order in which they run.
    fn into_programs(self) -> Vec<Program>;
}

impl Programs for Program {
    fn into_programs(self) -> Vec<Program> {
        std::vec![self]
    }
}

impl Programs for Vec<Program> {
    fn into_programs(self) -> Vec<Program> {
        self
    }
}

impl<const N: usize> Programs for [Program; N] {
    fn into_programs(self) -> Vec<Program> {
        self.into()
    }
}

/// The widest vector registers that this CPU has and the operating system saves.
fn widest() -> Vectors {
    if std::is_x86_feature_detected!("avx512f") {
        Vectors::Zmm
    } else if std::is_x86_feature_detected!("avx") {
        Vectors::Ymm
    } else {
        Vectors::Xmm
    }
}

/// What emitted code calls for a closure of type `F`.
extern "C" fn call_closure<F>(context: &mut Context, cookie: u64, program: &F)
where
    F: Fn(&mut Context, u64),
{
    program(context, cookie);
}
