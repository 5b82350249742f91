//! Functions that three processors execute without pause are patched a million times by a
//! fourth, with the breakpoint protocol. Every result is checked, and every trap.

#![no_std]
#![no_main]

mod cores;
mod embedder;
mod functions;
mod operator;
mod programs;
mod random;
mod side_stacks;
mod workers;

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::patch::{Resume, SITE_LEN, TrapResolver};
use machine::console::power_off;
use machine::traps::{BREAKPOINT, Interrupted, SYNCHRONISE};
use machine::{apic, paging, println};

use operator::{Failure, Operator};
use workers::{BEGIN, CHANGING, NEITHER, SETTLED, WRONG};

/// How many sites are rewritten.
const PATCHES: u64 = 1_000_000;

/// Batches after which everything is made quiescent.
const ROUNDS: u64 = 4;

static TRAPS: TrapResolver = TrapResolver::new();

/// What breakpoint traps were resolved to: something at another address, a call, the same
/// instruction again. And those that were somebody else's.
static PASSED: AtomicU64 = AtomicU64::new(0);
static CALLED: AtomicU64 = AtomicU64::new(0);
static RETRIED: AtomicU64 = AtomicU64::new(0);
static FOREIGN: AtomicU64 = AtomicU64::new(0);

/// Every exception and interrupt.
#[unsafe(no_mangle)]
extern "C" fn trap(interrupted: &mut Interrupted) {
    match interrupted.vector {
        BREAKPOINT => breakpoint(interrupted),
        SYNCHRONISE => cores::answer(),
        _ => interrupted.unexpected(),
    }
}

/// Asks the resolver, and goes on as it says. This runs on a stack of its own, so that there is
/// room on the one that was interrupted.
fn breakpoint(interrupted: &mut Interrupted) {
    let site = interrupted.rip.wrapping_sub(1);
    let at = core::ptr::with_exposed_provenance::<u8>(site as usize);
    // SAFETY: an instruction was fetched from there.
    let reread = || unsafe { at.read_volatile() };
    let count = match TRAPS.resolve(site, reread) {
        Resume::At(address) => {
            interrupted.rip = address;
            &PASSED
        }
        Resume::Call { target, return_to } => {
            interrupted.push(return_to);
            interrupted.rip = target;
            &CALLED
        }
        Resume::Retry => {
            interrupted.rip = site;
            forget_translation(site);
            &RETRIED
        }
        // One is expected: see `main`.
        Resume::NotOurs if FOREIGN.load(Ordering::Relaxed) == 0 => &FOREIGN,
        _ => {
            print_caller(interrupted);
            interrupted.unexpected()
        }
    };
    count.fetch_add(1, Ordering::Relaxed);
}

/// Prints what memory holds where an image that is gone seems to have been called from. If that
/// is no call, the emulator has executed what was there before.
fn print_caller(interrupted: &Interrupted) {
    let Some(back) = interrupted.pushed().filter(|back| paging::hookable().contains(back)) else {
        return;
    };
    let site = back.wrapping_sub(SITE_LEN as u64);
    // SAFETY: in the functions that may be hooked, all of which are mapped there.
    let bytes = unsafe { paging::alias(site).cast::<[u8; SITE_LEN]>().read_volatile() };
    println!("called from {site:#x}, where memory holds {bytes:02x?}");
}

/// Makes QEMU translate the instruction at `site` anew. A processor has nothing to forget here.
///
/// QEMU drops the translation of an instruction *before* it stores over it (`notdirty_write`,
/// accel/tcg/cputlb.c, seen with QEMU 10.0). Another of its threads may translate the old bytes
/// in between, and that translation stays: here an `int3` that memory holds no more, met for
/// ever.
fn forget_translation(site: u64) {
    // SAFETY: an instruction was fetched from `site`, so it is the kernel's, all of which is
    // mapped there; the byte stays what it is, whoever writes it at the same time.
    unsafe { asm!("lock or byte ptr [{}], 0", in(reg) paging::alias(site), options(nostack)) };
}

/// The other processors.
#[unsafe(no_mangle)]
extern "C" fn other_main(processor: usize) -> ! {
    side_stacks::make(processor);
    workers::work(processor)
}

/// The first processor.
#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    if let Err(failure) = run() {
        println!("failed: {failure}");
    }
    power_off()
}

fn run() -> Result<(), Failure> {
    let processors = apic::start_others();
    let [text, data] = paging::core_size();
    println!("core: text={text} data={data}");
    // A breakpoint that is in no batch is not the library's.
    // SAFETY: the handler counts it and goes on.
    unsafe { asm!("int3") };

    let mut operator = Operator::new(processors, &TRAPS)?;
    let refused = operator.try_forbidden()?;
    BEGIN.store(true, Ordering::Release);
    // The checks must see what is wrong: something is attached that they are not told of.
    let mut seen = 0;
    operator.unannounced(|| {
        cores::wait_outside(processors, 100);
        seen = WRONG.load(Ordering::Relaxed);
    })?;
    workers::forget_wrong();

    let first = operator.engine.parts().text.patched;
    let mut patches = 0;
    let mut rounds = 0;
    while patches < PATCHES {
        operator.round()?;
        rounds += 1;
        if rounds % ROUNDS == 0 {
            operator.quiesce();
        }
        let tenths = patches * 10 / PATCHES;
        patches = operator.engine.parts().text.patched - first;
        if patches * 10 / PATCHES > tenths {
            println!("patches so far                {patches}");
        }
    }
    cores::wait_outside(processors, 1);

    workers::print_wrong();
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let parts = operator.engine.parts();
    println!("batches                       {rounds}");
    println!("synchronisations              {}", parts.cores.synchronised);
    println!("images freed, most at once    {}, {}", operator.freed, parts.images.most);
    println!("calls while nothing changed   {}", read(&SETTLED));
    println!("calls during a change         {}", read(&CHANGING));
    println!("calls that met half a change  {}", read(&NEITHER));
    println!(
        "traps: passed, called, retry  {}, {}, {}",
        read(&PASSED),
        read(&CALLED),
        read(&RETRIED)
    );
    println!("foreign breakpoints           {}", read(&FOREIGN));
    println!("unannounced program seen      {seen} times");
    println!("forbidden function refused    {refused}");
    // What has not been tested is as bad as what failed.
    let untested = [
        !refused,
        seen == 0,
        read(&FOREIGN) != 1,
        read(&PASSED) == 0,
        read(&CALLED) == 0,
        read(&CHANGING) == 0,
        operator.freed == 0,
    ];
    let untested = untested.into_iter().filter(|untested| *untested).count() as u64;
    let wrong = read(&WRONG) + untested;
    println!("bare: cpus={processors} patches={patches} wrong={wrong}");
    Ok(())
}
