//! What entry and exit of the innermost function cost its callers: `cargo bench --bench chain`.
//!
//! A `ret` that does not return to where its `call` came from is mispredicted, and so may be
//! those of all the functions further out. The columns are copies of the same machine code,
//! hooked with the same empty programs in each form, and measured in turn in one process;
//! ratios are medians of the ratios of single rounds.

mod support;

#[path = "chain/functions.rs"]
mod functions;
#[path = "chain/hooks.rs"]
mod hooks;

use functions::{Copy, DEEPEST};
use hooks::{Form, Hooks, own_bytes, side_stack};
use support::{Work, interleaved, median, ratio};

const FORMS: [(Form, &str); 6] = [
    (Form::Unhooked, "unhooked"),
    (Form::Floor, "floor"),
    (Form::SideStack, "side-stack"),
    (Form::Frame, "frame"),
    (Form::Called, "called"),
    (Form::Swap, "swap"),
];

const DEPTHS: [usize; 3] = [1, 8, DEEPEST];
/// The numbers of chains, each with a function of its own, and for each how often they are
/// all called in one timed run and how many runs there are.
const ROWS: [(usize, u64, usize); 3] = [(1, 20_000, 201), (16, 1_250, 201), (10_000, 2, 61)];

/// That a column measures what it says: counting programs see every call, and what comes of
/// the chains is what comes of them unhooked.
fn check(hooks: &Hooks<'_>, unhooked: &Copy) {
    hooks.attach("counting");
    for depth in DEPTHS {
        for (count, _, _) in ROWS {
            // SAFETY: drivers of copies that are not hooked, or hooked so that every argument
            // and return value is kept.
            let [hooked, unhooked] =
                [hooks.copy, unhooked].map(|copy| unsafe { copy.driver(depth, count)(2) });
            assert_eq!(hooked, unhooked, "{:?}: depth {depth}", hooks.form);
            let calls = if hooks.form == Form::Unhooked { 0 } else { 2 * count as u64 };
            assert_eq!(hooks.copy.take_counted(), [calls; 2], "{:?}: depth {depth}", hooks.form);
        }
    }
}

fn main() {
    let most = ROWS[ROWS.len() - 1].0;
    let drivers: Vec<(usize, usize)> =
        DEPTHS.iter().flat_map(|&depth| ROWS.map(|(count, _, _)| (depth, count))).collect();
    let copies = FORMS.map(|(_, name)| Copy::load(name, most, &drivers, own_bytes(most)));
    let place = side_stack();
    for ((form, _), copy) in FORMS.iter().zip(&copies) {
        let hooks = Box::leak(Box::new(Hooks::new(*form, copy, most, place)));
        check(hooks, &copies[0]);
        hooks.attach("empty");
    }

    let names: String = FORMS.map(|(_, name)| format!("{name:>12}")).concat();
    println!("ns per chain");
    println!("{:>6} {:>9} {names}", "depth", "functions");
    let mut lines = Vec::new();
    for depth in DEPTHS {
        for (count, calls, rounds) in ROWS {
            let mut works: Vec<Work<'_>> = copies
                .iter()
                .map(|copy| {
                    let driver = copy.driver(depth, count);
                    Box::new(move || {
                        // SAFETY: as in `check`.
                        core::hint::black_box(unsafe { driver(calls) });
                    }) as Work<'_>
                })
                .collect();
            let times = interleaved(rounds, &mut works);
            let each = count as f64 * calls as f64;
            let cells: Vec<String> =
                times.iter().map(|times| format!("{:>12.2}", median(times) / each)).collect();
            println!("{depth:>6} {count:>9} {}", cells.concat());
            let [unhooked, floor, side_stack, frame, called, swap] = &times[..] else {
                unreachable!("one column for each form")
            };
            let added = |times: &[f64]| -> Vec<f64> {
                times.iter().zip(unhooked).map(|(hooked, unhooked)| hooked - unhooked).collect()
            };
            let ns = |times: &[f64]| median(&added(times)) / each;
            for (form, ours) in [("side-stack", side_stack), ("frame", frame)] {
                lines.push(format!(
                    "chain: depth={depth} functions={count} form={form} added_ns={:.2} \
                     called_added_ns={:.2} swap_added_ns={:.2} ratio_to_called={:.3} \
                     ratio_to_floor={:.3}",
                    ns(ours),
                    ns(called),
                    ns(swap),
                    ratio(&added(ours), &added(called)),
                    ratio(ours, floor),
                ));
            }
        }
    }
    for line in lines {
        println!("{line}");
    }
}
