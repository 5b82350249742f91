//! One selection of functions, with one program on all of them.

use core::sync::atomic::{AtomicU64, Ordering};

use fentry::attach::{AttachError, Attachment, Cookies, Engine, FunctionId, Lanes, ProgramKind};
use fentry::emit::{Context, Vectors};
use fentry::patch::{Poke, Protocol, TrapResolver};

use crate::array::Array;
use crate::embedder::{Kernel, parts};
use crate::exits::{BUCKETS, Latencies};
use crate::functions::{self, Refusal};
use crate::kernel::{self, Errno, Line};

/// Asked by nobody: ftrace has its own trap handler.
static TRAPS: TrapResolver = TrapResolver::new();

/// How often it is looked whether all calls have returned, ten milliseconds apart.
const LOOKS: u32 = 500;

/// The most functions of a selection: more than any kernel has.
const MOST: usize = 1 << 20;

/// The functions that were selected, and what is counted for them.
#[derive(Debug)]
struct Selection {
    /// Room for as many as may be selected, of which the first `count` are.
    functions: Array<FunctionId>,
    count: usize,
    /// Calls of each.
    calls: Array<AtomicU64>,
}

/// What the module does.
#[derive(Debug)]
pub struct Tracer {
    engine: Engine<Kernel>,
    selection: Option<Selection>,
    attached: Option<Attached>,
}

/// What is attached to the selection.
#[derive(Debug)]
struct Attached {
    /// The program's; `None` once it is detached, while a core or a task may still be inside.
    lanes: Option<Lanes>,
    /// What it measures; `None` if it counts.
    latencies: Option<Latencies>,
}

/// Why something was not done.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// Nothing is selected.
    NoSelection,
    /// It has to be detached first.
    Attached,
    /// Nothing is attached.
    NotAttached,
    /// It is detached, but a call that was measured does not return.
    Inside,
    /// The kernel said no.
    Kernel(Errno),
    /// The engine said no.
    Engine(AttachError<Errno>),
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSelection => f.write_str("no functions are selected: write `select` first"),
            Self::Attached => f.write_str("programs are attached: write `detach` first"),
            Self::NotAttached => f.write_str("nothing is attached"),
            Self::Inside => f.write_str(
                "detached, but a call of a measured function has not returned: it may be waiting \
                 for this; write `detach` again",
            ),
            Self::Kernel(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Kernel(error)
    }
}

impl From<AttachError<Errno>> for Failure {
    fn from(error: AttachError<Errno>) -> Self {
        Self::Engine(error)
    }
}

/// The program: counts calls. Its cookie is the function's position in the selection, and its
/// data the address of the first counter.
///
/// It calls nothing, takes no lock and touches no vector register, so that it can run at the
/// entry of any function: in interrupts, in the scheduler, in the allocator.
extern "C" fn count(_: *mut Context, position: u64, counters: u64) {
    let counter = (counters as *const AtomicU64).wrapping_add(position as usize);
    // SAFETY: the selection has a counter for each position, and is dropped only when the
    // program is detached and no core runs it any more.
    unsafe { (*counter).fetch_add(1, Ordering::Relaxed) };
}

impl Tracer {
    /// A tracer without a selection.
    ///
    /// # Errors
    /// [`Failure`] if the kernel has no memory, or no address space for the tables.
    pub fn new() -> Result<Self, Failure> {
        let engine = Engine::new(parts()?, Protocol::Breakpoint, &TRAPS)?;
        Ok(Self { engine, selection: None, attached: None })
    }

    /// Begins a selection of at most `most` functions, in the place of the one before.
    ///
    /// # Errors
    /// [`Failure`]; then there is no selection.
    pub fn select(&mut self, most: usize) -> Result<(), Failure> {
        self.clear()?;
        if most > MOST {
            return Err(Failure::Kernel(Errno::INVALID));
        }
        // SAFETY: ids and counters are integers.
        let (functions, calls) = unsafe { (Array::zeroed(most)?, Array::zeroed(most)?) };
        self.selection = Some(Selection { functions, count: 0, calls });
        Ok(())
    }

    /// Adds the function with this patch site to the selection. `Ok(false)`: it is full.
    ///
    /// # Errors
    /// Why the function is refused, or [`Failure`].
    pub fn add(&mut self, site: u64) -> Result<Result<bool, Refusal>, Failure> {
        if self.attached.is_some() {
            return Err(Failure::Attached);
        }
        let selection = self.selection.as_mut().ok_or(Failure::NoSelection)?;
        let Some(place) = selection.functions.as_mut_slice().get_mut(selection.count) else {
            return Ok(Ok(false));
        };
        let spec = match functions::describe(&self.engine.parts().text, site) {
            Ok(spec) => spec,
            Err(refusal) => return Ok(Err(refusal)),
        };
        *place = self.engine.register(&spec)?;
        selection.count += 1;
        Ok(Ok(true))
    }

    /// Counts calls of all selected functions, from now on.
    ///
    /// # Errors
    /// [`Failure`]; then nothing is attached.
    pub fn attach(&mut self) -> Result<(), Failure> {
        let selection = self.selection.as_ref().ok_or(Failure::NoSelection)?;
        let program = Attachment {
            target: count as *const () as u64,
            kind: ProgramKind::Entry,
            data: Some(selection.calls.as_slice().as_ptr() as u64),
            vectors: Vectors::Untouched,
            cookies: Cookies::Position,
        };
        self.begin(&program, None)
    }

    /// Measures how long calls of all selected functions take, from now on. Whoever selected them
    /// vouches for that they return, and have no arguments on the stack.
    ///
    /// # Errors
    /// [`Failure`]; then nothing is attached.
    pub fn measure(&mut self) -> Result<(), Failure> {
        let selection = self.selection.as_ref().ok_or(Failure::NoSelection)?;
        let latencies = Latencies::new(selection.count)?;
        self.begin(&latencies.program(), Some(latencies))
    }

    /// Attaches the program to all selected functions, in one batch.
    fn begin(
        &mut self,
        program: &Attachment<'_>,
        latencies: Option<Latencies>,
    ) -> Result<(), Failure> {
        if self.attached.is_some() {
            return Err(Failure::Attached);
        }
        let selection = self.selection.as_ref().ok_or(Failure::NoSelection)?;
        let (functions, mut pokes) = (selection.selected(), selection.pokes()?);
        let programs = core::slice::from_ref(program);
        // SAFETY: the programs may run anywhere, and stay as long as the module, whose exit
        // detaches; their data stays until `settle` has seen that nobody is inside. The kernel's
        // text stays, and only ftrace patches sites.
        let lanes = unsafe { self.engine.attach(functions, programs, pokes.as_mut_slice()) };
        self.attached = Some(Attached { lanes: lanes.as_ref().ok().copied(), latencies });
        let Err(error) = lanes else { return Ok(()) };
        // A core may have entered the image, and slots may have been written.
        // SAFETY: it may sleep, as the caller may.
        unsafe { kernel::fentry_kernel_quiesce() };
        self.settle()?;
        Err(error.into())
    }

    /// Detaches the program. When this returns, no core runs it any more.
    ///
    /// # Errors
    /// [`Failure`]; unless it is [`Failure::Inside`] or [`AttachError::Text`], the program is still
    /// attached.
    pub fn detach(&mut self) -> Result<(), Failure> {
        let attached = self.attached.as_mut().ok_or(Failure::NotAttached)?;
        if let Some(lanes) = attached.lanes {
            let selection = self.selection.as_ref().ok_or(Failure::NoSelection)?;
            let mut pokes = selection.pokes()?;
            // SAFETY: as in `begin`.
            unsafe { self.engine.detach(selection.selected(), lanes, pokes.as_mut_slice()) }?;
            attached.lanes = None;
        }
        self.settle()
    }

    /// Waits until nobody is inside of what was detached, and gives it back.
    ///
    /// ftrace has ended its registration with `synchronize_rcu_tasks_rude` and
    /// `synchronize_rcu_tasks` (kernel/trace/ftrace.c, `ftrace_shutdown`), or the caller has
    /// waited for both: every core has scheduled, and every task that was preempted in an image or
    /// a program has left it, since no program sleeps. A task may sleep in a function that is
    /// measured: it is one of the calls that are counted.
    fn settle(&mut self) -> Result<(), Failure> {
        if let Some(latencies) = self.attached.as_ref().and_then(|it| it.latencies.as_ref()) {
            let mut looks = 0;
            while latencies.active() {
                looks += 1;
                if looks > LOOKS {
                    return Err(Failure::Inside);
                }
                // SAFETY: it may sleep, as the caller may.
                unsafe { kernel::fentry_kernel_sleep() };
            }
            // SAFETY: as above. After it, no task is on its way out of the last program.
            unsafe { kernel::fentry_kernel_quiesce() };
        }
        // SAFETY: nobody is inside, as above.
        unsafe { self.engine.quiesced() };
        self.attached = None;
        let selection = self.selection.as_ref().ok_or(Failure::NoSelection)?;
        let mut pokes = selection.pokes()?;
        // SAFETY: all is quiescent, and the text stays.
        unsafe { self.engine.vacate(selection.selected(), pokes.as_mut_slice()) }?;
        Ok(())
    }

    /// Ends the selection.
    ///
    /// # Errors
    /// [`Failure::Attached`].
    pub fn clear(&mut self) -> Result<(), Failure> {
        if self.attached.is_some() {
            return Err(Failure::Attached);
        }
        if let Some(selection) = self.selection.take() {
            // SAFETY: nothing is attached, and `detach` has seen that all is quiescent and that
            // no slot holds these indexes.
            unsafe { self.engine.forget(selection.selected()) };
        }
        Ok(())
    }

    /// How many functions are selected.
    #[must_use]
    pub fn selected(&self) -> usize {
        self.selection.as_ref().map_or(0, |selection| selection.count)
    }

    /// The entry of the selected function at `position`, and how often it was called.
    #[must_use]
    pub fn calls(&self, position: usize) -> Option<(u64, u64)> {
        let selection = self.selection.as_ref()?;
        let id = *selection.selected().get(position)?;
        let calls = selection.calls.as_slice().get(position)?.load(Ordering::Relaxed);
        Some((self.engine.entry(id)?.get(), calls))
    }

    /// How long calls of the selected function at `position` took, while that is measured.
    #[must_use]
    pub fn histogram(&self, position: usize) -> Option<(u64, [u64; BUCKETS])> {
        let selection = self.selection.as_ref()?;
        let entry = self.engine.entry(*selection.selected().get(position)?)?;
        let latencies = self.attached.as_ref()?.latencies.as_ref()?;
        Some((entry.get(), latencies.histogram(position)?))
    }

    /// Bytes that attaching takes: tables, images, counters and the selection itself.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let parts = self.engine.parts();
        let each = size_of::<FunctionId>() + size_of::<AtomicU64>();
        let selection =
            self.selection.as_ref().map_or(0, |selection| selection.functions.as_slice().len());
        let latencies = self.attached.as_ref().and_then(|attached| attached.latencies.as_ref());
        let latencies = latencies.map_or(0, Latencies::bytes);
        parts.tables.bytes() + parts.images.bytes() + selection * each + latencies
    }
}

impl Selection {
    fn selected(&self) -> &[FunctionId] {
        self.functions.as_slice().get(..self.count).unwrap_or(&[])
    }

    /// Room for the pokes of a batch.
    fn pokes(&self) -> Result<Array<Poke>, Errno> {
        // SAFETY: a poke is integers and an enumeration that has a zero.
        unsafe { Array::zeroed(self.count) }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // A module that is being unloaded cannot stay, and what is attached cannot do without
        // it: whatever it is, it has to be over first.
        while self.attached.is_some() {
            if let Err(failure) = self.detach() {
                Line::log(format_args!("still attached: {failure}"));
                // SAFETY: whoever ends a tracer may sleep.
                unsafe { kernel::fentry_kernel_sleep() };
            }
        }
    }
}
