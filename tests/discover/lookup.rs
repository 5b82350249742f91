//! Looking functions up.

use fentry::addr::Entry;
use fentry::host::{Functions, Process};

use super::build::*;

const CPP: &str = r#"
#define KEEP __attribute__((noinline, used))
namespace shop {
struct Till {
    int sum;
    KEEP Till(int start) : sum(start) {}
    KEEP void add(int x) { sum += x; }
    KEEP void add(double x) { sum += (int)x; }
    KEEP int operator()(int x) const { return sum + x; }
};
template <class T> KEEP T twice(T x) { return x + x; }
template int twice<int>(int);
template long twice<long>(long);
}
extern "C" KEEP int plain(int x) { shop::Till t(x); t.add(1); t.add(2.0); return t(3); }
"#;

fn cpp(name: &str) -> Library {
    let path = compile(
        "g++",
        name,
        ("cc", CPP),
        &[
            "-shared",
            "-fPIC",
            "-O2",
            "-falign-functions=16",
            "-fpatchable-function-entry=21,16",
            "-fcf-protection=none",
        ],
    );
    Library::open(&path)
}

/// The functions of the libraries with these file names, which are loaded.
fn of(pattern: &str) -> Functions {
    let process = Process::open().unwrap();
    process.refresh().unwrap();
    process.functions().module(pattern).unwrap()
}

/// The entries of a selection.
fn picked(selection: &Functions) -> Vec<u64> {
    sorted(selection.iter().map(|function| function.entry().get()).collect())
}

#[test]
fn cpp_functions_are_found_by_every_form_of_their_names() {
    let library = cpp("lookup-names.so");
    let functions = of("lookup-names.so");
    let named = |name: &str| picked(&functions.named(name));
    let at = |symbols: &[&str]| sorted(symbols.iter().map(|s| library.symbol(s)).collect());
    let (int, double) = ("_ZN4shop4Till3addEi", "_ZN4shop4Till3addEd");
    assert_eq!(named(int), at(&[int]));
    assert_eq!(named("shop::Till::add(int)"), at(&[int]));
    assert_eq!(named("shop::Till::add"), at(&[int, double]));
    assert_eq!(named("shop::Till::operator()(int) const"), at(&["_ZNK4shop4TillclEi"]));
    assert_eq!(named("shop::Till::operator()"), at(&["_ZNK4shop4TillclEi"]));
    assert_eq!(named("int shop::twice<int>(int)"), at(&["_ZN4shop5twiceIiEET_S1_"]));
    assert_eq!(named("shop::twice<int>(int)"), at(&["_ZN4shop5twiceIiEET_S1_"]));
    assert_eq!(named("shop::twice<long>"), at(&["_ZN4shop5twiceIlEET_S1_"]));
    // Both constructors are one function with two names.
    let constructor = "_ZN4shop4TillC1Ei";
    assert_eq!(library.symbol(constructor), library.symbol("_ZN4shop4TillC2Ei"));
    assert_eq!(named(constructor), at(&[constructor]));
    assert_eq!(named("_ZN4shop4TillC2Ei"), at(&[constructor]));
    assert_eq!(named("shop::Till::Till"), at(&[constructor]));
    assert_eq!(named("plain"), at(&["plain"]));
    for absent in ["add", "Till::add", "plai", "shop::Till::add(", "", "shop"] {
        assert_eq!(named(absent), [], "{absent}");
    }
}

#[test]
fn selections_narrow_step_by_step() {
    let library = cpp("lookup-cc.so");
    let options = ["-fpatchable-function-entry=5", "-O2", "-falign-functions=16"];
    let other = Library::of_functions("gcc", "lookup-c.so", &options);
    let all = of("*/lookup-c*.so");
    assert_eq!(all.len(), 7 + 5);

    let tills = all.glob("shop::Till::*").unwrap();
    assert_eq!(tills.len(), 4);
    assert_eq!(tills.glob("*double*").unwrap().len(), 1);
    assert!(tills.module("lookup-c.so").unwrap().is_empty());
    assert_eq!(tills.module("lookup-cc.so").unwrap().len(), 4);
    assert_eq!(all.module("*/lookup-?.so").unwrap().len(), 5);
    // `plain`, two templates by their return types, and all but `shown_*` in the other.
    assert_eq!(all.glob("[!s_]*").unwrap().len(), 1 + 2 + 3);
    assert_eq!(
        picked(&all.glob("shown_*").unwrap()),
        sorted(vec![other.symbol("shown_one"), other.symbol("shown_two")])
    );
    assert!(all.glob("[").is_err());
    let plain = library.symbol("plain");
    assert_eq!(picked(&all.containing(plain + 7)), [plain]);
    assert_eq!(picked(&all.at(plain)), [plain]);
    assert!(all.at(plain + 7).is_empty());
    assert_eq!(picked(&all.filter(|function| function.name() == "plain")), [plain]);
}

#[test]
fn addresses_lead_to_the_function_around_them_and_to_no_other() {
    const GAP: &str = r#"
__attribute__((noinline, used, patchable_function_entry(21, 16))) int traced(int x) { return x; }
__attribute__((noinline, used)) int untraced(int x) { return traced(x) + 1; }
__attribute__((noinline, used, patchable_function_entry(21, 16))) int last(int x) { return x; }
"#;
    for strip in [false, true] {
        let path =
            compile("gcc", &format!("gap-{strip}.so"), ("c", GAP), &["-shared", "-fPIC", "-O1"]);
        if strip {
            run("strip", &["--strip-all", path.to_str().unwrap()]);
        }
        let library = Library::open(&path);
        let module = library.module();
        let traced = library.symbol("traced");
        let around = |address| module.containing(address).map(|f| f.entry.get());
        assert_eq!(around(traced), Some(traced));
        assert_eq!(around(traced + 5), Some(traced));
        assert_eq!(around(traced - 1), None, "padding is not the function");
        assert_eq!(around(library.symbol("untraced")), None);
        assert_eq!(around(library.symbol("untraced") + 4), None);
        assert_eq!(around(0), None);
        assert_eq!(around(u64::MAX), None);
        assert!(module.at(Entry::new(traced)).is_some());
        assert!(module.at(Entry::new(traced + 1)).is_none());
    }
}

#[test]
fn the_first_global_alias_is_shown_and_all_are_found() {
    const ALIASES: &str = r#"
__attribute__((noinline, used)) static int inner(int x) { return x + 1; }
extern int a_weak(int) __attribute__((alias("inner"), weak));
extern int z_strong(int) __attribute__((alias("inner")));
"#;
    let path = compile(
        "gcc",
        "aliases.so",
        ("c", ALIASES),
        &["-shared", "-fPIC", "-O1", "-fpatchable-function-entry=21,16"],
    );
    let library = Library::open(&path);
    let module = library.module();
    let function = module.at(Entry::new(library.symbol("z_strong"))).unwrap();
    let name = module.name_of(function);
    assert_eq!(name.to_string(), "z_strong");
    assert_eq!(name.aliases().collect::<Vec<_>>(), ["z_strong", "a_weak", "inner"]);
    for alias in ["z_strong", "a_weak", "inner"] {
        assert!(name.is(alias));
    }
}
