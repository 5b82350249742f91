//! C and C++ functions, hooked through the host.

use core::cell::Cell;
use core::ops::Range;

use fentry::host::maps::{self, Protection};
use fentry::host::{Functions, Link, Program};

use crate::support::compile::{Build, Compiler, shared_object};
use crate::support::object::{Object, symbol_at};
use crate::support::process;

thread_local! {
    /// How often this thread's calls ran the entry and the exit program.
    static RUNS: [Cell<u64>; 2] = const { [const { Cell::new(0) }; 2] };
}

/// A copy of the functions of a test.
pub struct Hooked {
    pub object: Object,
    functions: Functions,
}

impl Hooked {
    /// Compiles and loads the source, under a name of its own.
    pub fn load(name: &str, source: &str, extension: &str, functions: usize) -> Self {
        let object = load(name, source, extension);
        process().refresh().expect("the object was loaded a moment ago");
        let all = process().functions().module(&object.module()).expect("a pattern");
        assert_eq!(all.len(), functions);
        Self { object, functions: all }
    }

    pub fn driver(&self, name: &str) -> extern "C-unwind" fn(i64) -> i64 {
        // SAFETY: the drivers have this type.
        unsafe { self.object.function(name) }
    }

    pub fn address(&self, name: &str) -> usize {
        self.object.address(name)
    }

    /// The memory with what was emitted for a function that has programs: where its patch site
    /// leads.
    pub fn emitted(&self, function: &str) -> Range<usize> {
        let site = self.address(function);
        // SAFETY: five bytes of text that stays loaded.
        let [opcode, displacement @ ..] = unsafe { *(site as *const [u8; 5]) };
        assert!(matches!(opcode, 0xe8 | 0xe9), "a call or a jump: {opcode:#x}");
        let target = (site + 5).wrapping_add_signed(i32::from_le_bytes(displacement) as isize);
        let all = emitted();
        let found = all.iter().find(|range| range.contains(&(target as u64)));
        let found = found.expect("it leads to emitted code");
        found.start as usize..found.end as usize
    }

    /// What the functions that call back call.
    pub fn call_back(&self, back: extern "C-unwind" fn(i64)) {
        call_back(&self.object, back);
    }

    /// Says how many arguments all functions have on the stack, at the most.
    pub fn set_stack_arguments(&self, words: Option<u8>) {
        // SAFETY: none has more, and each is called by a function with a larger frame.
        unsafe { process().set_stack_arguments(&self.functions, words) }
            .expect("nothing is attached");
    }

    /// Attaches a program to all functions.
    pub fn attach(&self, programs: impl fentry::host::Programs) -> Link {
        // SAFETY: nobody calls these functions but this test, which bears what its programs do.
        unsafe { process().attach(&self.functions, programs) }.expect("they can be attached to")
    }

    /// Hooks all functions at entry and exit, and counts.
    pub fn hook(&self, look: fn()) -> Link {
        let count = move |position: usize| {
            RUNS.with(|runs| runs[position].set(runs[position].get() + 1));
            look();
        };
        self.attach([Program::new(move |_, _| count(0)), Program::exit(move |_, _| count(1))])
    }
}

/// Compiles and loads the source, under a name of its own.
pub fn load(name: &str, source: &str, extension: &str) -> Object {
    Object::load(&shared_object(&Build {
        name: &format!("unwind-{name}"),
        source,
        extension,
        compiler: Compiler::Gcc,
        flags: &[
            "-O2",
            "-fcf-protection=none",
            "-falign-functions=16",
            "-fno-inline",
            "-fno-ipa-cp",
            "-fno-ipa-ra",
            "-Wl,-Bsymbolic",
            "-Wl,--no-as-needed",
            "-lstdc++",
        ],
    }))
}

/// What the functions of `object` that call back call.
pub fn call_back(object: &Object, back: extern "C-unwind" fn(i64)) {
    // SAFETY: its type in the source.
    let set: extern "C" fn(extern "C-unwind" fn(i64)) = unsafe { object.function("set_callback") };
    set(back);
}

/// How often this thread's calls ran the entry program, and the exit program.
pub fn runs() -> (u64, u64) {
    RUNS.with(|runs| (runs[0].get(), runs[1].get()))
}

/// Memory with emitted code: executable, and no file's.
pub fn emitted() -> Vec<Range<u64>> {
    let mut found = Vec::new();
    maps::for_each(|mapping| {
        let executable = mapping.protection.contains(Protection::EXECUTE);
        if executable && mapping.path.starts_with(b"/dev/zero") {
            found.push(mapping.range.clone());
        }
    })
    .expect("/proc is mounted");
    found
}

/// Whether an address is in one of these ranges.
pub fn within(ranges: &[Range<u64>], address: usize) -> bool {
    ranges.iter().any(|range| range.contains(&(address as u64)))
}

/// Whether the call that returns to `address` is in the function `name`, as the dynamic linker
/// knows it.
pub fn is_in(address: usize, name: &str) -> bool {
    symbol_at(address - 1).is_some_and(|found| found == name)
}
