//! A second decoder: GNU `objdump` must see the instructions where the encoder put them.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, str};

use fentry::encode::x86_64::{
    self as x, Condition, NOP_MAX, NOP4_OSP, NOP4_UDB, NOP5_CLANG, NOP5_PREFIXED, Reg,
};
use fentry::encode::{CodeBuffer, EncodeError};

use crate::forms::{ARITHMETIC, CONSTANT, MEMORY, NEAR, ONE, PLAIN, SHORT, TWO};
use crate::guards::CMOV;
use crate::memory::every_operand;
use crate::registers::{signed_values, values};

/// Where the code is said to run.
const ADDRESS: u64 = 0x10_0000_0000;

/// Emitted code, and the address and mnemonic of every instruction in it.
struct Listing<'a> {
    code: CodeBuffer<'a>,
    instructions: Vec<(u64, String)>,
}

impl Listing<'_> {
    fn add(
        &mut self,
        mnemonic: &str,
        emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
    ) {
        self.instructions.push((self.code.here(), mnemonic.to_owned()));
        emit(&mut self.code).expect("the buffer is large and the targets are near");
    }
}

/// The mnemonic in the name of one of iced's encodings: `mov` of `Mov_r64_rm64`.
fn mnemonic(code: iced_x86::Code) -> String {
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    // The one name of an instruction of ours on which the two decoders differ.
    if code == iced_x86::Code::Mov_r64_imm64 { "movabs".to_owned() } else { name }
}

fn emit_everything(listing: &mut Listing<'_>) {
    for form in &PLAIN {
        listing.add(&mnemonic(form.code), form.emit);
    }
    for len in 1..=NOP_MAX {
        // `66 90` is an exchange of a register with itself, and objdump says so.
        listing.add(if len == 2 { "xchg" } else { "nop" }, |code| x::nop(code, len));
    }
    listing.add("nop", |code| code.bytes(&NOP5_CLANG));
    listing.add("data16", |code| code.bytes(&NOP5_PREFIXED));
    for a in Reg::ALL {
        for form in &ONE {
            listing.add(&mnemonic(form.code), |code| (form.emit)(code, a));
        }
        for b in Reg::ALL {
            for form in &TWO {
                listing.add(&mnemonic(form.code), |code| (form.emit)(code, a, b));
            }
        }
        for value in signed_values() {
            for form in &ARITHMETIC {
                let name = mnemonic(form.expected(a, value).code);
                listing.add(&name, |code| (form.emit)(code, a, value));
            }
        }
        for value in values() {
            for form in &CONSTANT {
                listing.add(&mnemonic(form.code), |code| (form.emit)(code, a, value));
            }
        }
        for target in [ADDRESS, ADDRESS + 0x7000_0000] {
            listing.add("lea", |code| x::lea_rip(code, a, target));
        }
    }
    for (condition, code) in Condition::ALL.into_iter().zip(CMOV) {
        listing.add(&mnemonic(code), |code| x::cmov(code, condition, Reg::R9, Reg::Rdx));
    }
    for reg in Reg::ALL {
        for value in [0, 0x1234_5678, u32::MAX] {
            listing.add("sub", |code| x::sub_imm32(code, reg, value));
            listing.add("cmp", |code| x::cmp_imm32(code, reg, value));
        }
    }
    for offset in [0, 8, i32::MAX, i32::MIN] {
        listing.add("sar", |code| x::sar_gs_absolute(code, offset, 5));
        let variable = ADDRESS.wrapping_add_signed(i64::from(offset) / 2);
        listing.add("sar", |code| x::sar_gs_rip(code, variable, 5));
    }
    listing.add("nop", |code| code.bytes(&NOP4_UDB));
    listing.add("nop", |code| code.bytes(&NOP4_OSP));
    for form in &NEAR {
        for target in [ADDRESS, ADDRESS + 0x7000_0000, ADDRESS - 0x7000_0000] {
            listing.add(&mnemonic(form.code), |code| (form.emit)(code, target));
        }
    }
    let here = listing.code.here();
    listing.add("jmp", |code| x::jmp_short(code, here));
    for (condition, code) in Condition::ALL.into_iter().zip(SHORT) {
        let here = listing.code.here();
        listing.add(&mnemonic(code), |code| x::jcc_short(code, condition, here));
    }
    for (number, offset) in Reg::ALL.into_iter().zip([0, -8, i32::MAX, i32::MIN].repeat(4)) {
        listing.add("mov", |code| x::mov_load64_fs(code, number, offset));
    }
    for form in &MEMORY {
        let name = mnemonic(form.code);
        let registers = form.registers().cycle();
        for (mem, number) in every_operand().zip(registers) {
            listing.add(&name, |code| (form.emit)(code, number, mem));
        }
    }
}

/// GNU objdump's version, where it is on the path.
fn gnu_objdump() -> Option<String> {
    let output = Command::new("objdump").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let first = text.lines().next()?.to_owned();
    first.starts_with("GNU objdump").then_some(first)
}

/// Address and mnemonic of a line of a disassembly: `  1000000000:\tmov    rax,rcx`.
fn instruction(line: &str) -> Option<(u64, String)> {
    let (address, text) = line.split_once(":\t")?;
    let address = u64::from_str_radix(address.trim(), 16).ok()?;
    let name = text.split_whitespace().next()?;
    Some((address, name.to_owned()))
}

#[test]
fn objdump_sees_the_same_instructions() {
    let Some(version) = gnu_objdump() else {
        // Not `println!`, which is captured when a test passes.
        let skipped = "SKIPPED objdump_sees_the_same_instructions: no GNU objdump on the path\n";
        std::io::stderr().write_all(skipped.as_bytes()).expect("standard error is open");
        return;
    };
    let mut bytes = vec![0; 8 << 20];
    let code = CodeBuffer::new(&mut bytes, ADDRESS);
    let mut listing = Listing { code, instructions: Vec::new() };
    emit_everything(&mut listing);

    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("encode_x86_64.bin");
    fs::write(&path, listing.code.written()).expect("the target directory is writable");
    let output = Command::new("objdump")
        .args(["-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel"])
        .args(["--no-show-raw-insn", "--wide", "--disassemble-zeroes"])
        .arg(format!("--adjust-vma={ADDRESS:#x}"))
        .arg(&path)
        .output()
        .expect("objdump ran a moment ago");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let text = str::from_utf8(&output.stdout).expect("objdump writes ASCII");
    let mut seen = text.lines().filter_map(instruction);
    for expected in &listing.instructions {
        assert_eq!(seen.next().as_ref(), Some(expected), "{version}");
    }
    assert_eq!(seen.next(), None, "{version}");
    println!("{version}: {} instructions", listing.instructions.len());
}
