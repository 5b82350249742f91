//! Functions whose patch site is where `mcount` would be called: `-mfentry -mnop-mcount`, one
//! nop of five bytes, no padding. The index comes from a thunk.

mod support;

use core::sync::atomic::Ordering;
use std::path::Path;
use std::process::Command;

use fentry::attach::SiteNop;
use support::four::{attach, call_numbered, counter, find, numbered};
use support::object::Object;

#[test]
fn mcount_sites_are_hooked_through_thunks() {
    // gcc has this option for code at a fixed address only. A shared object can be made of such
    // code if the linker is told to let the loader relocate its text.
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let [source, code, library] =
        ["mcount.c", "mcount.o", "libmcount.so"].map(|name| place.join(name));
    std::fs::write(&source, numbered("mcount", 4)).expect("the temporary directory is writable");
    let compile = ["-O2", "-fno-pic", "-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-c"];
    let link = ["-shared", "-nostdlib", "-Wl,-z,notext", "-Wl,--build-id=none"];
    for (options, to, from) in [(&compile[..], &code, &source), (&link[..], &library, &code)] {
        let status = Command::new("gcc").args(options).arg("-o").args([to, from]).status();
        assert!(status.expect("gcc is on PATH").success());
    }
    let object = Object::load(&library);
    let (process, functions) = find(&object);
    assert_eq!(functions.len(), 4);
    for function in functions.iter() {
        assert_eq!(function.found().nop, SiteNop::FiveByte);
        assert_eq!(function.found().layout.slot_kind(), None);
        assert_eq!(function.entry().get(), object.address(&function.name()) as u64);
    }
    let before = object.text();
    let (count, program) = counter();
    let link = attach(process, &functions, program).expect("all have a site");
    call_numbered(&object, "mcount", 4);
    assert_eq!(count.load(Ordering::Relaxed), 4);
    link.detach().expect("an attached link detaches");
    call_numbered(&object, "mcount", 4);
    assert_eq!(count.load(Ordering::Relaxed), 4);
    assert!(object.text() == before, "detaching left something behind");
}
