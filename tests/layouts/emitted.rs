//! The preambles that the library emits are those that the layouts have: one is made of
//! instructions, the other of patterns.

use fentry::addr::Entry;
use fentry::emit::x86_64 as emit;
use fentry::encode::CodeBuffer;
use fentry::layout::{Arch, Around, Config, FineIbt, LandingPad, detect};

/// What is emitted when it is asked to be at 0x10000, as it stands around its entry; more nops
/// of one byte are before it.
fn emitted(preamble: emit::Preamble, check: impl FnOnce(&Around<'_>)) {
    let mut bytes = [0x90; 256];
    let (before, room) = bytes.split_at_mut(96);
    let mut code = CodeBuffer::new(room, 0x1_0000);
    let entry = preamble.emit(&mut code).expect("there is room");
    let len = code.position();
    room[len..len + 4].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
    let at = before.len() + (entry - 0x1_0000) as usize;
    let (before, at) = bytes.split_at(at);
    check(&Around { entry: Entry::new(0x1000), before, at, recorded: false });
}

#[test]
fn fineibt_of_every_generation_is_the_layout_of_that_name() {
    use emit::{Bhi, Generation};
    // Linux 6.2 to 6.14 have no check of branch history.
    let generations = [
        (Generation::Original, Bhi::None, &FineIbt::ORIGINAL),
        (Generation::Short, Bhi::None, &FineIbt::SHORT),
        (Generation::Short, Bhi::FirstArgument, &FineIbt::SHORT_BHI_1),
        (Generation::Short, Bhi::Stub(0x2_0000), &FineIbt::SHORT_BHI),
        (Generation::Udb, Bhi::None, &FineIbt::UDB),
        (Generation::Udb, Bhi::FirstArgument, &FineIbt::UDB_BHI_1),
        (Generation::Udb, Bhi::Stub(0x2_0000), &FineIbt::UDB_BHI),
    ];
    assert_eq!(generations.len(), FineIbt::ALL.len());
    for (generation, bhi, layout) in generations {
        let hash = 0x1234_5678;
        let preamble = emit::Preamble::FineIbt(emit::FineIbt { hash, generation, bhi });
        emitted(preamble, |around| {
            let found = detect(Arch::X86_64, around).expect("it has a name");
            assert_eq!(found.fineibt(), Some(layout));
            let at = around.before.len().wrapping_add_signed(layout.hash() as isize);
            assert_eq!(around.before[at..at + 4], hash.to_le_bytes(), "{}", layout.name());
        });
    }
}

#[test]
fn kcfi_is_the_layout_of_that_padding() {
    for padding in [11, 27, 59] {
        for arity in (0..8).map(emit::Arity::new).chain([None]) {
            for (landing_pad, endbr64) in [(LandingPad::None, false), (LandingPad::Endbr64, true)] {
                let hash = 0x1234_5678;
                let kcfi = emit::Kcfi { hash, arity, padding, endbr64 };
                emitted(emit::Preamble::Kcfi(kcfi), |around| {
                    let config = Config::X86_64.with_padding(padding.into()).with_kcfi(16);
                    let config = config.with_landing_pad(landing_pad);
                    assert!(config.stands(around), "{config:?}: {around:02x?}");
                    let at =
                        around.before.len().wrapping_add_signed(config.hash().unwrap() as isize);
                    assert_eq!(around.before[at..at + 4], hash.to_le_bytes(), "{config:?}");
                });
            }
        }
    }
}
