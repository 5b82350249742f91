//! Programs, position independent or not, looked at from outside: the program prints where
//! its functions are and waits.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fentry::attach::SiteNop;
use fentry::host::discover::{Loaded, Memory, Module, modules};
use fentry::layout::LandingPad;
use fentry::layout::x86_64::layout;

use super::build::*;

const MAIN: &str = r#"
#include <stdio.h>
int main(void) {
    printf("%p %p %p %p %p %p\n", (void *)shown_one, (void *)shown_two, (void *)gone,
           (void *)hidden[0], (void *)hidden[1], (void *)main);
    fflush(stdout);
    getchar();
    return 0;
}
"#;

/// A running program and the entries it printed.
struct Program {
    child: Child,
    entries: Vec<u64>,
}

impl Program {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(path);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = |word: &str| u64::from_str_radix(&word[2..], 16).unwrap();
        let entries = sorted(line.split_whitespace().map(address).collect());
        Self { child, entries }
    }

    /// Where the kernel put the program's first segment.
    fn base(&self, path: &Path) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let line = maps.lines().find(|line| line.ends_with(path.to_str().unwrap())).unwrap();
        u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap()
    }

    fn module(&self, path: &Path) -> Module {
        let file = std::fs::read(path).unwrap();
        let unbiased = Loaded::from_file(&file, 0).unwrap();
        let first = unbiased.segments.iter().find(|segment| segment.kind == 1).unwrap();
        let loaded = Loaded { bias: self.base(path) - first.address, ..unbiased };
        let memory = File::open(format!("/proc/{}/mem", self.child.id())).unwrap();
        Module::inspect(path, &file, &loaded, &OtherMemory(memory)).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

struct OtherMemory(File);

impl Memory for OtherMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.0.read_exact_at(into, address).is_ok()
    }
}

fn source() -> String {
    format!("{FUNCTIONS}{MAIN}")
}

#[test]
fn programs_are_found_where_the_kernel_put_them() {
    for compiler in compilers() {
        for pie in [["-fpie", "-pie"], ["-fno-pie", "-no-pie"]] {
            let name = format!("program-{compiler}{}", pie[1]);
            let path = compile(
                compiler,
                &name,
                ("c", &source()),
                &[&pie[..], &["-O2", "-fpatchable-function-entry=21,16", "-fcf-protection=branch"]]
                    .concat(),
            );
            let program = Program::start(&path);
            let module = program.module(&path);
            assert_eq!(entries_of(&module), program.entries, "{name}");
            assert_eq!(module.identity.bias == 0, pie[1] == "-no-pie", "{name}");
            assert!(module.rejected.is_empty(), "{name}: {:?}", module.rejected);
            let want = layout(16, LandingPad::Endbr64).unwrap();
            assert!(module.functions.iter().all(|function| function.layout == want));
        }
    }
}

/// The kernel's own way of building, which gcc has for code at fixed addresses only.
#[test]
fn mcount_records_lead_to_the_same_functions() {
    for (protection, pad) in [("branch", LandingPad::Endbr64), ("none", LandingPad::None)] {
        for padding in [0, 16] {
            let name = format!("mcount-{protection}-{padding}");
            let protect = format!("-fcf-protection={protection}");
            let entry = format!("-fpatchable-function-entry={padding},{padding}");
            let compile_only =
                ["-c", "-O2", "-fno-pie", "-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount"];
            let object = compile(
                "gcc",
                &format!("{name}.o"),
                ("c", &source()),
                &[&compile_only[..], &[&protect, &entry]].concat(),
            );
            let path = place(&name);
            let _ = std::fs::remove_file(&path);
            run("gcc", &["-no-pie", "-o", path.to_str().unwrap(), object.to_str().unwrap()]);
            let program = Program::start(&path);
            let module = program.module(&path);
            assert_eq!(entries_of(&module), program.entries, "{name}");
            for function in &module.functions {
                assert_eq!(function.layout, layout(padding, pad).unwrap(), "{name}");
                assert_eq!(function.nop, SiteNop::FiveByte, "{name}");
            }
        }
    }
}

/// The process that searches is a module too.
#[test]
fn this_program_is_the_first_module() {
    let found = modules().unwrap();
    let own = &found.modules[0];
    assert_eq!(own.identity.path, std::env::current_exe().unwrap());
    let here = this_program_is_the_first_module as fn() as usize as u64;
    assert!(own.text.iter().any(|range| range.contains(&here)));
    let libc = libc::getpid as unsafe extern "C" fn() -> i32 as usize as u64;
    let around = |module: &&Module| module.text.iter().any(|range| range.contains(&libc));
    let libc = found.modules.iter().find(around).unwrap();
    assert!(libc.name.starts_with("libc."), "{}", libc.name);
    assert!(found.modules.iter().all(|module| !module.name.contains("vdso")));
    assert!(
        found
            .skipped
            .iter()
            .all(|skipped| { !skipped.identity.path.to_string_lossy().contains("vdso") })
    );
}
