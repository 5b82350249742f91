//! Programs of emitted code for `qemu-aarch64`, as ELF files that consist of nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fentry::encode::CodeBuffer;
use fentry::encode::aarch64::{Reg, mov_imm64};

use crate::clang::skipped;

/// Where the code is; the first instruction is the program's first.
pub const CODE: u64 = 0x40_1000;
/// Bytes of it.
pub const SIZE: usize = 0x4000;
/// A page of zeroes that can be written.
pub const DATA: u64 = CODE + SIZE as u64;

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with the lowest byte of this.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// The emulator; says that `test` is skipped where there is none.
pub fn emulator(test: &str) -> Option<&'static str> {
    let runs = |name: &&str| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let found = ["qemu-aarch64", "qemu-aarch64-static"].into_iter().find(runs);
    if found.is_none() {
        skipped(test, "no qemu-aarch64 is on PATH; install qemu-user");
    }
    found
}

/// `svc #0` behind the number of a system call.
pub fn system_call(code: &mut CodeBuffer<'_>, number: u64) {
    mov_imm64(code, Reg::X8, number).unwrap();
    code.bytes(&0xd400_0001_u32.to_le_bytes()).unwrap();
}

/// Ends the program with what is in `x0`.
pub fn exit(code: &mut CodeBuffer<'_>) {
    system_call(code, 93);
}

/// Makes the code a page on which branches are tracked: `mprotect(CODE, SIZE, READ | EXEC |
/// BTI)`. Changes `x0` to `x2` and `x8`.
pub fn track_branches(code: &mut CodeBuffer<'_>) {
    for (register, value) in [(Reg::X0, CODE), (Reg::X1, SIZE as u64), (Reg::X2, 0x10 | 0x4 | 0x1)]
    {
        mov_imm64(code, register, value).unwrap();
    }
    system_call(code, 226);
}

/// An ELF file: header, one segment of code and one of data.
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const OFFSET: u64 = 0x1000;
    let mut file = Vec::new();
    // e_ident: 64-bit, little-endian, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let halves = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let words = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let doubles = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    // ET_EXEC, EM_AARCH64, version, entry, program headers behind this one, no sections.
    halves(&mut file, &[2, 183]);
    words(&mut file, &[1]);
    doubles(&mut file, &[CODE, 64, 0]);
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 2, 64, 0, 0]);
    // PT_LOAD, readable and executable; PT_LOAD, readable and writable, of zeroes.
    words(&mut file, &[1, 5]);
    doubles(&mut file, &[OFFSET, CODE, CODE, SIZE as u64, SIZE as u64, 0x1000]);
    words(&mut file, &[1, 6]);
    doubles(&mut file, &[0, DATA, DATA, 0, 0x1000, 0x1000]);
    assert_eq!(file.len() as u64, HEADERS);
    file.resize(OFFSET as usize, 0);
    file.extend(code);
    file.resize(OFFSET as usize + SIZE, 0);
    file
}

/// Writes the first `len` bytes of the data to standard output.
pub fn write_data(code: &mut CodeBuffer<'_>, len: u64) {
    for (register, value) in [(Reg::X0, 1), (Reg::X1, DATA), (Reg::X2, len)] {
        mov_imm64(code, register, value).unwrap();
    }
    system_call(code, 64);
}

/// Runs the program that `emit` emits at [`CODE`].
pub fn run(emulator: &str, name: &str, emit: impl FnOnce(&mut CodeBuffer<'_>)) -> End {
    run_and_read(emulator, name, emit).0
}

/// The same, with what the program writes.
pub fn run_and_read(
    emulator: &str,
    name: &str,
    emit: impl FnOnce(&mut CodeBuffer<'_>),
) -> (End, Vec<u8>) {
    let mut bytes = [0; SIZE];
    let mut code = CodeBuffer::new(&mut bytes, CODE);
    emit(&mut code);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("aarch64-{name}-{}", std::process::id()));
    fs::write(&path, elf(code.written())).expect("the target folder is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it was just written");
    let output = Command::new(emulator)
        .args(["-cpu", "max"])
        .arg(&path)
        // No core file of a program that is meant to trap.
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("the emulator ran a moment ago");
    let _ = fs::remove_file(path);
    let end = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => End::Exit(code),
        (_, Some(signal)) => End::Signal(signal),
        _ => panic!("{:?}", output.status),
    };
    (end, output.stdout)
}
