//! Memory for emitted code grows with what is attached, for every module by itself.

mod support;

use core::sync::atomic::Ordering;

use support::four::{PADDED, build, call_numbered, counter, find, numbered};

/// More images than the memory that is set aside for a module at first, for two modules at
/// once: each gets more.
#[test]
fn every_module_of_a_batch_gets_image_memory() {
    const MANY: usize = 600;
    let objects = ["first", "second"].map(|name| build(name, &numbered(name, MANY), "c", PADDED));
    let (process, _) = find(&objects[1]);
    let mut links = Vec::new();
    let (count, program) = counter();
    for n in 0..MANY {
        let both = process
            .functions()
            .filter(|found| [format!("first_{n}"), format!("second_{n}")].contains(&found.name()));
        assert_eq!(both.len(), 2);
        // Each program is another, so each pair of functions has images of its own.
        let (_, other) = counter();
        // SAFETY: the programs add to counters.
        let link = unsafe { process.attach(&both, [program.clone(), other]) };
        links.push(link.unwrap_or_else(|error| panic!("pair {n} of {MANY}: {error}")));
    }
    for (object, prefix) in objects.iter().zip(["first", "second"]) {
        call_numbered(object, prefix, MANY);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2 * MANY as u64);
}
