//! Libraries that are loaded and unloaded, and that nobody attaches to.

mod support;

use support::four::{PADDED, UNPADDED, build, find, numbered};

/// More often than there are numbers for kinds of functions, and nobody waits for quiescence,
/// which is why this test has a process of its own: what was never attached to needs none.
#[test]
fn modules_that_nobody_attaches_to_leave_nothing() {
    for round in 0..400 {
        let flags = if round % 2 == 0 { PADDED } else { UNPADDED };
        let object = build("passes", &numbered("passes", 4), "c", flags);
        let (process, functions) = find(&object);
        assert_eq!(functions.len(), 4, "round {round}");
        // SAFETY: nothing was attached, and nobody is inside.
        unsafe { object.unload() };
        process.refresh().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(process.functions().named("passes_0").is_empty(), "round {round}");
    }
}
