//! What happened, counted by every thread. Nothing here locks or allocates: signal handlers
//! and programs count, too.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! tally {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Everything that is counted.
        pub struct Tally { $($(#[$meta])* pub $name: Count,)* }
        /// The one tally of this process.
        pub static TALLY: Tally = Tally { $($name: Count::new(),)* };
    };
}

tally! {
    attached, detached, enabled, disabled,
    /// Attachments refused because no lane was free, which more synchronising would give.
    no_lane,
    synchronized,
    /// Synchronisations that found a thread inside for as long as they waited.
    busy,
    /// Libraries loaded, hooked and unloaded.
    loads,
    threads, signals, forks,
    calls,
    /// Times that a call was known to begin and end while a link was on, and its programs
    /// had to be seen exactly once.
    exact,
    /// The same where the link was off, and nothing might be seen.
    silent,
    wrong,
    /// Not seen, while no other link of the function changed.
    lost,
    /// Not seen, while another link of the same function was changed.
    lost_in_change,
    duplicated,
    /// Seen, though the call began after its link was off.
    late,
}

impl Tally {
    /// Batches of patches that landed.
    pub fn operations(&self) -> u64 {
        let batches = [&self.attached, &self.detached, &self.enabled, &self.disabled];
        batches.iter().map(|count| count.get()).sum()
    }

    /// Whether nothing went wrong.
    pub fn is_good(&self) -> bool {
        self.bad() == 0
    }

    /// How much went wrong.
    pub fn bad(&self) -> u64 {
        let bad = [&self.wrong, &self.lost, &self.lost_in_change, &self.duplicated, &self.late];
        bad.iter().map(|count| count.get()).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls ({} exact, {} silent), {} batches, {} synchronized ({} busy, {} without \
             lane), {} loads, {} threads, {} signals, {} forks; wrong {}, lost {}, lost while \
             another link changed {}, duplicated {}, late {}",
            self.calls.get(),
            self.exact.get(),
            self.silent.get(),
            self.operations(),
            self.synchronized.get(),
            self.busy.get(),
            self.no_lane.get(),
            self.loads.get(),
            self.threads.get(),
            self.signals.get(),
            self.forks.get(),
            self.wrong.get(),
            self.lost.get(),
            self.lost_in_change.get(),
            self.duplicated.get(),
            self.late.get(),
        )
    }
}

/// How many failures are described; the others are only counted.
const DESCRIBED: usize = 16;

/// One failure: what, and four numbers that say where.
struct Failure {
    what: AtomicUsize,
    numbers: [AtomicU64; 4],
}

static FAILURES: [Failure; DESCRIBED] =
    [const { Failure { what: AtomicUsize::new(0), numbers: [const { AtomicU64::new(0) }; 4] } };
        DESCRIBED];
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// What can go wrong, and what its numbers are.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum What {
    Result = 1,
    Context,
    Dropped,
    Cookie,
    Lost,
    LostInChange,
    Duplicated,
    Late,
}

const NAMES: [&str; 9] = [
    "",
    "result of function {0}, called with {1:#x} and {2:#x}",
    "context in watch {0}: function {1}, {2:#x} for {3:#x}",
    "watch {0} ran a program that was dropped, magic {1:#x}",
    "watch {0}: cookie {1:#x} during a call of function {2}",
    "call of function {0} lost by watch {1}, which saw {2:#x}",
    "call of function {0} lost by watch {1}, which saw {2:#x}, during a change",
    "call of function {0} seen {2:#x} by watch {1}",
    "late call of function {0} seen {2:#x} by watch {1}",
];

/// Describes a failure, for [`describe`]. Counting it is the caller's business.
#[cold]
pub fn failure(what: What, numbers: [u64; 4]) {
    if let Some(failure) = FAILURES.get(FAILED.fetch_add(1, Ordering::Relaxed)) {
        for (place, number) in failure.numbers.iter().zip(numbers) {
            place.store(number, Ordering::Relaxed);
        }
        failure.what.store(what as usize, Ordering::Release);
    }
}

/// Prints the failures from `from` on; how many there are now.
pub fn describe(from: usize) -> usize {
    let mut printed = from;
    for failure in FAILURES.iter().skip(from) {
        let name = NAMES.get(failure.what.load(Ordering::Acquire)).copied().unwrap_or_default();
        if name.is_empty() {
            break;
        }
        let mut text = name.to_owned();
        for (position, number) in failure.numbers.iter().enumerate() {
            let number = number.load(Ordering::Relaxed);
            text = text.replace(&format!("{{{position}}}"), &number.to_string());
            text = text.replace(&format!("{{{position}:#x}}"), &format!("{number:#x}"));
        }
        eprintln!("torture: {text}");
        printed += 1;
    }
    printed
}

/// Something that was refused and should not have been, and is told at once. Only for threads
/// that may allocate.
#[cold]
pub fn refused(what: &str, error: &dyn fmt::Display) {
    TALLY.wrong.add(1);
    if TALLY.wrong.get() < DESCRIBED as u64 {
        let text = error.to_string();
        let mut lines = text.lines().take(3);
        eprintln!("torture: {what}: {}", lines.next().unwrap_or_default());
        lines.for_each(|line| eprintln!("    {line}"));
    }
}
