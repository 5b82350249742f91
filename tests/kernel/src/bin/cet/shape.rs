//! Functions in every known configuration, as bytes.

use core::sync::atomic::AtomicU64;

use fentry::addr::Entry;
use fentry::emit::x86_64::{Arity, Bhi, Check, FineIbt, Generation, Preamble, bhi_stub};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{
    NOP4_OSP, NOP5, Reg, add_reg, endbr64, int3, mov_imm32, mov_reg_reg, nop, ret, sar_gs_absolute,
    sar_gs_rip,
};
use fentry::layout::{self, CallDepth, Config, LandingPad, Part, What};
use fentry::metadata::SlotState;

use crate::lab::{Failure, Function, Lab, patch};
use crate::preambles::HASH;

/// What calls are counted in, where they are: relative to `gs`, whose base is 0 here.
pub static CALLS: AtomicU64 = AtomicU64::new(0);
/// By how many bits a call shifts it.
pub const SHIFT: u8 = 5;

/// The preambles of FineIBT that are known, and how each is emitted; the stub's address is given
/// later.
const FINEIBT: [(layout::FineIbt, Generation, Bhi); 7] = [
    (layout::FineIbt::ORIGINAL, Generation::Original, Bhi::None),
    (layout::FineIbt::SHORT, Generation::Short, Bhi::None),
    (layout::FineIbt::SHORT_BHI_1, Generation::Short, Bhi::FirstArgument),
    (layout::FineIbt::SHORT_BHI, Generation::Short, Bhi::Stub(0)),
    (layout::FineIbt::UDB, Generation::Udb, Bhi::None),
    (layout::FineIbt::UDB_BHI_1, Generation::Udb, Bhi::FirstArgument),
    (layout::FineIbt::UDB_BHI, Generation::Udb, Bhi::Stub(0)),
];

/// How a preamble of FineIBT that is known is emitted.
fn fineibt(known: &layout::FineIbt) -> Option<FineIbt> {
    let (_, generation, bhi) = FINEIBT.into_iter().find(|(it, ..)| it == known)?;
    Some(FineIbt { hash: HASH, generation, bhi })
}

/// What a caller through a pointer does before it calls a function of `config`; `None` where no
/// such call may arrive.
pub fn check(config: &Config) -> Option<Check> {
    if let Some(known) = config.fineibt() {
        let FineIbt { hash, generation, .. } = fineibt(known)?;
        return Some(Check::FineIbt { hash, generation, paranoid: false });
    }
    let LandingPad::Endbr64 = config.landing_pad() else { return None };
    // The hash is four bytes, behind which the padding begins.
    let padding = config.hash().map(|hash| u8::try_from(-hash - 4));
    match padding {
        Some(Ok(padding)) => Some(Check::Kcfi { hash: HASH, padding }),
        Some(Err(_)) => None,
        None => Some(Check::None),
    }
}

/// Emits a function of `config`, with `index` in its slot.
pub fn function(lab: &mut Lab, config: &Config, index: u32) -> Result<Function, Failure> {
    let layout = config.layout()?;
    let parts = config.parts()?;
    let mut preamble = config.fineibt().and_then(fineibt);
    let mut traps = None;
    if let Some(FineIbt { generation, bhi: Bhi::Stub(stub), .. }) = &mut preamble {
        // The function has two arguments.
        let arity = Arity::new(2).unwrap_or(Arity::STACK);
        let range = lab.emit(0, |code| {
            let start = code.here();
            bhi_stub(code, *generation, arity)?;
            int3(code)?;
            Ok(start..code.here())
        })?;
        *stub = range.start;
        traps = Some(range);
    }
    let before = config.before_entry();
    let function = lab.emit(before as u16, |code| {
        let start = code.here();
        let entry = start.wrapping_add(u64::from(before));
        for part in parts.as_slice() {
            let at = entry.wrapping_add_signed(part.at.into());
            while code.here() < at {
                nop(code, 1)?;
            }
            emit(code, part, preamble)?;
        }
        while code.here() < entry {
            nop(code, 1)?;
        }
        mov_reg_reg(code, Reg::Rax, Reg::Rdi)?;
        add_reg(code, Reg::Rax, Reg::Rsi)?;
        ret(code)?;
        let range = start..code.here();
        let traps = traps.unwrap_or(start..entry + 4);
        Ok(Function { range, traps, layout, entry, check: check(config) })
    })?;
    if let Some((kind, slot)) = layout.slot_kind().zip(layout.slot(Entry::new(function.entry))) {
        patch(slot.get(), &SlotState::bytes(kind, index));
    }
    Ok(function)
}

fn emit(
    code: &mut CodeBuffer<'_>,
    part: &Part,
    preamble: Option<FineIbt>,
) -> Result<(), fentry::emit::EmitError> {
    match part.what {
        What::KcfiMov => mov_imm32(code, Reg::Rax, HASH)?,
        What::FineIbt(_) => {
            if let Some(preamble) = preamble {
                Preamble::FineIbt(preamble).emit(code)?;
            }
        }
        What::CallDepth(CallDepth::Relative) => {
            sar_gs_rip(code, CALLS.as_ptr() as u64, SHIFT)?;
        }
        // In the upper 2 GiB, where a number of 32 bits and its sign reach.
        What::CallDepth(_) => sar_gs_absolute(code, CALLS.as_ptr() as u64 as i32, SHIFT)?,
        What::LandingPad(LandingPad::Endbr64) => endbr64(code)?,
        What::LandingPad(_) => code.bytes(&NOP4_OSP)?,
        What::Site(_) => code.bytes(&NOP5)?,
        // Those of arm64.
        _ => {}
    }
    Ok(())
}
