//! What a hooked entry costs per call, against the same function not hooked and against the
//! least that a hand-written body can do: `cargo bench --bench entry`.
//!
//! All columns are copies of the same machine code, and call the same empty program unless
//! the column says otherwise. They are measured in turn in one process; the ratio is the
//! median of the ratios of single rounds.

mod support;

use fentry::emit::Context;
use fentry::host::{Link, Process, Program, Vectors};
use support::assembly::{Copy, Padding, copies, remove_files};
use support::floor::{NOP, Stores};
use support::{Work, interleaved, median, ratio};

/// The numbers of functions, and for each how often they are all called in one timed run
/// and how many runs there are. The last is cold: its calls are shuffled over 3 MB of text.
const ROWS: [(usize, u64, usize); 4] =
    [(1, 40_000, 301), (16, 2_500, 301), (10_000, 4, 101), (100_000, 1, 61)];

/// One column of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Unhooked,
    Floor,
    /// The program is known to touch no vector register, as the floor's is.
    Hook,
    /// All vector argument registers that this CPU has are saved.
    DefaultVectors,
    /// The functions have no padding: each gets a thunk that carries its index.
    Thunk,
    /// The program is a closure in this executable, out of reach of a direct call.
    Closure,
}

const COLUMNS: [(Column, &str, Padding); 6] = [
    (Column::Unhooked, "unhooked", Padding::Sixteen),
    (Column::Floor, "floor", Padding::Sixteen),
    (Column::Hook, "hook", Padding::Sixteen),
    (Column::DefaultVectors, "default_vectors", Padding::Sixteen),
    (Column::Thunk, "thunk", Padding::None),
    (Column::Closure, "closure", Padding::Sixteen),
];

fn attach(process: &'static Process, copy: &Copy, program: Program) -> Link {
    let functions =
        process.functions().module(&copy.object().module()).expect("a file name is a pattern");
    assert_eq!(functions.len(), copy.count(), "{}", copy.object().module());
    // SAFETY: the programs below do nothing, or add to a counter.
    unsafe { process.attach(&functions, program) }.expect("the copies are all alike")
}

/// The empty program that stands beside the functions of `copy`.
fn empty_program(copy: &Copy) -> Program {
    // SAFETY: `empty_program` only returns, whatever it is passed.
    Program::from_fn(unsafe {
        copy.object().function::<extern "C" fn(&mut Context, u64)>("empty_program")
    })
}

/// That a column measures what it says: a counting program in the place of the empty one
/// sees every call.
fn check(process: &'static Process, copy: &Copy) {
    // SAFETY: the program counts in its own object; the other returns the count.
    let (program, take) = unsafe {
        (
            copy.object().function::<extern "C" fn(&mut Context, u64)>("counting_program"),
            copy.object().function::<extern "C" fn() -> u64>("take_counted"),
        )
    };
    let link = attach(process, copy, Program::from_fn(program));
    for (functions, _, _) in ROWS {
        // SAFETY: a driver of the copy, which is hooked consistently.
        unsafe { copy.driver(functions)(2) };
        assert_eq!(take(), 2 * functions as u64, "entries of {functions} functions");
    }
    link.detach().expect("a link that was attached detaches");
    assert!(copy.entries().iter().all(|entry| {
        // SAFETY: five bytes of the copy's readable text, which nobody writes now.
        unsafe { *(*entry as *const [u8; 5]) == NOP }
    }));
}

fn main() {
    let most = ROWS[ROWS.len() - 1].0;
    let drivers = ROWS.map(|(functions, _, _)| functions);
    let mut loaded: Vec<Copy> = Vec::new();
    for (_, name, padding) in COLUMNS {
        loaded.extend(copies(most, padding, &drivers, &[&name.replace('_', "")]));
    }
    let process = Process::open().expect("this process can be hooked");
    let mut links = Vec::new();
    for ((column, _, _), copy) in COLUMNS.iter().zip(&loaded) {
        // SAFETY: an empty program touches no register at all.
        let untouched = |program: Program| unsafe { program.vectors(Vectors::Untouched) };
        if matches!(column, Column::Hook | Column::Thunk) {
            check(process, copy);
        }
        match column {
            Column::Unhooked => {}
            Column::Floor => Stores::new(copy, "floor_body", most).attach(),
            Column::Hook | Column::Thunk => {
                links.push(attach(process, copy, untouched(empty_program(copy))))
            }
            Column::DefaultVectors => links.push(attach(process, copy, empty_program(copy))),
            Column::Closure => {
                links.push(attach(process, copy, untouched(Program::new(|_: &mut Context, _| {}))))
            }
        }
    }

    let names: Vec<String> =
        COLUMNS.iter().map(|(_, name, _)| format!("{:>16}", name.replace('_', " "))).collect();
    println!("ns per call (100000: cold, called in a shuffled order)");
    println!("{:>9} {}", "functions", names.join(""));
    let mut lines = Vec::new();
    for (functions, calls, rounds) in ROWS {
        let mut works: Vec<Work<'_>> = loaded
            .iter()
            .map(|copy| {
                let driver = copy.driver(functions);
                Box::new(move || {
                    // SAFETY: a driver of a copy whose hooks and floor keep every argument.
                    core::hint::black_box(unsafe { driver(calls) });
                }) as Work<'_>
            })
            .collect();
        let times = interleaved(rounds, &mut works);
        let each = functions as f64 * calls as f64;
        let medians: Vec<f64> = times.iter().map(|times| median(times) / each).collect();
        let cells: Vec<String> = medians.iter().map(|ns| format!("{ns:>16.2}")).collect();
        println!("{functions:>9} {}", cells.join(""));
        let mut line = format!("entry: functions={functions}");
        for ((_, name, _), ns) in COLUMNS.iter().zip(&medians).take(3) {
            line += &format!(" {name}_ns={ns:.2}");
        }
        line += &format!(" ratio_to_floor={:.3}", ratio(&times[2], &times[1]));
        for (which, (_, name, _)) in COLUMNS.iter().enumerate().skip(3) {
            let by = ratio(&times[which], &times[1]);
            line += &format!(" {name}_ns={:.2} {name}_ratio={by:.3}", medians[which]);
        }
        lines.push(line);
    }
    for line in lines {
        println!("{line}");
    }
    drop(links);
    remove_files(&loaded.iter().collect::<Vec<_>>());
}
