//! SQLite: statements whose answers are known, on several threads, with every function hooked.

use core::sync::atomic::Ordering::Relaxed;

use crate::counts::{Counts, Well};
use crate::shop::{Shop, Tally};
use crate::{alone, support};

const THREADS: usize = 3;
const ROUNDS: usize = 2;

/// Runs the same statements each time, and compares every answer with what it must be. Returns
/// how many there were.
fn queries(well: Option<&Well>) -> [u64; THREADS] {
    let tallies = [(); THREADS].map(|()| Tally::default());
    std::thread::scope(|scope| {
        for (number, tally) in tallies.iter().enumerate() {
            scope.spawn(move || {
                // In memory, in a file, and in a shared cache.
                let mut shop = Shop::open(number, 7 + number as u64).expect("a database");
                for _ in 0..ROUNDS {
                    shop.round(tally);
                }
                drop(shop);
                if let Some(well) = well {
                    well.assert_empty();
                }
            });
        }
    });
    tallies.map(|tally| {
        assert_eq!(tally.wrong.load(Relaxed), 0, "wrong answers");
        tally.queries.load(Relaxed)
    })
}

#[test]
fn sqlite_answers_as_without_hooks_and_every_entry_has_its_exit() {
    let _alone = alone();
    let process = support::process();
    let executable = std::env::current_exe().expect("a test has an executable");
    let functions =
        process.functions().module(&executable.to_string_lossy()).expect("a path is a pattern");
    // Nothing else in this executable is compiled with patch sites.
    assert!(functions.len() > 1500, "functions of SQLite: {}", functions.len());
    let well = Well::dig(process);

    let unhooked = queries(None);
    let (counts, link) = Counts::attach(process, &functions);
    let hooked = queries(Some(&well));
    link.detach().expect("an attached link detaches");
    assert_eq!(hooked, unhooked);

    let (entries, abandoned) = counts.assert_balanced("SQLite");
    assert_eq!(abandoned, 0, "SQLite leaves no function without a return");
    for (function, seen) in functions.iter().zip(counts.seen.iter()) {
        assert_eq!(seen.entries.load(Relaxed), seen.exits.load(Relaxed), "{function}");
    }
    assert!(entries > 100 * hooked.iter().sum::<u64>(), "{entries} entries");
    assert_eq!(queries(None), unhooked, "everything detached");
}
