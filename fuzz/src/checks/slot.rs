//! The slot codec against a decoder: any five bytes, any index.

use fentry::encode::{CodeBuffer, x86_64::NOP1X5};
use fentry::layout::SlotKind;
use fentry::metadata::SlotState;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

use super::input::Input;

const KIND: SlotKind = SlotKind::MovEax;

fn decode(bytes: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).into_iter().collect()
}

/// What a slot says according to the decoder.
fn by_decoder(bytes: [u8; 5]) -> SlotState {
    match decode(&bytes)[..] {
        [mov]
            if mov.code() == Code::Mov_r32_imm32
                && mov.op0_register() == Register::EAX
                && mov.len() == 5 =>
        {
            SlotState::Index(mov.immediate32())
        }
        [a, b, c, d, e] if [a, b, c, d, e].iter().all(|nop| nop.code() == Code::Nopd) => {
            SlotState::Vacant
        }
        _ => SlotState::Foreign,
    }
}

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (bytes, index) = (input.bytes5(), input.u32());

    let state = SlotState::read(KIND, bytes);
    assert_eq!(state, by_decoder(bytes), "{bytes:02x?}");
    match state {
        SlotState::Index(index) => assert_eq!(SlotState::bytes(KIND, index), bytes),
        SlotState::Vacant => assert_eq!(bytes, NOP1X5),
        _ => {}
    }

    let written = SlotState::bytes(KIND, index);
    assert_eq!(by_decoder(written), SlotState::Index(index));
    assert_eq!(SlotState::read(KIND, written), SlotState::Index(index));
    assert_eq!(usize::from(KIND.size()), written.len());
    let place = usize::from(KIND.index_offset());
    assert_eq!(written.get(place..place + 4), Some(&index.to_le_bytes()[..]));

    // The encoder has another description of the same instruction.
    let mut encoded = [0; 5];
    let mut code = CodeBuffer::new(&mut encoded, 0);
    fentry::encode::x86_64::mov_imm32(&mut code, fentry::encode::x86_64::Reg::Rax, index)
        .expect("five bytes");
    assert_eq!(encoded, written);
}
