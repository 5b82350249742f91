//! Every preamble and every image, on a processor that enforces control protection (CET): what
//! is right returns, and each misuse traps as it should.

#![no_std]
#![no_main]

mod attempt;
mod images;
mod lab;
mod patching;
mod preambles;
mod programs;
mod report;
mod shape;
mod tables;

use machine::console::power_off;
use machine::println;

use attempt::Protection;
use report::Report;

/// There is one processor here.
#[unsafe(no_mangle)]
extern "C" fn other_main(_: usize) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    run();
    power_off()
}

fn run() {
    let supported = attempt::supported();
    if supported != Protection::BOTH {
        println!("this processor lacks landing pads or shadow stacks: {supported:?}");
        return;
    }
    attempt::prepare(supported);
    let mut report = Report::default();
    println!("cet kernel");
    println!("{:<76} {:>6} {:>8}", "", "right", "misused");
    let done = preambles::all(&mut report)
        .and_then(|()| images::all(&mut report))
        .and_then(|()| tables::all(&mut report));
    if let Err(failure) = done {
        println!("a case cannot be made: {failure}");
        return;
    }
    println!("cet: cases={} wrong={}", report.cases, report.wrong);
}
