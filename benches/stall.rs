//! How long threads are kept from calling functions while a program is attached to 100,000 of
//! them, and detached: `cargo bench --bench stall`.
//!
//! Threads call functions of the 100,000 in turn and look at the clock after each call. For each
//! batch and each thread, the *stall* is the longest time between two looks that has something of
//! the batch in it. The same is measured in windows as long in which nothing is attached: that
//! is what the machine does by itself. A stall in which the kernel gave the thread's core to
//! another thread (`ru_nivcsw`, getrusage(2)) says nothing about attaching; the figures without
//! those are given, too. Where that is allowed, the threads have real-time priority, so that
//! other processes take no core away.

mod support;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::thread;
use std::time::Instant;

use fentry::emit::Context;
use fentry::host::{Process, Program, Vectors};
use support::assembly::{Copy, Padding, copies, remove_files};

const FUNCTIONS: usize = 100_000;
/// Batches of each kind.
const ROUNDS: usize = 100;
/// Gaps that are shorter are calls, and not noted.
const NOTED_NS: u64 = 2_000;
/// Functions that a thread calls before it goes on to others: as many as fit its caches.
const NEAR: usize = 64;

/// Gives the calling thread real-time priority, if it may have it.
fn become_real_time() -> bool {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: `priority` lives through the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) == 0 }
}

/// What the threads are told.
#[derive(Default)]
struct Told {
    stop: AtomicBool,
    /// A window is measured, and nobody may rest.
    measured: AtomicBool,
    ready: AtomicU64,
}

/// How long a thread calls before it rests, outside of windows: real-time threads get 95 percent
/// of a core (sched(7)), and what they are kept waiting for then is not measured.
const BUSY_NS: u64 = 4_000_000;

/// Two looks at the clock, in nanoseconds since the start.
#[derive(Clone, Copy)]
struct Gap {
    from: u64,
    to: u64,
    /// The core was given to another thread in between.
    preempted: bool,
}

/// How often this thread's core was taken from it.
fn preemptions() -> i64 {
    // SAFETY: all zero bytes are a valid `rusage`, which is written to.
    unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage.ru_nivcsw
    }
}

/// Calls functions until told to stop; gives the gaps, and how many results were wrong.
fn call(copy: &Copy, seed: usize, start: Instant, told: &Told) -> (Vec<Gap>, u64) {
    let entries = copy.entries();
    become_real_time();
    told.ready.fetch_add(1, Ordering::Relaxed);
    let mut gaps = Vec::with_capacity(1 << 20);
    let (mut at, mut wrong, mut preempted) = (seed % FUNCTIONS, 0, preemptions());
    let mut last = start.elapsed().as_nanos() as u64;
    let mut rested = last;
    while !told.stop.load(Ordering::Relaxed) {
        if last - rested > BUSY_NS && !told.measured.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_micros(500));
            preempted = preemptions();
            last = start.elapsed().as_nanos() as u64;
            rested = last;
        }
        at = (at + 7919) % FUNCTIONS;
        for turn in 0..16 * NEAR {
            let index = (at + turn % NEAR) % FUNCTIONS;
            // SAFETY: every generated function has this type, and stays loaded.
            let function: extern "C" fn(i32, i32) -> i32 =
                unsafe { core::mem::transmute(entries[index]) };
            wrong += u64::from(function(3, 4) != 1000 + index as i32 + 7);
            let now = start.elapsed().as_nanos() as u64;
            if now - last >= NOTED_NS && gaps.len() < gaps.capacity() {
                let count = preemptions();
                gaps.push(Gap { from: last, to: now, preempted: count != preempted });
                preempted = count;
                // Not the time that asking took.
                last = start.elapsed().as_nanos() as u64;
            } else {
                last = now;
            }
        }
    }
    (gaps, wrong)
}

/// The stall of each thread in each window, in microseconds, sorted: of all, and of those in
/// which no core was taken away. A window without a noted gap has a stall of less than one.
fn stalls(threads: &[Vec<Gap>], windows: &[(u64, u64)]) -> (Vec<f64>, Vec<f64>) {
    let (mut all, mut unpreempted) = (Vec::new(), Vec::new());
    for gaps in threads {
        for &(from, to) in windows {
            let first = gaps.partition_point(|gap| gap.to <= from);
            let within: Vec<_> = gaps[first..].iter().take_while(|gap| gap.from < to).collect();
            let longest = |gaps: &mut dyn Iterator<Item = &&Gap>| {
                gaps.map(|gap| gap.to - gap.from).max().unwrap_or(NOTED_NS) as f64 / 1e3
            };
            all.push(longest(&mut within.iter()));
            if !within.iter().any(|gap| gap.preempted) {
                unpreempted.push(longest(&mut within.iter()));
            }
        }
    }
    all.sort_by(f64::total_cmp);
    unpreempted.sort_by(f64::total_cmp);
    (all, unpreempted)
}

/// What so many hundredths of the sorted values are at most.
fn percentile(sorted: &[f64], hundredths: usize) -> f64 {
    let rank = (sorted.len() * hundredths).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn row(name: &str, sorted: &[f64]) {
    let [p50, p90, p99, max] = [50, 90, 99, 100].map(|n| percentile(sorted, n));
    println!("{name:<34} {:>7} {p50:>9.1} {p90:>9.1} {p99:>9.1} {max:>9.1}", sorted.len());
}

fn main() {
    let loaded = copies(FUNCTIONS, Padding::Sixteen, &[], &["stall"]);
    let [copy] = &loaded[..] else { unreachable!("one name, one copy") };
    let process = Process::open().expect("this process can be hooked");
    let module = copy.object().module();
    let functions = process.functions().module(&module).expect("a file name is a pattern");
    assert_eq!(functions.len(), FUNCTIONS, "functions found");
    // SAFETY: the program adds to a counter of its own object and touches no vector register.
    let program = || unsafe {
        let count = copy.object().function::<extern "C" fn(&mut Context, u64)>("counting_program");
        Program::from_fn(count).vectors(Vectors::Untouched)
    };

    let callers = thread::available_parallelism().map_or(1, |cores| cores.get() - 1).max(1);
    let (start, told) = (Instant::now(), Told::default());
    let (mut attaching, mut detaching, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    // A window around some work; what happens in it, and when it was.
    let window = |work: &mut dyn FnMut()| {
        thread::sleep(Duration::from_millis(5));
        told.measured.store(true, Ordering::Relaxed);
        // Whoever rests gets up.
        thread::sleep(Duration::from_millis(1));
        let from = start.elapsed().as_nanos() as u64;
        work();
        let to = start.elapsed().as_nanos() as u64;
        told.measured.store(false, Ordering::Relaxed);
        (from, to)
    };
    let real_time = become_real_time();
    let threads: Vec<(Vec<Gap>, u64)> = thread::scope(|scope| {
        let told = &told;
        let start_one = |number| scope.spawn(move || call(copy, number * 31_337, start, told));
        let threads: Vec<_> = (0..callers).map(start_one).collect();
        while told.ready.load(Ordering::Relaxed) < callers as u64 {
            thread::sleep(Duration::from_millis(1));
        }
        // The first time pays for private copies of the text pages, and is one of the windows.
        for _ in 0..ROUNDS {
            let mut link = None;
            attaching.push(window(&mut || {
                // SAFETY: as said above.
                link = Some(unsafe { process.attach(&functions, program()) });
            }));
            let link = link.expect("the window's work").expect("all are alike");
            let mut link = Some(link);
            detaching.push(window(&mut || {
                let link = link.take().expect("once");
                link.detach().expect("an attached link detaches");
            }));
            let (from, to) = attaching[attaching.len() - 1];
            idle.push(window(&mut || thread::sleep(Duration::from_nanos(to - from))));
        }
        told.stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("it calls")).collect()
    });
    let wrong: u64 = threads.iter().map(|(_, wrong)| wrong).sum();
    assert_eq!(wrong, 0, "results of hooked functions");
    let gaps: Vec<_> = threads.into_iter().map(|(gaps, _)| gaps).collect();

    let lasted = |windows: &[(u64, u64)]| {
        let mut lasted: Vec<_> =
            windows.iter().map(|(from, to)| (to - from) as f64 / 1e6).collect();
        lasted.sort_by(f64::total_cmp);
        percentile(&lasted, 50)
    };
    println!("longest stall of a thread, us       windows       p50       p90       p99       max");
    let (attach, attach_own) = stalls(&gaps, &attaching);
    let (detach, detach_own) = stalls(&gaps, &detaching);
    let (quiet, quiet_own) = stalls(&gaps, &idle);
    let (first, _) = stalls(&gaps, &attaching[..1]);
    row("the first attach", &first);
    row("attach", &attach);
    row("attach, core never taken away", &attach_own);
    row("detach", &detach);
    row("detach, core never taken away", &detach_own);
    row("as long, nothing attached", &quiet);
    row("the same, core never taken away", &quiet_own);
    let max = |sorted: &[f64]| percentile(sorted, 100);
    println!(
        "stall: functions={FUNCTIONS} attach_ms={:.2} p50_us={:.1} p99_us={:.1} max_us={:.1} \
         undisturbed_p99_us={:.1} undisturbed_max_us={:.1} first_us={:.1} detach_ms={:.2} \
         detach_p99_us={:.1} detach_undisturbed_max_us={:.1} idle_p50_us={:.1} idle_p99_us={:.1} \
         idle_max_us={:.1} threads={callers} rounds={ROUNDS} real_time={real_time}",
        lasted(&attaching),
        percentile(&attach, 50),
        percentile(&attach, 99),
        max(&attach),
        percentile(&attach_own, 99),
        max(&attach_own),
        max(&first),
        lasted(&detaching),
        percentile(&detach, 99),
        max(&detach_own),
        percentile(&quiet, 50),
        percentile(&quiet, 99),
        max(&quiet),
    );
    remove_files(&loaded.iter().collect::<Vec<_>>());
}
