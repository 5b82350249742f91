//! The front door: this process, its functions, and what is attached to them.

use core::{fmt, mem};
use std::string::ToString;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::vec::Vec;

use super::discover::{self, Module};
use super::error::{AttachError, FindError, OpenError, SynchronizeError};
use super::fork;
use super::functions::Functions;
use super::link::Link;
use super::locks;
use super::program::{Program, Programs};
use super::quiescence::Quiescence;
use super::shared::Shared;
use super::side_stacks::{self, Missed};
use super::state::State;
use super::threads;
use super::unwind;
use super::visible::{Visibility, VisibilityError};
use crate::patch::Protocol;

/// This process. There is one, because there is one text.
///
/// # `fork`
/// A child of `fork(3)` has everything that its parent has, as its own: links work in both, and
/// neither notices what the other changes. `fork` waits meanwhile for an operation that another
/// thread is in the middle of; a copy of 64 KiB of emitted code was measured to take 85
/// microseconds. A closure that another thread was dropping stays undropped in the child. Where
/// another thread was loading or unloading a library, or unwinding its stack, a child whose C
/// library leaves it without the lock for that cannot [`refresh`](Self::refresh), and emits code
/// without unwind tables.
///
/// Children of `vfork`, `posix_spawn` and the bare system call run what is attached, and get
/// [`Unavailable::Forked`](super::Unavailable::Forked) for everything else. They share the
/// emitted code of their parent, which must not synchronize, or attach, while they run it. So
/// does a child that was forked by a program, or a signal handler, that interrupted an operation
/// of its own thread.
pub struct Process {
    shared: Shared,
    protocol: Protocol,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

impl Process {
    /// Opens this process: finds its functions and prepares their patch sites.
    ///
    /// Call it early. gcc leaves five one-byte nops at a patch site, which become one
    /// instruction here; while no other thread runs, that needs nothing. Otherwise every
    /// other thread is [stopped](super::threads) for a moment, to see that none is between two of
    /// the nops. Where that is impossible, the functions concerned stay as they are, and
    /// attaching to them tries again and says why it cannot.
    ///
    /// Patch sites are written by [`Protocol::ShortJump`], unless the process was opened
    /// otherwise before.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open() -> Result<&'static Self, OpenError> {
        Self::open_or_get(Protocol::ShortJump)
    }

    /// As [`open`](Self::open), with a choice of how patch sites are written.
    ///
    /// [`Protocol::Breakpoint`] can write a site at any address, also where it begins at the last
    /// byte of an aligned 16, and calls do not pass it unhooked while it changes. It needs
    /// `SIGTRAP`: a handler that was there before is called for every trap that is not this
    /// library's. The process is killed if a thread meets a site that is just being written
    /// while it blocks the signal, be it in the handler of another signal, which has it in its
    /// mask. So operations refuse to start where a thread blocks it, or where the handler has been
    /// replaced; no thread may begin to while one is in progress.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::OtherProtocol`] if it was opened otherwise before.
    pub fn open_with(protocol: Protocol) -> Result<&'static Self, OpenError> {
        let process = Self::open_or_get(protocol)?;
        let opened = process.protocol;
        if opened == protocol { Ok(process) } else { Err(OpenError::OtherProtocol { opened }) }
    }

    fn open_or_get(protocol: Protocol) -> Result<&'static Self, OpenError> {
        static PROCESS: OnceLock<Process> = OnceLock::new();
        static OPENING: Mutex<()> = Mutex::new(());
        let _turn = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = PROCESS.get() {
            return Ok(process);
        }
        let mut state = State::new(protocol)?;
        state.called_from = threads::stack_pointer();
        state.refresh()?;
        let process = PROCESS.get_or_init(|| Self { shared: Shared::new(state), protocol });
        fork::watch(&process.shared)?;
        Ok(process)
    }

    /// Finds the functions of modules that were loaded since, and prepares their patch sites.
    ///
    /// # Errors
    /// [`OpenError`]; modules that were found before it stay known.
    pub fn refresh(&self) -> Result<(), OpenError> {
        self.shared.locked(State::refresh)?
    }

    /// Every function that has a patch site.
    #[must_use]
    pub fn functions(&self) -> Functions {
        Functions::all(self.shared.catalogue())
    }

    /// The functions of that name, with an error that says why there is none. Names are those
    /// that [`Functions::named`] knows.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, name: &str) -> Result<Functions, FindError> {
        let functions = self.functions().named(name);
        if functions.is_empty() { Err(self.why_not(name)) } else { Ok(functions) }
    }

    /// Why there is no function of that name to attach to.
    fn why_not(&self, name: &str) -> FindError {
        let catalogue = self.shared.catalogue();
        for known in catalogue.iter() {
            let Module { rejected, name: module, .. } = &known.module;
            for rejected in rejected {
                let found = known.module.name_of_rejected(rejected);
                if found.is_some_and(|found| found.is(name)) {
                    let function = std::format!("{name} ({module})");
                    return FindError::Rejected { function, reason: rejected.reason };
                }
            }
        }
        let module = locks::are_usable().then(|| discover::module_of_symbol(name)).flatten();
        match module {
            Some(module) => FindError::NoPatchSite { function: std::format!("{name} ({module})") },
            None => FindError::NoSuchFunction { name: name.to_string() },
        }
    }

    /// Attaches programs to functions, in one batch: to all of them or to none. The programs
    /// run in the order given, after those that were attached before.
    ///
    /// When this returns, every later call of one of the functions runs the programs. Threads
    /// that run the functions meanwhile are not stopped.
    ///
    /// # Safety
    /// Every program may run on any thread, wherever one of the functions is called: in signal
    /// handlers, under any lock, in the allocator, before a thread's local storage is set up
    /// and after it is gone. It must be sound there. A program for functions that signal
    /// handlers call must be async-signal-safe; one for functions that an allocator calls must
    /// not allocate; a program that calls a function it is attached to recurses for ever, unless
    /// it is told to [skip](super::Recursion::Skip) such calls. One that attaches, detaches or
    /// synchronizes gets [`Unavailable::Nested`](super::Unavailable::Nested) where it interrupts
    /// such an operation of its own thread, because it is attached to what the operation calls,
    /// or runs in a signal handler. It must hold no lock that other threads hold while they do so.
    ///
    /// With programs at the exit, each thread runs the functions on one stack: threads that
    /// switch stacks (`swapcontext`, coroutines, handlers on an alternate signal stack) inside of
    /// them lose their way. Such programs leave the x87 stack as it is: no `long double`.
    ///
    /// What modifies a return or replaces a function does what the function's callers rely on,
    /// and the replacement has the function's type.
    ///
    /// What a program writes to the [`Context`](crate::emit::Context)'s arguments, the function
    /// gets.
    ///
    /// The functions' modules stay loaded until the link is detached, and no other tool patches
    /// the functions.
    ///
    /// # Errors
    /// [`AttachError`].
    pub unsafe fn attach(
        &'static self,
        functions: &Functions,
        programs: impl Programs,
    ) -> Result<Link, AttachError> {
        let programs = programs.into_programs();
        let ids = functions.ids();
        if let Some(function) = functions.first_own() {
            return Err(AttachError::OwnFunction { function: function.to_string() });
        }
        let attachments: Vec<_> = programs.iter().map(Program::as_engine).collect();
        let attempt = || {
            self.shared.locked(|state| {
                if let Some(gone) = functions.modules().find(|known| !state.knows(known)) {
                    return Err(AttachError::Unloaded { module: gone.module.name.clone() });
                }
                state.name(&programs);
                state.operate(&ids, |engine, pokes| {
                    // SAFETY: programs have the right signature (`Program` makes no others) and
                    // say truly what they do to vectors; the engine knows the functions as they
                    // were found; data stays with the link, and then with what is retired, as
                    // it does below if this fails. The rest is the caller's contract.
                    unsafe { engine.attach(&ids, &attachments, pokes) }
                })
            })?
        };
        let mut attached = attempt();
        if attached.as_ref().is_err_and(AttachError::is_no_lane)
            && self.shared.synchronize(threads::stack_pointer()).is_ok()
        {
            attached = attempt();
        }
        let keep = programs.into_iter().filter_map(Program::keep).collect();
        match attached {
            Ok(lanes) => Ok(Link::new(&self.shared, ids, lanes, keep)),
            Err(error) => {
                // A thread may have entered a program before everything was taken back.
                if error.is_stuck() {
                    mem::forget(keep);
                } else {
                    // Where the lock is not to be had, nothing was attached, and `keep` goes.
                    let _ = self.shared.locked(|state| state.retire(&ids, keep));
                }
                Err(error)
            }
        }
    }

    /// Says how many arguments these functions have on the stack, in words of 8 bytes, or that
    /// it is not known, which is so at first. Programs at the exit of functions of which it is
    /// known keep all they need on the ordinary stack: threads may switch stacks inside of
    /// them, and no call is too deep.
    ///
    /// The psABI (3.2.3) puts on the stack what does not fit into six integer and eight vector
    /// registers, structures of more than 16 bytes, and `long double`. Of functions with a
    /// variable number of arguments it is not known.
    ///
    /// # Safety
    /// No function of the selection has more words of arguments on the stack than that, and its
    /// callers have as many there: a number that is too large reads and copies what is above.
    ///
    /// # Errors
    /// [`AttachError`], if one of the functions has programs.
    pub unsafe fn set_stack_arguments(
        &self,
        functions: &Functions,
        words: Option<u8>,
    ) -> Result<(), AttachError> {
        let ids = functions.ids();
        self.shared.locked(|state| {
            state.operate(&ids, |engine, _| {
                // SAFETY: the caller's contract is the same.
                unsafe { engine.set_stack_arguments(&ids, words) }
            })
        })?
    }

    /// What programs at the exit of functions did not see.
    #[must_use]
    pub fn missed(&self) -> Missed {
        let of_side_stacks = side_stacks::missed();
        Missed { abandoned: of_side_stacks.abandoned + unwind::left(), ..of_side_stacks }
    }

    /// Shows code that is emitted from now on to tools that look at this process: call it
    /// before attaching. Named are images after their module and their programs, and thunks
    /// after their functions.
    ///
    /// # Errors
    /// [`VisibilityError`]; the tools before the one it is about are shown code. Later, one
    /// whose file cannot be written to is shown no more, and attaching goes on.
    pub fn show(&self, to: &Visibility) -> Result<(), VisibilityError> {
        self.shared.locked(|state| state.show_to(to))?
    }

    /// Waits until no thread is inside a program that was detached, or in emitted code, and
    /// then drops the closures and frees the code that nothing leads to any more.
    ///
    /// Every thread is looked at, one by one, until each has been seen outside once. One that
    /// sleeps does not notice, not even where it sleeps for hours. One that runs gets a real-time
    /// signal that nothing else uses, answers in its handler and goes on. One that runs and blocks
    /// all such signals is stopped with `ptrace(2)` for some microseconds, by a short-lived helper
    /// process. No thread has to come by anywhere.
    ///
    /// [`quiescence`](Self::quiescence) does the same without waiting. Call it when detached
    /// closures hold on to something, or before unloading a library that programs are in. It also
    /// runs by itself when an attachment needs room that only retiring can give.
    ///
    /// It waits for other threads that are dropping such closures, but not for ever: the `drop`
    /// of a closure may wait for a thread that synchronizes.
    ///
    /// # Errors
    /// [`SynchronizeError`]; then everything that was detached is kept, to be tried again.
    // Little, so that nothing is left on the stack between its caller and what looks at it.
    #[inline(never)]
    pub fn synchronize(&self) -> Result<(), SynchronizeError> {
        self.shared.synchronize(threads::stack_pointer())
    }

    /// Everything that has been detached until now, to be [asked](Quiescence::poll) now and then
    /// whether it is gone.
    pub fn quiescence(&'static self) -> Quiescence {
        Quiescence::new(&self.shared)
    }
}
