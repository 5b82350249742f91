//! The layout detector against a decoder, and all ways to a layout on any input.

use fentry::addr::Entry;
use fentry::layout::{
    Arch, Around, CallDepth, Compiler, Config, FineIbt, Function, Kernel, LandingPad, LayoutError,
    Options, detect,
};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};

use super::input::Input;

const ARCHES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

/// arm64 words (Arm ARM: NOP, BTI c, PACIASP).
const NOP: u32 = 0xd503_201f;
const BTI_C: u32 = 0xd503_245f;
const PACIASP: u32 = 0xd503_233f;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let arch = input.choose(&ARCHES);
    match input.u8() % 4 {
        0 | 1 => bytes(arch, &mut input),
        2 => config(arch, &mut input),
        _ => text(arch, &mut input),
    }
}

/// Any bytes: what is named must be there.
fn bytes(arch: Arch, input: &mut Input<'_>) {
    let recorded = input.u8() & 1 == 1;
    let entry = Entry::new(input.u64());
    let len = usize::from(input.u8());
    let around = Around { entry, before: input.bytes(len), at: input.rest(), recorded };
    let Some(config) = detect(arch, &around) else { return };
    assert_eq!(config.arch(), arch);
    assert_eq!(config.as_seen(), config);
    assert!(config.stands(&around), "{config:?}");
    assert!(around.before.len() >= config.before_entry() as usize, "{config:?}");
    // A slot is offered only in nops.
    let layout = match config.layout() {
        Ok(layout) => Some(layout),
        Err(LayoutError::SiteTooShort { .. }) if config.site() == 0 => None,
        Err(error) => panic!("{config:?}: {error}"),
    };
    if let Ok(before) = config.slot() {
        let start = around.before.len() - usize::from(before);
        let slot = &around.before[start..start + usize::from(config.slot_kind().size())];
        assert!(slot.iter().all(|&byte| byte == 0x90), "{config:?}: {slot:02x?}");
        let place = layout.and_then(|layout| layout.slot(entry));
        assert_eq!(
            place.map(|slot| entry.get().wrapping_sub(slot.get())),
            layout.map(|_| u64::from(before))
        );
    }
    match arch {
        Arch::X86_64 => x86_64(&config, &around),
        _ => aarch64(&config, &around),
    }
}

/// The instructions in `bytes`, with the place of each from the entry.
fn decode(bytes: &[u8], from: i64) -> Vec<(i64, Instruction)> {
    Decoder::with_ip(64, bytes, from as u64, DecoderOptions::NONE)
        .into_iter()
        .map(|instruction| (instruction.ip() as i64, instruction))
        .collect()
}

/// What `config` names, found by a decoder.
fn x86_64(config: &Config, around: &Around<'_>) {
    let begin = config.before_entry() as usize;
    let prefix = &around.before[around.before.len() - begin..];
    let preamble = config.fineibt().map_or(0, |_| usize::from(FineIbt::BEFORE));
    let mut hash = None;
    for (at, instruction) in decode(&prefix[..begin - preamble], -(begin as i64)) {
        match instruction.code() {
            Code::Mov_r32_imm32 => {
                assert_eq!(hash.replace((at + 1, instruction.immediate32())), None, "{config:?}");
            }
            Code::Sar_rm64_imm8 => {
                assert_eq!(instruction.segment_prefix(), Register::GS);
                assert_eq!(instruction.immediate8(), 5);
                assert_eq!(instruction.next_ip(), 0, "it runs into the entry");
                let absolute = instruction.memory_base() == Register::None;
                let expected = if absolute { CallDepth::Absolute } else { CallDepth::Relative };
                assert_eq!(config.call_depth(), Some(expected));
            }
            _ => assert_eq!(instruction.mnemonic(), Mnemonic::Nop, "{config:?}: {instruction}"),
        }
    }
    if let Some(fineibt) = config.fineibt() {
        let bytes = [&prefix[begin - preamble..], &around.at[..4]].concat();
        let all = decode(&bytes, -(preamble as i64));
        assert_eq!(all[0].1.code(), Code::Endbr64, "{config:?}");
        let (at, check) = all[1];
        assert_eq!(check.mnemonic(), Mnemonic::Sub, "{config:?}");
        let in_eax = check.op0_register() == Register::EAX;
        assert!(in_eax || check.op0_register() == Register::R10D, "{config:?}");
        hash = Some((at + check.len() as i64 - 4, check.immediate32()));
        assert!(bytes[11..] != [0; 9], "{}", fineibt.name());
    }
    assert_eq!(hash.map(|(at, _)| at), config.hash().map(i64::from), "{config:?}");
    if let Some((at, value)) = hash {
        let place = (around.before.len() as i64 + at) as usize;
        assert_eq!(around.before[place..place + 4], value.to_le_bytes());
    }
    let pad = usize::from(config.landing_pad().size());
    if config.fineibt().is_none() && pad > 0 {
        let (_, first) = decode(&around.at[..pad], 0)[0];
        assert_eq!(first.len(), pad, "{config:?}");
        match config.landing_pad() {
            LandingPad::Endbr64 => assert_eq!(first.code(), Code::Endbr64),
            _ => assert_eq!(first.mnemonic(), Mnemonic::Nop),
        }
    }
    let site = decode(&around.at[pad..pad + usize::from(config.site())], 0);
    assert!(site.iter().all(|(_, nop)| nop.mnemonic() == Mnemonic::Nop), "{config:?}");
    assert!(site.len() <= 1 || around.recorded, "{config:?}");
}

fn aarch64(config: &Config, around: &Around<'_>) {
    let mut words =
        around.at.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four")));
    if config.landing_pad() != LandingPad::None {
        assert_eq!(words.next(), Some(BTI_C));
    }
    for _ in 0..config.site() / 4 {
        assert_eq!(words.next(), Some(NOP));
    }
    let next = words.next();
    assert_ne!(next, Some(NOP), "there are more nops than are named");
    let signs = config
        .parts()
        .is_ok_and(|parts| parts.as_slice().iter().any(|part| part.what.name() == "paciasp"));
    assert_eq!(signs, next == Some(PACIASP));
    if let Some(pointer) = around.before.last_chunk::<8>().filter(|_| config.before_entry() > 0) {
        let pointer = u64::from_le_bytes(*pointer);
        assert!(pointer >> 48 == 0xffff && pointer % 8 == 0, "{pointer:#x}");
    }
    assert_eq!(config.hash(), None);
}

/// Any configuration: no panic, and a slot that is in the padding.
fn config(arch: Arch, input: &mut Input<'_>) {
    let bits = input.u8();
    let number = |input: &mut Input<'_>| match bits & 1 {
        0 => u16::from(input.u8()),
        _ => input.u16(),
    };
    let mut config = match arch {
        Arch::X86_64 => Config::X86_64,
        _ => Config::AARCH64,
    };
    config = config.with_padding(number(input)).with_site(number(input));
    if bits & 2 != 0 {
        config = config.with_kcfi(number(input));
    }
    if bits & 4 != 0 {
        config =
            config.with_fineibt(input.choose(&[0, 1, 2, 3, 4, 5, 6].map(|i| &FineIbt::ALL[i])));
    }
    if bits & 8 != 0 {
        config = config.with_call_depth(input.choose(&[CallDepth::Relative, CallDepth::Absolute]));
    }
    if bits & 16 != 0 {
        config = config.with_ops_literal();
    }
    if bits & 32 != 0 {
        config = config.with_sign_return();
    }
    if bits & 64 != 0 {
        let pads = [LandingPad::Endbr64, LandingPad::Sealed, LandingPad::BtiC];
        config = config.with_landing_pad(input.choose(&pads));
    }
    if bits & 128 != 0 {
        config = config.called_directly();
    }
    let size = number(input);
    for found in [config.room(size), config.slot()] {
        match found {
            Ok(before) => assert!(u32::from(before) <= config.before_entry(), "{config:?}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Err(error) = config.layout() {
        assert!(!error.to_string().is_empty());
    }
    let seen = config.as_seen();
    assert_eq!(seen.as_seen(), seen);
}

/// Any text, as options and as a `.config`: no panic.
fn text(arch: Arch, input: &mut Input<'_>) {
    let compiler = input.choose(&[Compiler::Gcc, Compiler::Llvm(16), Compiler::Llvm(21)]);
    let called_directly = input.u8() & 1 == 1;
    let text = String::from_utf8_lossy(input.rest());
    let function = Function { called_directly, leaf: false };
    match Options::parse(arch, compiler, text.split_whitespace()) {
        Ok(options) => match options.config(function) {
            Ok(config) => drop(config.layout()),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match Kernel::parse(&text) {
        Ok(kernel) => drop((kernel.slot(), kernel.layout())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
