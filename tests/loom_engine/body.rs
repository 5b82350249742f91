//! What emitted code does, as an independent decoder reads it from the bytes.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// What a core does in an image that anybody else could notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Loads the index, which stands this far before the return address.
    Index { before_return: u64 },
    /// Loads a program's cookie, `stride` bytes further for each index.
    Cookie { column: u64, stride: u64 },
    /// Calls a program.
    Call { program: u64 },
}

/// An exit thunk: which function it is for, and what it calls and jumps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thunk {
    pub index: u64,
    pub enter: u64,
    pub origin: u64,
    pub exit: u64,
}

/// The instructions from `from` on of the code that stands at `address`.
fn decode(code: &[u8], address: u64, from: u64) -> impl Iterator<Item = Instruction> {
    let rest = &code[(from - address) as usize..];
    let mut decoder = Decoder::with_ip(64, rest, from, DecoderOptions::NONE);
    core::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

/// The steps from `from` to the return, where every branch to what seldom runs is not taken.
pub fn steps(code: &[u8], address: u64, from: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let (mut column, mut times) = (0, 1);
    for it in decode(code, address, from) {
        let loads = (it.mnemonic(), it.op1_kind()) == (Mnemonic::Mov, OpKind::Memory);
        match (it.mnemonic(), it.op0_register(), it.memory_base()) {
            (Mnemonic::Ret, ..) => return steps,
            (Mnemonic::Call, ..) => steps.push(Step::Call { program: it.near_branch_target() }),
            (Mnemonic::Mov, Register::R11, _) if it.op1_kind() == OpKind::Immediate64 => {
                column = it.immediate64();
            }
            (_, Register::EAX, Register::R11) if loads => {
                let before_return = it.memory_displacement64().wrapping_neg();
                steps.push(Step::Index { before_return });
                times = 1;
            }
            // `rax` is the index from here on.
            (Mnemonic::Mov, Register::EAX | Register::RAX, _) => times = 1,
            (Mnemonic::Add, Register::RAX, _) if it.op1_register() == Register::RAX => times *= 2,
            (_, Register::RSI, Register::R11) if loads => {
                assert_eq!(it.memory_index(), Register::RAX);
                let stride = times * u64::from(it.memory_index_scale());
                steps.push(Step::Cookie { column, stride });
            }
            _ => {}
        }
    }
    panic!("a body that does not return");
}

/// The index that the entry thunk at `address` has for its function.
pub fn entry_thunk(code: &[u8], address: u64) -> u64 {
    let first = decode(code, address, address).next().expect("a thunk has instructions");
    assert_eq!((first.mnemonic(), first.op0_register()), (Mnemonic::Mov, Register::R11D));
    first.immediate32().into()
}

/// The exit thunk at `address`.
pub fn exit_thunk(code: &[u8], address: u64) -> Thunk {
    let all: Vec<_> = decode(code, address, address).collect();
    let target = |mnemonic, which| {
        let mut branches = all.iter().filter(|it| it.mnemonic() == mnemonic);
        branches.nth(which).expect("a thunk has two calls and two jumps").near_branch_target()
    };
    Thunk {
        index: entry_thunk(code, address),
        enter: target(Mnemonic::Call, 0),
        origin: target(Mnemonic::Call, 1),
        exit: target(Mnemonic::Jmp, 0),
    }
}
