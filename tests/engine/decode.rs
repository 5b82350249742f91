//! What a call of a function would run, read from nothing but bytes: from the patch site to
//! the image to each program and its cookie.

use std::collections::BTreeMap;

use fentry::attach::FunctionSpec;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::fake::World;

/// A program that would run, and its second and third arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub target: u64,
    pub cookie: u64,
    pub data: Option<u64>,
}

/// The instruction at `address`.
fn decode(world: &World, address: u64) -> Instruction {
    // The longest instruction there is, or as much as is mapped.
    let bytes = (1..=15).rev().find_map(|len| world.bytes(address, len).ok());
    let bytes = bytes.unwrap_or_else(|| panic!("nothing to execute at {address:#x}"));
    let instruction = Decoder::with_ip(64, &bytes, address, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{bytes:02x?} at {address:#x}");
    instruction
}

/// The programs that a call of `function` would run, in order. Panics where a core would get
/// lost.
pub fn runs(world: &World, function: &FunctionSpec, index: u32) -> Vec<Run> {
    let site = function.layout.site(function.entry).get();
    let at_site = decode(world, site);
    let target = match at_site.mnemonic() {
        Mnemonic::Nop => {
            // One nop or several: whatever they are, they end where the function goes on.
            let mut next = at_site.next_ip();
            while next < site + 5 {
                let nop = decode(world, next);
                assert_eq!(nop.mnemonic(), Mnemonic::Nop, "at {next:#x}");
                next = nop.next_ip();
            }
            assert_eq!(next, site + 5);
            return Vec::new();
        }
        Mnemonic::Call => at_site.near_branch_target(),
        _ => panic!("neither a nop nor a call at {site:#x}: {at_site:?}"),
    };
    runs_in(world, function, index, target)
}

/// The programs that a core would run which was led from the function's site to `target`.
pub fn runs_in(world: &World, function: &FunctionSpec, index: u32, target: u64) -> Vec<Run> {
    let site = function.layout.site(function.entry).get();
    let mut core = Core {
        world,
        registers: BTreeMap::new(),
        frame: BTreeMap::from([(8, site + 5)]),
        index: None,
        runs: Vec::new(),
    };
    core.execute(target);
    if !core.runs.is_empty() {
        assert_eq!(core.index, Some(index), "the index that the image found");
    }
    core.runs
}

/// A core that knows as much of its registers as an image tells it.
struct Core<'a> {
    world: &'a World,
    registers: BTreeMap<Register, u64>,
    /// Words at distances from `rbp`; the return address is at 8.
    frame: BTreeMap<i64, u64>,
    index: Option<u32>,
    runs: Vec<Run>,
}

impl Core<'_> {
    /// Executes a thunk and an image from `address` to the return.
    fn execute(&mut self, address: u64) {
        let mut address = address;
        loop {
            let it = decode(self.world, address);
            address = it.next_ip();
            let to = it.op0_register().full_register();
            match (it.mnemonic(), it.op0_kind(), it.op1_kind()) {
                (Mnemonic::Ret, ..) => return,
                (Mnemonic::Jmp, OpKind::NearBranch64, _) => address = it.near_branch_target(),
                (Mnemonic::Call, OpKind::NearBranch64, _) => self.call(it.near_branch_target()),
                (Mnemonic::Call, OpKind::Register, _) => self.call(self.registers[&to]),
                (Mnemonic::Mov, OpKind::Register, OpKind::Register) => {
                    let from = self.registers.get(&it.op1_register().full_register()).copied();
                    self.set(to, from);
                }
                (Mnemonic::Mov, OpKind::Register, OpKind::Memory) => {
                    let value = self.load(&it);
                    self.set(to, value);
                }
                (Mnemonic::Mov, OpKind::Register, _) => {
                    // A thunk's only immediate of 32 bits, before all of an image's.
                    if it.op0_register() == Register::R11D && self.registers.is_empty() {
                        self.index = Some(it.immediate32());
                    }
                    self.set(to, Some(it.immediate(1)));
                }
                // Below the stack pointer: the last call's return address, overwritten.
                (Mnemonic::Mov, OpKind::Memory, _) if it.memory_base() == Register::RSP => {
                    assert_eq!(it.memory_displacement64().cast_signed(), -8);
                    assert_eq!(it.op1_register(), Register::RSP);
                }
                // What the context says of itself.
                (Mnemonic::Mov, OpKind::Memory, OpKind::Immediate32) => {}
                (Mnemonic::Mov, OpKind::Memory, OpKind::Register) => {
                    assert_eq!(it.memory_base(), Register::RBP);
                    if let Some(&value) = self.registers.get(&it.op1_register()) {
                        self.frame.insert(it.memory_displacement64().cast_signed(), value);
                    }
                }
                (Mnemonic::Lea, ..) => {
                    let address = self.address(&it);
                    self.set(to, address);
                }
                (Mnemonic::Add, OpKind::Register, OpKind::Register) => {
                    let sum = self.registers[&to] + self.registers[&it.op1_register()];
                    self.set(to, Some(sum));
                }
                (Mnemonic::Pop, ..) => self.set(to, None),
                (
                    Mnemonic::Nop
                    | Mnemonic::Lfence
                    | Mnemonic::Sar
                    | Mnemonic::Push
                    | Mnemonic::Add
                    | Mnemonic::Sub
                    | Mnemonic::And
                    | Mnemonic::Movups
                    | Mnemonic::Vmovups
                    | Mnemonic::Vzeroupper,
                    ..,
                ) => {}
                _ => panic!("not to be found in an image: {it:?}"),
            }
        }
    }

    fn set(&mut self, register: Register, value: Option<u64>) {
        match value {
            Some(value) => self.registers.insert(register, value),
            None => self.registers.remove(&register),
        };
    }

    /// The address of a memory operand that is not on the stack.
    fn address(&self, it: &Instruction) -> Option<u64> {
        let base = *self.registers.get(&it.memory_base())?;
        let index = match it.memory_index() {
            Register::None => 0,
            index => *self.registers.get(&index)? * u64::from(it.memory_index_scale()),
        };
        Some(base.wrapping_add(index).wrapping_add(it.memory_displacement64()))
    }

    fn load(&mut self, it: &Instruction) -> Option<u64> {
        if it.memory_base() == Register::RBP {
            return self.frame.get(&it.memory_displacement64().cast_signed()).copied();
        }
        let address = self.address(it).unwrap_or_else(|| panic!("a load from anywhere: {it:?}"));
        if it.op0_register().size() == 8 {
            return Some(self.world.table_word(address));
        }
        let bytes = self.world.bytes(address, 4).unwrap();
        let index = u32::from_le_bytes(bytes.try_into().unwrap());
        self.index = Some(index);
        Some(index.into())
    }

    fn call(&mut self, target: u64) {
        let cookie = self.registers[&Register::RSI];
        let data = self.registers.get(&Register::RDX).copied();
        self.runs.push(Run { target, cookie, data });
        self.registers.clear();
    }
}
