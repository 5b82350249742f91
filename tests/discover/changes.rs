//! What happens to modules after they are loaded.

use std::path::Path;

use fentry::addr::Entry;
use fentry::host::discover::{
    Difference, Reason, SkipReason, generation, loaded, modules, modules_except,
};

use super::build::*;

const ARGS: [&str; 3] = ["-fpatchable-function-entry=21,16", "-fcf-protection=none", "-O2"];

/// Why the module at `path` was skipped.
fn skipped(path: &Path) -> Option<SkipReason> {
    let found = modules().unwrap();
    assert!(found.modules.iter().all(|module| module.identity.path != path), "{path:?}");
    let skipped = found.skipped.into_iter().find(|skipped| skipped.identity.path == path);
    skipped.map(|skipped| skipped.reason)
}

#[test]
fn a_file_that_was_removed_or_replaced_is_not_believed() {
    let library = Library::of_functions("gcc", "replaced.so", &ARGS);
    assert_eq!(library.module().functions.len(), 5);

    // Other code, same shape: only its contents tell it apart.
    let other = FUNCTIONS.replace("x * 3 + 1", "x * 5 + 9");
    let shared = [&["-shared", "-fPIC"][..], &ARGS].concat();
    let other = compile("gcc", "replaced-other.so", ("c", &other), &shared);
    std::fs::rename(&other, &library.path).unwrap();
    assert_eq!(skipped(&library.path), Some(SkipReason::Differs(Difference::BuildId)));

    std::fs::remove_file(&library.path).unwrap();
    let reason = skipped(&library.path).unwrap();
    assert_eq!(reason, SkipReason::Unreadable { os_error: Some(libc::ENOENT) });

    std::fs::write(&library.path, "no ELF file at all").unwrap();
    assert!(matches!(skipped(&library.path), Some(SkipReason::Damaged { .. })));

    // Another program altogether.
    std::fs::remove_file(&library.path).unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), &library.path).unwrap();
    assert_eq!(skipped(&library.path), Some(SkipReason::Differs(Difference::ProgramHeaders)));
}

#[test]
fn without_a_build_id_the_contents_are_compared() {
    let args = [&ARGS[..], &["-Wl,--build-id=none"]].concat();
    let library = Library::of_functions("gcc", "no-id.so", &args);
    let module = library.module();
    assert!(module.identity.build_id.is_empty());
    assert_eq!(entries_of(&module), sorted(library.entries()));

    // The functions in another order: the program headers stay the same.
    let two = "KEEP int shown_two(int x) { return hidden_two(shown_one(x)); }\n";
    let renamed = FUNCTIONS.replace("shown_one", "shown_swp").replace("shown_two", "shown_one");
    let renamed = renamed.replace("shown_swp", "shown_two");
    assert!(FUNCTIONS.contains(two) && renamed != FUNCTIONS);
    let shared = [&["-shared", "-fPIC"][..], &args].concat();
    let other = compile("gcc", "no-id-other.so", ("c", &renamed), &shared);
    std::fs::rename(other, &library.path).unwrap();
    assert!(
        matches!(
            skipped(&library.path),
            Some(SkipReason::Differs(Difference::Contents { .. } | Difference::ProgramHeaders))
        ),
        "{:?}",
        skipped(&library.path)
    );
}

/// Records in a read-only section are relocated all the same, so they never equal the file.
#[test]
fn relocated_records_are_no_difference() {
    let source = "__attribute__((noinline)) int counted(int x) { return x + 1; }";
    let mcount = ["-O2", "-fno-pic", "-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-c"];
    let object = compile("gcc", "counted.o", ("c", source), &mcount);
    let path = place("counted.so");
    let _ = std::fs::remove_file(&path);
    let files = ["-o", path.to_str().unwrap(), object.to_str().unwrap()];
    let link = ["-shared", "-nostdlib", "-Wl,-z,notext", "-Wl,--build-id=none"];
    run("gcc", &[&link[..], &files].concat());
    let library = Library::open(&path);
    assert_eq!(entries_of(&library.module()), [library.symbol("counted")]);
}

#[test]
fn a_second_search_tells_old_modules_from_new_ones() {
    let old = Library::of_functions("gcc", "old.so", &ARGS);
    let before = generation();
    let known = loaded().unwrap();
    assert!(known.iter().any(|identity| identity.path == old.path));
    let first = old.module();
    assert!(known.contains(&first.identity));

    let new = Library::of_functions("gcc", "new.so", &ARGS);
    assert_ne!(generation(), before);
    let found = modules_except(&known).unwrap();
    assert!(found.modules.iter().any(|module| module.identity.path == new.path));
    assert!(found.modules.iter().all(|module| module.identity.path != old.path));

    let (path, new_path) = (old.path.clone(), new.path.clone());
    drop(old);
    let now = loaded().unwrap();
    assert!(!now.contains(&first.identity));
    assert!(now.iter().any(|identity| identity.path == new_path));

    // The same file again may be loaded at the same place: it is the same module then.
    let again = Library::open(&path);
    let second = again.module();
    assert_eq!(second.identity.build_id, first.identity.build_id);
    let moved = second.identity.bias.wrapping_sub(first.identity.bias);
    for (now, then) in second.functions.iter().zip(&first.functions) {
        assert_eq!(now.entry.get(), then.entry.get().wrapping_add(moved));
    }
}

/// Writes `bytes` to text and returns what was there.
fn poke(address: u64, bytes: &[u8]) -> Vec<u8> {
    let page = address & !4095;
    let len = (address - page) as usize + bytes.len();
    let protect = |how| {
        // SAFETY: The pages are text of a library that only this test uses.
        let done = unsafe { libc::mprotect(page as *mut _, len, how) };
        assert_eq!(done, 0);
    };
    protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    let text = address as *mut u8;
    // SAFETY: The bytes are mapped, writable for now, and nobody executes them.
    let old = unsafe { core::slice::from_raw_parts(text, bytes.len()).to_vec() };
    // SAFETY: As above.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), text, bytes.len()) };
    protect(libc::PROT_READ | libc::PROT_EXEC);
    old
}

#[test]
fn what_others_put_at_a_site_is_reported_and_left_alone() {
    let library = Library::of_functions("gcc", "foreign.so", &ARGS);
    let entry = library.symbol("shown_one");
    for foreign in [&[0xcc][..], &[0xe9, 1, 2, 3, 4], &[0xe8, 1, 2, 3, 4], &[0xff, 0x25, 0, 0, 0]] {
        let old = poke(entry, foreign);
        let module = library.module();
        let left = poke(entry, &old);
        assert_eq!(left, foreign);
        assert!(module.at(Entry::new(entry)).is_none());
        assert_eq!(module.functions.len(), 4);
        let [rejected] = module.rejected[..] else { panic!("{:?}", module.rejected) };
        let Reason::ForeignBytes { found } = rejected.reason else { panic!("{rejected:?}") };
        assert!(found.starts_with(foreign));
        assert_eq!(module.name_of_rejected(&rejected).unwrap().to_string(), "shown_one");
    }
    // In the padding, what is no slot is someone else's too.
    let foreign = [0xeb, 0x0e, 0x0f, 0x0b, 0x0f];
    let old = poke(entry - 16, &foreign);
    let module = library.module();
    poke(entry - 16, &old);
    let [rejected] = module.rejected[..] else { panic!("{:?}", module.rejected) };
    assert_eq!(rejected.reason, Reason::ForeignBytes { found: foreign });
    assert_eq!(rejected.address, entry - 16);

    // A slot is padding still.
    let old = poke(entry - 16, &[0xb8, 7, 0, 0, 0]);
    let module = library.module();
    poke(entry - 16, &old);
    assert_eq!(entries_of(&module), sorted(library.entries()));
}

/// What the linker drops must not come back as a function.
#[test]
fn records_of_nothing_are_rejected() {
    const NOTHING: &str = r#"
__asm__(".section __patchable_function_entries, \"awo\", @progbits, .text\n"
        ".quad 0\n.quad 0x7fffffffffff\n.quad -1\n.previous");
__attribute__((noinline)) int kept(int x) { return x + 1; }
"#;
    let args = [&["-shared", "-fPIC"][..], &ARGS].concat();
    let library = Library::open(&compile("gcc", "nothing.so", ("c", NOTHING), &args));
    let module = library.module();
    assert_eq!(entries_of(&module), [library.symbol("kept")]);
    let outside = [0, 0x7fff_ffff_ffff, u64::MAX];
    assert_eq!(module.rejected.iter().map(|r| r.address).collect::<Vec<_>>(), outside);
    assert!(module.rejected.iter().all(|rejected| rejected.reason == Reason::NotInText));
}

#[test]
fn what_the_linker_collected_is_not_found() {
    const COLLECTED: &str = r#"
__attribute__((noinline)) int kept(int x) { return x + 1; }
__attribute__((noinline, visibility("hidden"))) int dropped(int x) { return x + 2; }
"#;
    for compiler in compilers() {
        let collect = ["-shared", "-fPIC", "-ffunction-sections", "-Wl,--gc-sections"];
        let args = [&collect[..], &ARGS].concat();
        let name = format!("collected-{compiler}.so");
        let library = Library::open(&compile(compiler, &name, ("c", COLLECTED), &args));
        let module = library.module();
        let kept = library.symbol("kept");
        assert!(module.at(Entry::new(kept)).is_some(), "{name}");
        // gcc 12 puts both records in one section, which keeps both functions alive.
        for function in module.functions.iter().filter(|f| f.entry.get() != kept) {
            assert_eq!(module.name_of(function).to_string(), "dropped", "{name}");
        }
    }
}
