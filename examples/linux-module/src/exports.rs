//! What the C part of the module calls: `module/shim.c`, with its own declarations of these.
//! All but [`fentry_size`] are called one at a time, from a task that may sleep. Those that make,
//! attach, detach and end have frames of some kilobytes, and want a stack of 64 KiB.

use crate::exits::BUCKETS;
use crate::kernel::{Errno, Line};
use crate::tracer::{Failure, Tracer};

/// What user space is told: 0, or an error number; the kernel's log has the words.
fn answer(what: &str, result: Result<(), Failure>) -> i32 {
    let Err(failure) = result else { return 0 };
    Line::log(format_args!("{what}: {failure}"));
    match failure {
        Failure::Attached | Failure::Inside => Errno::BUSY.0,
        Failure::Kernel(error) => error.0,
        Failure::NoSelection | Failure::NotAttached | Failure::Engine(_) => Errno::INVALID.0,
    }
}

/// Bytes of a [`Tracer`].
#[unsafe(no_mangle)]
pub extern "C" fn fentry_size() -> usize {
    size_of::<Tracer>()
}

/// Makes a [`Tracer`] at `place`.
///
/// # Safety
/// There are [`fentry_size`] bytes at `place`, aligned to 16, and nobody else uses them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fentry_start(place: *mut Tracer) -> i32 {
    let tracer = Tracer::new();
    // SAFETY: the caller's contract.
    answer("start", tracer.map(|tracer| unsafe { place.write(tracer) }))
}

/// Detaches, and gives everything back.
///
/// # Safety
/// `tracer` was [started](fentry_start), and is not used after this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fentry_end(tracer: *mut Tracer) -> i32 {
    // SAFETY: the caller's contract.
    unsafe { tracer.drop_in_place() };
    0
}

/// Begins a selection of at most `most` functions.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_select(tracer: &mut Tracer, most: usize) -> i32 {
    answer("select", tracer.select(most))
}

/// Adds the function with this patch site to the selection. 1: it was added; 0: it is refused,
/// or the selection is full.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_add(tracer: &mut Tracer, site: u64) -> i32 {
    match tracer.add(site) {
        Ok(Ok(added)) => added.into(),
        Ok(Err(refusal)) => {
            Line::log(format_args!("{site:#x} is left out: {refusal}"));
            0
        }
        Err(failure) => answer("add", Err(failure)),
    }
}

/// Attaches to all selected functions.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_attach(tracer: &mut Tracer) -> i32 {
    answer("attach", tracer.attach())
}

/// Attaches to entry and exit of all selected functions.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_measure(tracer: &mut Tracer) -> i32 {
    answer("measure", tracer.measure())
}

/// Detaches from all of them.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_detach(tracer: &mut Tracer) -> i32 {
    answer("detach", tracer.detach())
}

/// How many functions are selected.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_selected(tracer: &Tracer) -> usize {
    tracer.selected()
}

/// How often the selected function at `position` was called; its entry goes to `entry`.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_calls(tracer: &Tracer, position: usize, entry: &mut u64) -> u64 {
    let (address, calls) = tracer.calls(position).unwrap_or((0, 0));
    *entry = address;
    calls
}

/// How long calls of the selected function at `position` took: the counts go to
/// `buckets`, and its entry is returned; 0 if nothing is measured.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_histogram(
    tracer: &Tracer,
    position: usize,
    buckets: &mut [u64; BUCKETS],
) -> u64 {
    let Some((entry, histogram)) = tracer.histogram(position) else { return 0 };
    *buckets = histogram;
    entry
}

/// Bytes that attaching takes.
#[unsafe(no_mangle)]
pub extern "C" fn fentry_bytes(tracer: &Tracer) -> usize {
    tracer.bytes()
}
