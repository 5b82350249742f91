//! What clang emits is the oracle for hashes, kCFI preambles and their checks.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use fentry::emit::kcfi::{type_hash, without_landing_pad};
use fentry::emit::x86_64::{Check, Preamble};

use crate::{emitted, kcfi};

/// The commands that may be a clang with kCFI, the first of which is used.
const COMMANDS: [&str; 9] = [
    "clang-16", "clang-17", "clang-18", "clang-19", "clang-20", "clang-21", "clang-22", "clang-23",
    "clang",
];

/// A clang that knows kCFI; says that `test` is skipped where there is none.
pub fn clang(test: &str) -> Option<&'static str> {
    let knows = |command: &&str| {
        Command::new(command)
            .args(["-fsanitize=kcfi", "-x", "c", "-c", "-o", "/dev/null", "/dev/null"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let found = COMMANDS.into_iter().find(knows);
    if found.is_none() {
        skipped(test, "no clang 16 or later is on PATH; install clang-16");
    }
    found
}

/// Says, where nobody can miss it, that something was not tested and why.
pub fn skipped(test: &str, why: &str) {
    // Not `println!`, which is captured when a test passes.
    let _ = writeln!(std::io::stderr(), "\n******** SKIPPED: {test}: {why} ********");
}

/// What `clang` makes of `source`: assembly with `-S`, an object with `-c`. A `--target` among
/// the flags is taken in the place of x86-64.
pub fn compile(clang: &str, name: &str, source: &str, language: &str, flags: &[&str]) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let made = folder.join(format!("preambles-{name}-{}", std::process::id()));
    let given = made.with_extension("in");
    fs::write(&given, source).expect("the target folder is writable");
    let output = Command::new(clang)
        .args(["--target=x86_64-linux-gnu", "-w", "-O1", "-x", language])
        .args(flags)
        .arg("-o")
        .args([&made, &given])
        .output()
        .expect("clang ran a moment ago");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = fs::read(&made).expect("clang made it");
    let _ = fs::remove_file(&made);
    let _ = fs::remove_file(&given);
    bytes
}

/// The hash that an assembly listing has before `function`.
pub fn hash_in(assembly: &str, function: &str) -> u32 {
    let label = format!("__cfi_{function}:");
    let preamble = assembly.split(&label).nth(1).unwrap_or_else(|| panic!("no {label}"));
    let text = preamble.split("movl\t$").nth(1).expect("a kCFI preamble has a move");
    let number = text.split(',').next().expect("the move has two operands");
    let number: i64 = number.parse().unwrap_or_else(|_| panic!("not a number: {number}"));
    (number & 0xffff_ffff) as u32
}

/// Functions and the names of their types by the Itanium C++ ABI, section 5.1.5: `v` void, `c`
/// char, `i` int, `j` unsigned, `l` long, `m` unsigned long, `d` double, `z` ellipsis, `P`
/// pointer, `K` const, `F...E` function, `S_`, `S0_` again.
const TYPES: [(&str, &str); 14] = [
    ("void f(void) {}", "_ZTSFvvE"),
    ("int f(int a) { return a; }", "_ZTSFiiE"),
    ("long f(const char *a, unsigned b) { return b; }", "_ZTSFlPKcjE"),
    ("void f(struct context *a, unsigned long b) {}", "_ZTSFvP7contextmE"),
    ("int f(const char *a, ...) { return 0; }", "_ZTSFiPKczE"),
    ("void f(void (*a)(int)) {}", "_ZTSFvPFviEE"),
    ("double f(double a, float b) { return a; }", "_ZTSFddfE"),
    ("unsigned char f(short a, _Bool b) { return b; }", "_ZTSFhsbE"),
    ("void *f(void *a, const void *b, unsigned long c) { return a; }", "_ZTSFPvS_PKvmE"),
    ("enum color f(enum color a) { return a; }", "_ZTSF5colorS_E"),
    ("struct pair f(struct pair a) { return a; }", "_ZTSF4pairS_E"),
    (
        "long f(int a, int b, int c, int d, int e, int g, int h, int i) { return i; }",
        "_ZTSFliiiiiiiiE",
    ),
    (
        "void f(struct a_rather_long_name *a, struct another_long_name_of_a_type *b) {}",
        "_ZTSFvP18a_rather_long_nameP27another_long_name_of_a_typeE",
    ),
    (
        "long f(double a, double b, double c, double d, double e, double g, double h, double i,
                double j, double k, double l, double m, double n, double o, double p, double q,
                double r, double s, double t, double u, double v, double w, double x, double y,
                double z, double aa, double bb, double cc, double dd, double ee, double ff) {
            return 0; }",
        "_ZTSFldddddddddddddddddddddddddddddddE",
    ),
];

const DECLARATIONS: &str = "
    struct context; struct a_rather_long_name; struct another_long_name_of_a_type;
    enum color { red, green }; struct pair { long a, b; };
";

#[test]
fn type_hashes_are_clangs() {
    let Some(clang) = clang("type_hashes_are_clangs") else { return };
    let mut source = String::from(DECLARATIONS);
    for (number, (function, _)) in TYPES.iter().enumerate() {
        source += &function.replacen(" f(", &format!(" f{number}("), 1).replacen(
            "*f(",
            &format!("*f{number}("),
            1,
        );
        source.push('\n');
    }
    let assembly = compile(clang, "types", &source, "c", &["-fsanitize=kcfi", "-S"]);
    let assembly = String::from_utf8(assembly).expect("assembly is text");
    for (number, (function, name)) in TYPES.iter().enumerate() {
        let hash = hash_in(&assembly, &format!("f{number}"));
        assert_eq!(type_hash(name), hash, "{name} of {function}");
    }
}

#[test]
fn names_of_every_length_hash_as_clang_does() {
    let Some(clang) = clang("names_of_every_length_hash_as_clang_does") else { return };
    let mut source = String::new();
    for length in 1..=80 {
        let name = "n".repeat(length);
        source += &format!("struct {name}; void f{length}(struct {name} *a) {{}}\n");
    }
    let assembly = compile(clang, "lengths", &source, "c", &["-fsanitize=kcfi", "-S"]);
    let assembly = String::from_utf8(assembly).expect("assembly is text");
    for length in 1..=80 {
        let name = format!("_ZTSFvP{length}{}E", "n".repeat(length));
        assert_eq!(type_hash(&name), hash_in(&assembly, &format!("f{length}")), "{name}");
    }
}

#[test]
fn clang_avoids_the_same_hashes() {
    let Some(clang) = clang("clang_avoids_the_same_hashes") else { return };
    let endbr64 = u32::from_le_bytes([0xf3, 0x0f, 0x1e, 0xfa]);
    let endbr32 = u32::from_le_bytes([0xf3, 0x0f, 0x1e, 0xfb]);
    let mut hashes = vec![0, 1, u32::MAX, 0x1234_5678];
    for pad in [endbr64, endbr32] {
        for hash in [pad, pad.wrapping_neg()] {
            hashes.extend([hash.wrapping_sub(1), hash, hash.wrapping_add(1)]);
        }
    }
    let mut source = String::new();
    for (number, hash) in hashes.iter().enumerate() {
        let signed = hash.cast_signed();
        source +=
            &format!("define void @f{number}() !kcfi_type !{{i32 {signed}}} {{ ret void }}\n");
    }
    source += "!llvm.module.flags = !{!0}\n!0 = !{i32 4, !\"kcfi\", i32 1}\n";
    let assembly = compile(clang, "avoided", &source, "ir", &["-S"]);
    let assembly = String::from_utf8(assembly).expect("assembly is text");
    let mut avoided = 0;
    for (number, &hash) in hashes.iter().enumerate() {
        let found = hash_in(&assembly, &format!("f{number}"));
        assert_eq!(without_landing_pad(hash), found, "{hash:#x}");
        avoided += u32::from(found != hash);
    }
    assert_eq!(avoided, 4);
}

/// How often `part` stands in `whole`.
pub fn occurrences(whole: &[u8], part: &[u8]) -> usize {
    whole.windows(part.len()).filter(|window| *window == part).count()
}

#[test]
fn preambles_and_checks_are_clangs() {
    let Some(clang) = clang("preambles_and_checks_are_clangs") else { return };
    let source = "
        long callee(long a) { return a + 1; }
        long caller(long (*f)(long)) { return f(1) + 2; }
    ";
    let hash = type_hash("_ZTSFllE");
    let prefixes = [0, 3, 11, 27, 59, 124, 125, 200];
    for padding in prefixes {
        for endbr64 in [false, true] {
            let prefix = format!("-fpatchable-function-entry={padding},{padding}");
            let mut flags = vec!["-fsanitize=kcfi", "-c", "-mretpoline-external-thunk", &prefix];
            if endbr64 {
                flags.push("-fcf-protection=branch");
            }
            let object = compile(clang, "checks", source, "c", &flags);
            let (preamble, _) = emitted(0, |code| kcfi(hash, None, padding, endbr64).emit(code));
            assert_eq!(occurrences(&object, &preamble), 1, "{padding} {endbr64}");
            let check = Check::Kcfi { hash, padding };
            let (check, ()) = emitted(0, |code| check.emit(code));
            assert_eq!(occurrences(&object, &check), 1, "{padding} {endbr64}");
        }
    }
    // That a preamble says what its caller must check.
    let preamble = kcfi(hash, None, 11, false);
    assert_eq!(preamble.check(), Check::Kcfi { hash, padding: 11 });
    assert_eq!(Preamble::Endbr64.check(), Check::None);
}
