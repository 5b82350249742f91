//! Programs, as a process writes them.

mod calls;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::Arc;
use std::vec::Vec;

use crate::attach::{self, ProgramKind};
use crate::emit::{Context, ExitContext, Vectors};
use calls::Guarded;
pub use calls::Session;
pub(super) use calls::{Code, Keep};

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

/// What a program does when its thread is inside a program already: a program that calls a hooked
/// function comes there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recursion {
    /// It runs.
    #[default]
    Run,
    /// It does not run while its thread is inside a program that skips, and counts how often:
    /// [`Link::skipped`](super::Link::skipped). A session's exit is skipped with its entry.
    Skip,
}

/// What runs at the entry or the exit of functions: a closure or an `extern "C"` function that
/// takes the [`Context`] of the call, or the [`ExitContext`] of the return, and the program's
/// cookie for the function.
///
/// At an entry programs run in the order in which they were attached, and then those that may
/// [modify the return](Self::modify_return), in that order; at the exit in the reverse of it.
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
/// let results = Program::exit(|context, _| { let _ = context.returned(); });
/// # let _ = (count, per_function, results);
/// ```
#[derive(Clone)]
#[must_use = "a program runs when it is attached"]
pub struct Program {
    pub(super) target: u64,
    kind: ProgramKind,
    vectors: Option<Vectors>,
    cookies: Cookies,
    recursion: Recursion,
    /// `None` for a function that emitted code calls, or that replaces another: it is never
    /// dropped.
    code: Option<Arc<dyn Code>>,
    /// A function that emitted code calls.
    function: Option<extern "C" fn(&mut Context, u64)>,
    /// What emitted code that runs it is named after.
    pub(super) name: Option<&'static str>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("target", &format_args!("{:#x}", self.target))
            .field("kind", &self.kind)
            .field("vectors", &self.vectors)
            .field("cookies", &self.cookies)
            .field("recursion", &self.recursion)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// A closure that runs at the entry. If it panics, the process aborts: there is no frame to
    /// unwind into.
    ///
    /// A closure is dropped once it is detached and no thread can be in it any more; see
    /// [`Process::synchronize`](super::Process::synchronize).
    pub fn new<F>(program: F) -> Self
    where
        F: Fn(&mut Context, u64) + Send + Sync + 'static,
    {
        Self::of(calls::entry::<F> as *const () as u64, ProgramKind::Entry, program)
    }

    /// A function that runs at the entry, and is never dropped. If it is part of a library, the
    /// library must stay.
    pub fn from_fn(program: extern "C" fn(&mut Context, u64)) -> Self {
        let target = program as *const () as u64;
        Self { function: Some(program), ..Self::bare(target, ProgramKind::Entry) }
    }

    /// A closure that runs at the exit, when the function returns.
    pub fn exit<F>(program: F) -> Self
    where
        F: Fn(&mut ExitContext, u64) + Send + Sync + 'static,
    {
        Self::of(calls::exit::<F> as *const () as u64, ProgramKind::Exit, program)
    }

    /// A closure that runs at the entry, and that may decide what the function returns: what
    /// it gives, if it is not zero. The function itself is then skipped, and programs of this
    /// kind that were attached later do not run; those at the exit do.
    pub fn modify_return<F>(program: F) -> Self
    where
        F: Fn(&mut Context, u64) -> u64 + Send + Sync + 'static,
    {
        Self::of(calls::modify::<F> as *const () as u64, ProgramKind::ModifyReturn, program)
    }

    /// Two closures, at the entry and at the exit, that share a word for each call: zero when
    /// the first gets it. It says whether the second shall run for this call.
    ///
    /// ```
    /// use fentry::host::{Program, Session};
    ///
    /// let slow = Program::session(
    ///     |context, _, started| {
    ///         *started = 17; // the time
    ///         if context.args()[0] == 0 { Session::NoExit } else { Session::Exit }
    ///     },
    ///     |_, _, started| assert_eq!(*started, 17),
    /// );
    /// # let _ = slow;
    /// ```
    pub fn session<F, G>(entry: F, exit: G) -> Self
    where
        F: Fn(&mut Context, u64, &mut u64) -> Session + Send + Sync + 'static,
        G: Fn(&mut ExitContext, u64, &mut u64) + Send + Sync + 'static,
    {
        let exit_target = calls::session_exit::<F, G> as *const () as u64;
        let target = calls::session_entry::<F, G> as *const () as u64;
        Self::of(target, ProgramKind::Session { exit: exit_target }, (entry, exit))
    }

    /// A function that runs instead of the hooked one: at this address, which must stay. A
    /// function has one replacement at a time. To call what is replaced, call its
    /// [origin](super::Function::origin).
    pub fn replace(function: *const ()) -> Self {
        Self::bare(function as u64, ProgramKind::Replace)
    }

    /// Without code that is dropped.
    fn bare(target: u64, kind: ProgramKind) -> Self {
        Self {
            target,
            kind,
            vectors: None,
            cookies: Cookies::Same(0),
            recursion: Recursion::Run,
            code: None,
            function: None,
            name: None,
        }
    }

    fn of<F: Send + Sync + 'static>(target: u64, kind: ProgramKind, code: F) -> Self {
        let code =
            Arc::new(Guarded { skip: AtomicBool::new(false), skipped: AtomicU64::new(0), code });
        let name = Some(core::any::type_name::<F>());
        Self { code: Some(code), name, ..Self::bare(target, kind) }
    }

    /// Its cookies; without this, each is 0.
    pub fn cookies(mut self, cookies: Cookies) -> Self {
        self.cookies = cookies;
        self
    }

    /// What it does when its thread is inside a program already; without this, it runs. Applies
    /// to all clones of this program.
    pub fn recursion(mut self, recursion: Recursion) -> Self {
        self.recursion = recursion;
        if recursion == Recursion::Skip
            && let Some(function) = self.function.take()
        {
            let skipping = Self::new(move |context, cookie| function(context, cookie));
            (self.target, self.code) = (skipping.target, skipping.code);
        }
        if let Some(code) = &self.code {
            code.set_skip(recursion == Recursion::Skip);
        }
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
            kind: self.kind,
            data: self.code.as_ref().map(|code| code.address()),
            vectors: self.vectors.unwrap_or_else(widest),
            cookies: self.cookies.as_engine(),
        }
    }

    /// What keeps it alive while emitted code may call it.
    pub(super) fn keep(self) -> Option<Keep> {
        self.code
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
pub(super) fn widest() -> Vectors {
    if std::is_x86_feature_detected!("avx512f") {
        Vectors::Zmm
    } else if std::is_x86_feature_detected!("avx") {
        Vectors::Ymm
    } else {
        Vectors::Xmm
    }
}
