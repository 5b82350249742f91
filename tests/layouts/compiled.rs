//! What the options say against what the compilers make of them.
//!
//! Each combination compiles one file. Of each function in it the bytes must be those that the
//! options say, and the compiler itself says where things are: its record of patch sites, the
//! symbols `__cfi_*`, and the displacement by which a caller reads the callee's hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fentry::addr::Entry;
use fentry::layout::{Arch, Around, Compiler, Config, Function, Kcfi, Options, detect};
use iced_x86::{Code, Decoder, DecoderOptions};
use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget,
};

use crate::detected::named;
use crate::support::skipped;

/// Local or not, with its address taken or not, saving the return address or not.
const SOURCE: &str = "\
int outside(int);
int leaf(int x) { return x * 3 + 1; }
int saves(int x) { return outside(x) + 1; }
static __attribute__((noinline)) int direct(int x) { return outside(x) - 1; }
static __attribute__((noinline)) int taken(int x) { return outside(x) + 5; }
int (*volatile pointer)(int) = taken;
int uses(int x) { return direct(x) + pointer(x) + 1; }
";

const FUNCTIONS: [&str; 5] = ["leaf", "saves", "direct", "taken", "uses"];

/// The function that calls by a pointer.
const CALLER: &str = "uses";

/// A command that compiles.
struct Tool {
    command: String,
    first: &'static [&'static str],
    arch: Arch,
    compiler: Compiler,
}

/// The major version that `command` has; `None` where it is not there.
fn version(command: &str) -> Option<u16> {
    let output = Command::new(command).arg("-dumpversion").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().split('.').next()?.parse().ok())?
}

/// clang 16 or newer, the first that knows kCFI.
fn clang() -> Option<(String, Compiler)> {
    let names = (16..=30).rev().map(|version| format!("clang-{version}"));
    names.chain(["clang".to_owned()]).find_map(|name| {
        let major = version(&name).filter(|&major| major >= 16)?;
        Some((name, Compiler::Llvm(major)))
    })
}

/// Compiles with `flags`; what came of it.
fn compile(tool: &Tool, flags: &[&str]) -> Vec<u8> {
    let name = format!("{}{}", tool.command, flags.concat()).replace(['/', ' '], "_");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layouts");
    fs::create_dir_all(&folder).expect("the target folder is writable");
    let source: PathBuf = folder.join(format!("{name}.c"));
    fs::write(&source, SOURCE).expect("the target folder is writable");
    let object = source.with_extension("o");
    let output = Command::new(&tool.command)
        .args(tool.first)
        .args(flags)
        .args(["-w", "-c", "-o"])
        .args([&object, &source])
        .output()
        .expect("the compiler was found before");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {flags:?}: {errors}", tool.command);
    let bytes = fs::read(&object).expect("the compiler made it");
    for file in [&source, &object] {
        let _ = fs::remove_file(file);
    }
    bytes
}

/// What is in an object that was compiled.
struct Compiled<'a> {
    file: ElfFile<'a, FileHeader64<Endianness>>,
    text: &'a [u8],
}

impl<'a> Compiled<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let file = ElfFile::parse(bytes).expect("an object");
        let text = file.section_by_name(".text").and_then(|text| text.data().ok());
        Self { file, text: text.expect("there is code") }
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let found = self.file.symbols().find(|symbol| symbol.name() == Ok(name));
        found.map(|symbol| symbol.address())
    }

    fn size(&self, name: &str) -> u64 {
        self.file.symbols().find(|symbol| symbol.name() == Ok(name)).expect(name).size()
    }

    /// The addresses in the sections called `name`, which the linker would fill in.
    fn records(&self, name: &str) -> Vec<u64> {
        let table = self.file.symbol_table().expect("an object has symbols");
        let sections = self.file.sections().filter(|section| section.name() == Ok(name));
        let mut all: Vec<u64> = sections
            .flat_map(|section| section.relocations())
            .map(|(_, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    panic!("{name}: a record that is no address");
                };
                let symbol = table.symbol_by_index(index).expect("a symbol of the table");
                symbol.address().wrapping_add_signed(relocation.addend())
            })
            .collect();
        all.sort_unstable();
        all
    }

    /// The bytes before `entry` and from it on.
    fn around(&self, entry: u64) -> (&'a [u8], &'a [u8]) {
        self.text.split_at(entry as usize)
    }

    /// By how much a caller's pointer to a function differs from where it reads the hash.
    fn hash_as_called(&self, arch: Arch) -> i64 {
        let entry = self.symbol(CALLER).expect("it is there");
        let len = self.size(CALLER) as usize;
        let code = &self.around(entry).1[..len];
        let found: Vec<i64> = match arch {
            Arch::X86_64 => Decoder::with_ip(64, code, entry, DecoderOptions::NONE)
                .into_iter()
                .filter(|instruction| instruction.code() == Code::Add_r32_rm32)
                .map(|instruction| instruction.memory_displacement64() as i64)
                .filter(|&displacement| displacement < 0)
                .collect(),
            // `ldur w, [x, #imm9]` (Arm ARM, LDUR, 32-bit).
            _ => code
                .chunks_exact(4)
                .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
                .filter(|word| word & 0xffe0_0c00 == 0xb840_0000)
                .map(|word| i64::from((word << 11) as i32 >> 23))
                .filter(|&displacement| displacement < 0)
                .collect(),
        };
        assert_eq!(found.len(), 1, "one call by a pointer: {found:?}");
        found[0]
    }
}

/// What `options` make of the function called `name` in `SOURCE`.
fn expected(options: &Options, name: &str) -> Config {
    let function = Function { called_directly: name == "direct", leaf: name == "leaf" };
    options.config(function).expect("the options go together")
}

/// Compiles with `flags`, and compares everything.
fn check(tool: &Tool, flags: &[&str], alignment: Option<u64>) {
    let told = format!("{} {flags:?}", tool.command);
    let options = Options::parse(tool.arch, tool.compiler, flags.iter().copied()).expect(&told);
    let bytes = compile(tool, flags);
    let compiled = Compiled::new(&bytes);
    let mut patchable = Vec::new();
    let mut mcount = Vec::new();
    for name in FUNCTIONS {
        let config = expected(&options, name);
        let entry = compiled.symbol(name).expect(name);
        let (before, at) = compiled.around(entry);
        let around = |recorded| Around { entry: Entry::new(entry), before, at, recorded };
        let begin = u64::from(config.before_entry());
        let shown = &before[before.len().saturating_sub(140)..];
        assert!(
            config.stands(&around(false)),
            "{told}: {name} is {shown:02x?} | {:02x?}, and not {config:?}",
            &at[..16.min(at.len())]
        );
        let site = u64::from(config.landing_pad().size());
        if options.nops > 0 {
            let padding = u64::from(config.padding());
            patchable.push(if padding > 0 { entry - padding } else { entry + site });
        }
        if options.fentry {
            mcount.push(entry + site);
        }
        if let Some(hash_begin) = compiled.symbol(&format!("__cfi_{name}")) {
            assert_eq!(config.kcfi(), Kcfi::Hash, "{told}: {name}");
            assert_eq!(entry - hash_begin, begin, "{told}: {name}");
        } else if tool.arch == Arch::X86_64 {
            assert_ne!(config.kcfi(), Kcfi::Hash, "{told}: {name}");
        }
        if let Some(alignment) = alignment {
            assert_eq!(entry % alignment, begin % alignment, "{told}: {name}");
        }
        let nop = at.get(site as usize..).and_then(|at| at.first_chunk()).copied();
        for recorded in [false, config.site() > 0] {
            let around = around(recorded);
            let found = detect(tool.arch, &around);
            let expected = named(&config, &around, nop.unwrap_or_default());
            assert_eq!(found, expected, "{told}: {name}");
        }
        match config.layout() {
            Ok(layout) => {
                assert_eq!(layout.site(Entry::new(entry)).get(), entry + site, "{told}: {name}");
                if let Some(slot) = layout.slot(Entry::new(entry)) {
                    let slot = slot.get() as usize;
                    let kind = layout.slot_kind().unwrap();
                    let bytes = &compiled.text[slot..slot + usize::from(kind.size())];
                    let nops: &[u8] = match tool.arch {
                        Arch::X86_64 => &[0x90; 5],
                        _ => &[0x1f, 0x20, 0x03, 0xd5],
                    };
                    assert_eq!(bytes, nops, "{told}: {name}");
                }
            }
            Err(error) => assert_eq!(config.site(), 0, "{told}: {name}: {error}"),
        }
    }
    patchable.sort_unstable();
    mcount.sort_unstable();
    assert_eq!(compiled.records("__patchable_function_entries"), patchable, "{told}");
    assert_eq!(compiled.records("__mcount_loc"), mcount, "{told}");
    if options.kcfi {
        let hash = expected(&options, CALLER).hash().map(i64::from);
        assert_eq!(hash, Some(compiled.hash_as_called(tool.arch)), "{told}");
    }
}

/// Every combination of one element of each of `choices`.
fn every_combination<'a>(choices: &[&[&'a str]], mut each: impl FnMut(&[&'a str])) {
    let all: usize = choices.iter().map(|choice| choice.len()).product();
    for mut number in 0..all {
        let mut flags = Vec::new();
        for choice in choices {
            flags.push(choice[number % choice.len()]);
            number /= choice.len();
        }
        flags.retain(|flag| !flag.is_empty());
        each(&flags);
    }
}

/// Checks every combination of `choices`; how many there were.
fn check_all(tool: &Tool, choices: &[&[&str]]) -> usize {
    let mut combinations = 0;
    every_combination(choices, |flags| {
        let given = flags.iter().find_map(|flag| flag.strip_prefix("-falign-functions="));
        let alignment = given.map(|number| number.parse().unwrap());
        check(tool, flags, alignment);
        combinations += 1;
    });
    combinations
}

const ALIGNMENTS: &[&str] = &["", "-falign-functions=8", "-falign-functions=32"];

const X86_64_NOPS: &[&str] = &[
    "",
    "-fpatchable-function-entry=5",
    "-fpatchable-function-entry=16,16",
    "-fpatchable-function-entry=21,16",
    "-fpatchable-function-entry=16,11",
    "-fpatchable-function-entry=37,32",
    "-fpatchable-function-entry=27,27",
];

const CF_PROTECTION: &[&str] = &["-fcf-protection=none", "-fcf-protection=branch"];

const AARCH64_NOPS: &[&str] = &[
    "",
    "-fpatchable-function-entry=1",
    "-fpatchable-function-entry=2,2",
    "-fpatchable-function-entry=2",
    "-fpatchable-function-entry=3",
    "-fpatchable-function-entry=4",
    "-fpatchable-function-entry=3,1",
    "-fpatchable-function-entry=4,2",
    "-fpatchable-function-entry=6,4",
];

const BRANCH_PROTECTION: &[&str] = &[
    "-mbranch-protection=none",
    "-mbranch-protection=bti",
    "-mbranch-protection=pac-ret",
    "-mbranch-protection=standard",
];

#[test]
fn gcc_for_x86_64() {
    let Some(_) = version("gcc") else {
        return skipped("what gcc makes of an entry", "gcc is not on PATH; install gcc");
    };
    let tool = Tool {
        command: "gcc".to_owned(),
        first: &["-fno-pie"],
        arch: Arch::X86_64,
        compiler: Compiler::Gcc,
    };
    let combinations = check_all(&tool, &[&["-O2"], X86_64_NOPS, CF_PROTECTION, ALIGNMENTS])
        + check_all(&tool, &[&["-Os"], X86_64_NOPS, CF_PROTECTION])
        + check_all(
            &tool,
            &[
                &["-O2"],
                &["-pg"],
                &["-mfentry"],
                &["-mnop-mcount"],
                &["-mrecord-mcount"],
                &["", "-fpatchable-function-entry=16,16"],
                CF_PROTECTION,
            ],
        );
    assert_eq!(combinations, 60);
}

#[test]
fn clang_for_x86_64() {
    let Some((command, compiler)) = clang() else {
        return skipped(
            "what clang makes of an entry",
            "clang 16 or newer is not on PATH; install clang-16",
        );
    };
    let tool = Tool { command, first: &[], arch: Arch::X86_64, compiler };
    let kcfi: &[&str] = &["", "-fsanitize=kcfi"];
    let combinations = check_all(&tool, &[&["-O2"], X86_64_NOPS, CF_PROTECTION, kcfi, ALIGNMENTS])
        + check_all(&tool, &[&["-O0", "-Os"], X86_64_NOPS, CF_PROTECTION, kcfi])
        + check_all(
            &tool,
            &[&["-Os"], &["-falign-functions=64"], X86_64_NOPS, CF_PROTECTION, kcfi],
        );
    assert_eq!(combinations, 168);
}

#[test]
fn gcc_for_arm64() {
    let command = "aarch64-linux-gnu-gcc";
    let Some(_) = version(command) else {
        return skipped(
            "what gcc makes of an arm64 entry",
            "aarch64-linux-gnu-gcc is not on PATH; install gcc-aarch64-linux-gnu",
        );
    };
    let tool = Tool {
        command: command.to_owned(),
        first: &[],
        arch: Arch::Aarch64,
        compiler: Compiler::Gcc,
    };
    let alignments: &[&str] = &["", "-falign-functions=8"];
    let combinations = check_all(&tool, &[&["-O2"], AARCH64_NOPS, BRANCH_PROTECTION, alignments]);
    assert_eq!(combinations, 72);
}

#[test]
fn clang_for_arm64() {
    let Some((command, compiler)) = clang() else {
        return skipped(
            "what clang makes of an arm64 entry",
            "clang 16 or newer is not on PATH; install clang-16",
        );
    };
    let tool =
        Tool { command, first: &["--target=aarch64-linux-gnu"], arch: Arch::Aarch64, compiler };
    let kcfi: &[&str] = &["", "-fsanitize=kcfi"];
    let combinations = check_all(&tool, &[&["-O2"], AARCH64_NOPS, BRANCH_PROTECTION, kcfi]);
    assert_eq!(combinations, 72);
}
