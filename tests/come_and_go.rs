//! Libraries that are loaded, hooked and unloaded, over and over.

mod support;

use core::sync::atomic::Ordering;

use fentry::host::AttachError;
use support::four::{
    PADDED, UNPADDED, assert_says, attach, build, call_numbered, counter, find, numbered,
};

/// More often than there are numbers for kinds of functions: what an unloaded module had is
/// given to the next one.
#[test]
fn modules_come_and_go_by_the_hundred() {
    let before = mappings();
    for round in 0..400 {
        let flags = if round % 2 == 0 { PADDED } else { UNPADDED };
        let object = build("comes", &numbered("comes", 4), "c", flags);
        let (process, functions) = find(&object);
        assert_eq!(functions.len(), 4, "round {round}");
        let (count, program) = counter();
        let link = attach(process, &functions, program)
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        call_numbered(&object, "comes", 4);
        assert_eq!(count.load(Ordering::Relaxed), 4, "round {round}");
        link.detach().expect("an attached link detaches");
        process.synchronize().expect("no thread is inside");
        // SAFETY: detached, and nobody is inside.
        unsafe { object.unload() };
        process.refresh().expect("the rest is still loaded");
        process.synchronize().expect("no thread is inside");
        assert!(process.functions().named("comes_0").is_empty());
    }
    let grown = mappings().saturating_sub(before);
    assert!(grown < 40, "400 rounds left {grown} mappings behind");
}

/// A selection outlives its modules, and must not lead to those that came after them.
#[test]
fn a_selection_of_an_unloaded_module_is_refused() {
    let object = build("leaves", &numbered("leaves", 4), "c", PADDED);
    let (process, gone) = find(&object);
    let (_, program) = counter();
    attach(process, &gone, program).expect("still loaded").detach().expect("attached");
    // SAFETY: detached, and nobody is inside.
    unsafe { object.unload() };
    process.refresh().expect("the rest is still loaded");
    process.synchronize().expect("no thread is inside");
    let next = build("follows", &numbered("follows", 4), "c", PADDED);
    let (_, functions) = find(&next);
    assert_eq!(functions.len(), 4);
    let (count, program) = counter();
    let error = attach(process, &gone, program).unwrap_err();
    assert!(matches!(&error, AttachError::Unloaded { .. }), "{error:?}");
    assert_says(&error, &["unloaded", "select again"]);
    call_numbered(&next, "follows", 4);
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

/// How many mappings this process has.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted").lines().count()
}
