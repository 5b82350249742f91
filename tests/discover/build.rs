//! Compiling and loading what the tests look at.

use core::ffi::c_void;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

use fentry::host::discover::{Discovery, Module, modules};

/// Five functions, two of them static, and a table through which the static ones are found
/// without a symbol. `gone` never returns, so that nothing but nops follows its patch site.
pub const FUNCTIONS: &str = r#"
#define KEEP __attribute__((noinline, used))
static KEEP int hidden_one(int x) { return x * 3 + 1; }
static KEEP int hidden_two(int x) { return hidden_one(x) ^ 0x55; }
int (*const hidden[2])(int) = { hidden_one, hidden_two };
KEEP int shown_one(int x) { return hidden_one(x) + 1; }
KEEP int shown_two(int x) { return hidden_two(shown_one(x)); }
KEEP void gone(void) { __builtin_unreachable(); }
"#;

pub const SHOWN: [&str; 3] = ["shown_one", "shown_two", "gone"];

/// The compilers that are installed. A missing one is said aloud.
pub fn compilers() -> Vec<&'static str> {
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let clang = ["clang", "clang-19", "clang-16"].into_iter().find(works);
    if clang.is_none() {
        eprintln!("SKIP: clang is not installed; its layouts are not tested");
    }
    let gcc = Some("gcc").filter(works);
    assert!(gcc.is_some(), "these tests need gcc");
    gcc.into_iter().chain(clang).collect()
}

/// Runs a tool, which must succeed.
pub fn run(tool: &str, args: &[&str]) {
    let output = Command::new(tool).args(args).output().expect(tool);
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A place for a test's file.
pub fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Compiles `source` to a file called `name`; its extension says what language it is in.
pub fn compile(compiler: &str, name: &str, source: (&str, &str), args: &[&str]) -> PathBuf {
    let (extension, text) = source;
    let from = place(&format!("{name}.{extension}"));
    let to = place(name);
    std::fs::write(&from, text).unwrap();
    // A file that another run's process still has mapped must not be written to.
    let _ = std::fs::remove_file(&to);
    let paths = ["-o", to.to_str().unwrap(), from.to_str().unwrap()];
    run(compiler, &[args, &paths].concat());
    to
}

/// A shared object that stays loaded until it is dropped.
pub struct Library {
    pub path: PathBuf,
    handle: *mut c_void,
}

impl Library {
    pub fn open(path: &Path) -> Self {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: The object was made by these tests and has no constructors.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "cannot load {path:?}");
        Self { path: path.into(), handle }
    }

    /// Compiles `FUNCTIONS` as a shared object and loads it.
    pub fn of_functions(compiler: &str, name: &str, args: &[&str]) -> Self {
        Self::open(&compile(
            compiler,
            name,
            ("c", FUNCTIONS),
            &[&["-shared", "-fPIC"], args].concat(),
        ))
    }

    /// Where the loader says that `name` is.
    pub fn symbol(&self, name: &str) -> u64 {
        let symbol = CString::new(name).unwrap();
        // SAFETY: The handle is a loaded object's.
        let address = unsafe { libc::dlsym(self.handle, symbol.as_ptr()) };
        assert!(!address.is_null(), "{name} is not in {:?}", self.path);
        address as u64
    }

    /// The entries of all five functions of `FUNCTIONS`.
    pub fn entries(&self) -> Vec<u64> {
        // SAFETY: `hidden` is a table of two pointers.
        let hidden = unsafe { *(self.symbol("hidden") as *const [u64; 2]) };
        SHOWN.iter().map(|name| self.symbol(name)).chain(hidden).collect()
    }

    /// What a search finds in it.
    pub fn module(&self) -> Module {
        let Discovery { modules, skipped } = modules().unwrap();
        let skipped = skipped.iter().find(|skipped| skipped.identity.path == self.path);
        assert!(skipped.is_none(), "{skipped:?}");
        let own = |module: &Module| module.identity.path == self.path;
        modules.into_iter().find(own).expect("it is loaded")
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: Nothing of the object is used any more.
        unsafe { libc::dlclose(self.handle) };
    }
}

/// The entries of what was found, sorted as they are.
pub fn entries_of(module: &Module) -> Vec<u64> {
    module.functions.iter().map(|function| function.entry.get()).collect()
}

pub fn sorted(mut addresses: Vec<u64>) -> Vec<u64> {
    addresses.sort_unstable();
    addresses
}
