//! Calls that meet a patch site in the middle of a batch: the breakpoint protocol where landing
//! pads are enforced.

use core::convert::Infallible;

use fentry::addr::PatchSite;
use fentry::encode::x86_64::{NOP5, call_bytes, jmp_bytes};
use fentry::layout::Config;
use fentry::patch::{Batch, Cores, PatchError, Poke, Protocol, Text, TrapResolver};
use machine::paging;

use crate::attempt::Protection;
use crate::images::{balanced_image, entry_image, function};
use crate::lab::Failure;
use crate::programs::COOKIE;
use crate::report::{Code, Expected, Report, SUM};

/// What the breakpoint handler asks.
pub static TRAPS: TrapResolver = TrapResolver::new();

/// Emitted code, as text.
struct EmittedText;

// SAFETY: what is emitted is written through another mapping of its pages. The one processor
// sees its own stores in order, and no store fails.
unsafe impl Text for EmittedText {
    type Error = Infallible;

    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Infallible> {
        // SAFETY: the sites are in the images, all of which are mapped there.
        Ok(unsafe { paging::alias(address).cast::<[u8; N]>().read_volatile() })
    }

    fn open(&mut self, _: &[Poke]) -> Result<(), Infallible> {
        Ok(())
    }

    fn close(&mut self) {}

    unsafe fn store_byte(&mut self, address: u64, byte: u8) -> Result<(), Infallible> {
        // SAFETY: as in `read`.
        unsafe { paging::alias(address).write_volatile(byte) };
        Ok(())
    }

    unsafe fn store_pair(&mut self, address: u64, bytes: [u8; 2]) -> Result<(), Infallible> {
        // SAFETY: as in `read`.
        unsafe { paging::alias(address).cast::<u16>().write_unaligned(u16::from_le_bytes(bytes)) };
        Ok(())
    }

    unsafe fn store_unexecuted<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
    ) -> Result<(), Infallible> {
        // SAFETY: as in `read`.
        unsafe { paging::alias(address).cast::<[u8; N]>().write_volatile(bytes) };
        Ok(())
    }
}

/// The one processor, which calls the function whenever it is to synchronise.
struct Calling<'a> {
    report: &'a mut Report,
    code: Code,
    expected: Expected,
}

// SAFETY: a call begins with `cpuid`, a serialising instruction (Intel SDM volume 3, 10.3).
unsafe impl Cores for Calling<'_> {
    type Error = Infallible;

    fn synchronise(&mut self) -> Result<(), Infallible> {
        // A shadow stack would also have to be told where the handler goes on.
        let protection = Protection::LANDING_PADS;
        self.report.case("while it is patched", protection, self.code, &self.expected);
        Ok(())
    }
}

/// Patches a function's site from one instruction to the next, and calls the function after
/// each pass, when the new instruction is what counts.
pub fn while_patched(report: &mut Report, config: &Config) -> Result<(), Failure> {
    let (mut lab, function) = function(config)?;
    let site = function.site();
    let call = call_bytes(site, entry_image(&mut lab, &function)?)?;
    let jump = jmp_bytes(site, balanced_image(&mut lab, &function)?)?;
    let caller = lab.right_caller(&function)?;
    let code = Code { address: caller.start, target: function.entry };
    let steps = [
        (NOP5, call, SUM + COOKIE),
        (call, jump, SUM + 2 * COOKIE),
        (jump, NOP5, SUM),
        (NOP5, jump, SUM + 2 * COOKIE),
        (jump, call, SUM + COOKIE),
        (call, NOP5, SUM),
    ];
    for (old, new, returns) in steps {
        let mut pokes = [Poke::new(PatchSite::new(site), old, new)];
        let expected = Expected::Returns(returns);
        let mut calling = Calling { report: &mut *report, code, expected };
        let batch = Batch::new(Protocol::Breakpoint, &mut pokes);
        // SAFETY: nothing runs but the calls, whose traps ask the resolver; what is called and
        // jumped to has been emitted.
        let landed = unsafe { batch.apply(&mut EmittedText, &mut calling, &TRAPS) };
        landed.map_err(|error: PatchError<_, _>| Failure::Patch(error))?;
    }
    Ok(())
}
