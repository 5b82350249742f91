//! Compiles generated C and assembly into shared objects when a test runs.

use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A C compiler that is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// GNU C: one-byte nops in patch sites, nested functions.
    Gcc,
    /// clang: one multi-byte nop in patch sites.
    Clang,
}

impl Compiler {
    /// The command that runs it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Gcc => "gcc",
            Self::Clang => "clang",
        }
    }

    /// The first line of `--version`; `None` where the command is not there.
    fn version(self) -> Option<&'static str> {
        static GCC: OnceLock<Option<String>> = OnceLock::new();
        static CLANG: OnceLock<Option<String>> = OnceLock::new();
        let cell = match self {
            Self::Gcc => &GCC,
            Self::Clang => &CLANG,
        };
        let found = cell.get_or_init(|| {
            let output = Command::new(self.command()).arg("--version").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
        });
        found.as_deref()
    }
}

/// The compilers that are here. gcc is asked for; without clang its half of the tests is
/// skipped, loudly.
pub fn compilers() -> Vec<Compiler> {
    assert!(
        Compiler::Gcc.version().is_some(),
        "gcc is not on PATH: the tests compile C when they run; install gcc"
    );
    let mut found = vec![Compiler::Gcc];
    if Compiler::Clang.version().is_some() {
        found.push(Compiler::Clang);
    } else {
        super::skipped("everything compiled by clang", "clang is not on PATH");
    }
    found
}

/// How one shared object is to be made.
pub struct Build<'a> {
    /// Names the file, so that its functions can be selected by module. Two builds of one
    /// test must have different names.
    pub name: &'a str,
    /// C, or assembly where `extension` is `s`.
    pub source: &'a str,
    /// `c` or `s`.
    pub extension: &'a str,
    /// Who compiles it.
    pub compiler: Compiler,
    /// Options besides `-shared -fPIC`.
    pub flags: &'a [&'a str],
}

/// Makes the shared object and returns its path. An object whose source, options and
/// compiler were seen before is not compiled again.
pub fn shared_object(build: &Build<'_>) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let version = build.compiler.version().expect("the compiler was found before");
    let mut hasher = DefaultHasher::new();
    (build.source, build.extension, build.flags, version, build.compiler.command())
        .hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("objects");
    fs::create_dir_all(&folder).expect("the target folder is writable");
    let object = folder.join(format!("lib{}-{:016x}.so", build.name, hasher.finish()));
    if object.exists() {
        return object;
    }
    // Made under a name of our own, so that a run that is killed, or another that compiles the
    // same at this moment, never leaves half a file under the final name.
    let stem =
        format!("{}-{}-{}", build.name, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let source = folder.join(format!("{stem}.{}", build.extension));
    let unfinished = folder.join(format!("{stem}.so"));
    fs::write(&source, build.source).expect("the target folder is writable");
    let output = Command::new(build.compiler.command())
        .args(["-shared", "-fPIC", "-w"])
        .args(build.flags)
        .arg("-o")
        .args([&unfinished, &source])
        .output()
        .expect("the compiler was found before");
    assert!(
        output.status.success(),
        "{} {:?} could not compile {}:\n{}",
        build.compiler.command(),
        build.flags,
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    // Where another run was first, its file stays: it may have loaded that, and a file that has
    // been replaced on disk is no longer the one in memory.
    match fs::hard_link(&unfinished, &object) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            panic!("{}: {error}", object.display())
        }
        _ => {}
    }
    let _ = fs::remove_file(&unfinished);
    let _ = fs::remove_file(&source);
    object
}
