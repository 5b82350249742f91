//! Entries and layouts, for every way of compiling a patch site.

use fentry::addr::Entry;
use fentry::attach::SiteNop;
use fentry::host::discover::Reason;
use fentry::layout::LandingPad;
use fentry::layout::x86_64::layout;

use super::build::*;

/// `-fpatchable-function-entry=` values and the bytes of padding they leave. Each has a site
/// of five bytes.
const PADDINGS: [(&str, u16); 4] = [("21,16", 16), ("5", 0), ("16,11", 11), ("37,32", 32)];

const PROTECTIONS: [(&str, LandingPad); 2] =
    [("branch", LandingPad::Endbr64), ("none", LandingPad::None)];

/// What `compiler` fills a site of five bytes with.
fn site_of(compiler: &str) -> SiteNop {
    if compiler == "gcc" { SiteNop::OneByte } else { SiteNop::Clang }
}

/// Calls `check` with each way of compiling `FUNCTIONS`: compiler, arguments, padding,
/// landing pad, and a name for the file.
fn every_way(check: impl Fn(&str, &[&str], u16, LandingPad, &str)) {
    for compiler in compilers() {
        for (value, padding) in PADDINGS {
            for (protection, pad) in PROTECTIONS {
                for optimise in ["-O0", "-O2", "-Os"] {
                    let name = format!("{compiler}-{value}-{protection}{optimise}");
                    let entry = format!("-fpatchable-function-entry={value}");
                    let protect = format!("-fcf-protection={protection}");
                    check(compiler, &[&entry, &protect, optimise], padding, pad, &name);
                }
            }
        }
    }
}

#[test]
fn every_way_of_compiling_leads_to_the_entries_the_loader_knows() {
    every_way(|compiler, args, padding, pad, name| {
        let library = Library::of_functions(compiler, &format!("plain-{name}.so"), args);
        let module = library.module();
        assert_eq!(entries_of(&module), sorted(library.entries()), "{name}");
        assert!(module.rejected.is_empty(), "{name}: {:?}", module.rejected);
        for function in &module.functions {
            assert_eq!(function.layout, layout(padding, pad).unwrap(), "{name}");
            assert_eq!(function.nop, site_of(compiler), "{name}");
        }
        for shown in SHOWN {
            let function = module.at(Entry::new(library.symbol(shown))).unwrap();
            assert_eq!(module.name_of(function).to_string(), shown);
        }
    });
}

#[test]
fn stripped_objects_lead_to_the_same_entries() {
    every_way(|compiler, args, padding, pad, name| {
        for strip in ["--strip-debug", "--strip-all"] {
            let file = format!("stripped{strip}-{name}.so");
            let path =
                compile(compiler, &file, ("c", FUNCTIONS), &[&["-shared", "-fPIC"], args].concat());
            run("strip", &[strip, path.to_str().unwrap()]);
            let library = Library::open(&path);
            let module = library.module();
            assert_eq!(entries_of(&module), sorted(library.entries()), "{name}");
            assert!(module.functions.iter().all(|f| f.layout == layout(padding, pad).unwrap()));

            let hidden = module
                .functions
                .iter()
                .find(|f| SHOWN.iter().all(|shown| library.symbol(shown) != f.entry.get()));
            let called = module.name_of(hidden.unwrap()).to_string();
            let place = hidden.unwrap().entry.get() - module.identity.bias;
            match strip {
                "--strip-all" => assert_eq!(called, format!("{file}+{place:#x}")),
                _ => assert!(called.starts_with("hidden_"), "{called}"),
            }
        }
    });
}

/// Without unwind tables and without symbols only the bytes are left. They must not be
/// trusted where they could mean two things.
#[test]
fn without_any_table_nothing_is_guessed() {
    every_way(|compiler, args, padding, pad, name| {
        let bare = [&["-shared", "-fPIC", "-fno-asynchronous-unwind-tables"], args].concat();
        let path = compile(compiler, &format!("bare-{name}.so"), ("c", FUNCTIONS), &bare);
        let library = Library::open(&path);
        assert_eq!(entries_of(&library.module()), sorted(library.entries()), "{name}: symbols");

        let path = compile(compiler, &format!("bare-stripped-{name}.so"), ("c", FUNCTIONS), &bare);
        run("strip", &["--strip-all", path.to_str().unwrap()]);
        let library = Library::open(&path);
        let module = library.module();
        let entries = library.entries();
        for function in &module.functions {
            assert!(entries.contains(&function.entry.get()), "{name}: {function:?}");
            assert_eq!(function.layout, layout(padding, pad).unwrap(), "{name}");
        }
        assert!(module.functions.len() >= SHOWN.len(), "{name}: the loader's symbols are left");
        assert_eq!(module.functions.len() + module.rejected.len(), entries.len(), "{name}");
        for rejected in &module.rejected {
            assert_eq!(rejected.reason, Reason::UnknownEntry, "{name}");
            assert!(rejected.reason.to_string().contains("keep the symbol table"));
        }
        // An `endbr64`, or a nop of five bytes, leaves no doubt.
        if pad == LandingPad::Endbr64 || compiler != "gcc" {
            assert!(module.rejected.is_empty(), "{name}: {:?}", module.rejected);
        } else {
            assert_eq!(module.rejected.len(), 2, "{name}");
        }
    });
}

#[test]
fn sites_that_are_too_short_are_refused_with_what_is_there() {
    for compiler in compilers() {
        for value in ["2", "16,16", "18,16"] {
            let name = format!("short-{compiler}-{value}.so");
            let entry = format!("-fpatchable-function-entry={value}");
            // Unoptimised, no function begins with a call, which would look like a hook.
            let library =
                Library::of_functions(compiler, &name, &[&entry, "-fcf-protection=none", "-O0"]);
            let module = library.module();
            assert!(module.functions.is_empty(), "{name}: {:?}", module.functions);
            let shown = library.symbol("shown_one");
            let rejected = module
                .rejected
                .iter()
                .find(|rejected| rejected.function.is_some_and(|(entry, _)| entry.get() == shown));
            let rejected = rejected.expect("the function is known");
            let Reason::ShortSite { found, nops } = rejected.reason else {
                panic!("{name}: {rejected:?}")
            };
            // SAFETY: The function's bytes are loaded.
            let bytes = unsafe { *(shown as *const [u8; 5]) };
            assert_eq!(found, bytes, "{name}");
            assert_eq!(nops, if value == "16,16" { 0 } else { 2 }, "{name}");
            assert_eq!(module.name_of_rejected(rejected).unwrap().to_string(), "shown_one");
            assert!(rejected.reason.to_string().contains("-fpatchable-function-entry=21,16"));
        }
    }
}

/// clang makes one nop of seven bytes, of which the first five are no patch site; gcc makes
/// seven, of which they are one.
#[test]
fn longer_sites_are_used_only_where_five_bytes_stand_alone() {
    for compiler in compilers() {
        let name = format!("long-{compiler}.so");
        let library = Library::of_functions(
            compiler,
            &name,
            &["-fpatchable-function-entry=23,16", "-fcf-protection=none", "-O2"],
        );
        let module = library.module();
        if compiler == "gcc" {
            assert_eq!(entries_of(&module), sorted(library.entries()));
        } else {
            assert!(module.functions.is_empty());
            let refused =
                |r: &fentry::host::discover::Rejected| matches!(r.reason, Reason::OtherNops { .. });
            assert_eq!(module.rejected.iter().filter(|r| refused(r)).count(), 5);
        }
    }
}

/// Functions whose attribute differs from the command line, next to each other and without
/// alignment between them.
#[test]
fn mixed_layouts_in_one_file_are_told_apart() {
    const MIXED: &str = r#"
#define P(n, m) __attribute__((noinline, used, patchable_function_entry(n, m)))
P(5, 0) void ends_at_once(void) { __builtin_unreachable(); }
P(21, 16) int padded(int x) { return x + 1; }
P(8, 8) void only_padding(void) { __builtin_unreachable(); }
P(21, 16) int padded_again(int x) { return x + 2; }
P(5, 0) int bare(int x) { return x + 3; }
P(0, 0) int none(int x) { return x + 4; }
P(105, 100) int far(int x) { return x + 5; }
"#;
    for compiler in compilers() {
        for (protection, pad) in PROTECTIONS {
            let unwind = ["-fasynchronous-unwind-tables", "-fno-asynchronous-unwind-tables"];
            for (strip, unwind) in [(false, unwind[0]), (true, unwind[0]), (false, unwind[1])] {
                let name = format!("mixed-{compiler}-{protection}-{strip}{unwind}.so");
                let protect = format!("-fcf-protection={protection}");
                let path = compile(
                    compiler,
                    &name,
                    ("c", MIXED),
                    &["-shared", "-fPIC", "-Os", "-falign-functions=1", &protect, unwind],
                );
                if strip {
                    run("strip", &["--strip-all", path.to_str().unwrap()]);
                }
                let library = Library::open(&path);
                let module = library.module();
                let want = [
                    ("ends_at_once", 0),
                    ("padded", 16),
                    ("padded_again", 16),
                    ("bare", 0),
                    ("far", 100),
                ];
                for (function, padding) in want {
                    let found = module.at(Entry::new(library.symbol(function)));
                    let found = found.unwrap_or_else(|| {
                        panic!("{name}: {function} is missing: {:?}", module.rejected)
                    });
                    assert_eq!(found.layout, layout(padding, pad).unwrap(), "{name}: {function}");
                }
                assert_eq!(module.functions.len(), want.len(), "{name}");
                assert!(module.at(Entry::new(library.symbol("none"))).is_none());
            }
        }
    }
}

/// An `endbr64` on either side of a record, and no table: the first could be a function of
/// its own, the nops its patch site.
#[test]
fn bytes_that_could_mean_two_functions_are_not_believed() {
    const TWO: &str = r#"
__asm__(".text\n.balign 16\n"
        "endbr64\n.Lrecord: .skip 16, 0x90\n"
        "endbr64\n.skip 5, 0x90\nret\n"
        ".section __patchable_function_entries, \"awo\", @progbits, .text\n"
        ".quad .Lrecord\n.previous");
"#;
    let bare = ["-shared", "-fPIC", "-nostdlib", "-fno-asynchronous-unwind-tables"];
    let library = Library::open(&compile("gcc", "two.so", ("c", TWO), &bare));
    let module = library.module();
    assert!(module.functions.is_empty(), "{:?}", module.functions);
    assert_eq!(
        module.rejected.iter().map(|r| r.reason).collect::<Vec<_>>(),
        [Reason::UnknownEntry]
    );
}
