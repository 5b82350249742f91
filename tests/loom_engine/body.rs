//! What an image does, as an independent decoder reads it from the bytes that were emitted.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

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

/// The steps of the image with these bytes, which will run at `address`.
pub fn steps(code: &[u8], address: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let (mut column, mut doubled) = (0, 1);
    for it in &mut Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        let loads = (it.mnemonic(), it.op1_kind()) == (Mnemonic::Mov, OpKind::Memory);
        match it.mnemonic() {
            Mnemonic::Ret => return steps,
            Mnemonic::Call => steps.push(Step::Call { program: it.near_branch_target() }),
            // `rax` is the index from here on, or twice that.
            Mnemonic::Mov if it.op0_register().full_register() == Register::RAX => doubled = 1,
            Mnemonic::Add if it.op1_register() == Register::RAX => doubled *= 2,
            Mnemonic::Mov if it.op1_kind() == OpKind::Immediate64 => column = it.immediate64(),
            _ => {}
        }
        match it.op0_register() {
            Register::EAX if loads && it.memory_base() != Register::RBP => {
                let before_return = it.memory_displacement64().wrapping_neg();
                steps.push(Step::Index { before_return });
            }
            Register::RSI if loads && it.memory_index() == Register::RAX => {
                let stride = doubled * u64::from(it.memory_index_scale());
                steps.push(Step::Cookie { column, stride });
            }
            _ => {}
        }
    }
    panic!("an image that does not return");
}
