//! Every preamble: called as it should be, and as it should not.

use fentry::emit::x86_64::{Arity, Bhi, Check, FineIbt, Generation, Kcfi, Preamble, bhi_stub};
use fentry::encode::x86_64::int3;
use machine::paging::Range;

use crate::attempt::{Outcome, Protection};
use crate::lab::{Failure, Function, Lab, patch};
use crate::report::{ARGUMENTS, Code, Expected, Report, SUM};

/// The hash of the functions here, and the one that wrong callers have.
pub const HASH: u32 = 0x1234_5678;
pub const OTHER_HASH: u32 = 0x2345_6789;

/// What calls are protected by.
pub const PROTECTIONS: [Protection; 2] = [Protection::LANDING_PADS, Protection::BOTH];

pub const GENERATIONS: [Generation; 3] = [Generation::Original, Generation::Short, Generation::Udb];

/// The caller's half of `preamble`, with another hash.
pub const fn other_hash(check: Check) -> Check {
    match check {
        Check::Kcfi { padding, .. } => Check::Kcfi { hash: OTHER_HASH, padding },
        Check::FineIbt { generation, paranoid, .. } => {
            Check::FineIbt { hash: OTHER_HASH, generation, paranoid }
        }
        check => check,
    }
}

pub fn all(report: &mut Report) -> Result<(), Failure> {
    for protection in PROTECTIONS {
        none(report, protection)?;
    }
    report.end_group("no preamble");
    for protection in PROTECTIONS {
        landing_pad(report, protection, Preamble::Endbr64)?;
    }
    report.end_group("endbr64");
    for protection in PROTECTIONS {
        kcfi(report, protection)?;
    }
    report.end_group("kCFI");
    for generation in GENERATIONS {
        for protection in PROTECTIONS {
            fineibt(report, protection, generation)?;
        }
        report.end_group(match generation {
            Generation::Original => "FineIBT, Linux 6.2",
            Generation::Short => "FineIBT, Linux 6.15",
            Generation::Udb => "FineIBT, Linux 7.2",
        });
    }
    Ok(())
}

/// Emits a caller and runs it on `target`.
fn call(
    report: &mut Report,
    lab: &mut Lab,
    (what, protection): (&str, Protection),
    (check, target): (Check, u64),
    expected: impl FnOnce(&Range) -> Expected,
) -> Result<Outcome, Failure> {
    let caller = lab.caller(check)?;
    let code = Code { address: caller.start, target };
    Ok(report.case(what, protection, code, &expected(&caller)))
}

fn function(preamble: Preamble) -> Result<(Lab, Function), Failure> {
    let mut lab = Lab::new();
    let function = lab.function(preamble)?;
    Ok((lab, function))
}

/// A direct call needs no preamble, an indirect one traps.
fn none(report: &mut Report, protection: Protection) -> Result<(), Failure> {
    let (mut lab, function) = function(Preamble::None)?;
    let entry = function.entry;
    let missed = |_: &Range| Expected::NoLandingPad(entry);
    let bare = ("no landing pad", protection);
    call(report, &mut lab, bare, (Check::None, entry), missed)?;
    // It is the protection that traps.
    let off = ("no landing pad, nothing on", Protection::NONE);
    call(report, &mut lab, off, (Check::None, entry), |_| Expected::Returns(SUM))?;
    direct(report, &mut lab, protection, &function)
}

fn direct(
    report: &mut Report,
    lab: &mut Lab,
    protection: Protection,
    function: &Function,
) -> Result<(), Failure> {
    let caller = lab.direct_caller(function.entry)?;
    let code = Code { address: caller.start, target: 0 };
    report.case("direct call", protection, code, &Expected::Returns(SUM));
    Ok(())
}

/// What holds of every function with a landing pad at its entry.
fn landing_pad(
    report: &mut Report,
    protection: Protection,
    preamble: Preamble,
) -> Result<(), Failure> {
    let (mut lab, function) = function(preamble)?;
    let lab = &mut lab;
    let (check, entry) = (preamble.check(), function.entry);
    let right = ("right hash", protection);
    call(report, lab, right, (check, entry), |_| Expected::Returns(SUM))?;
    let past = ("past the landing pad", protection);
    call(report, lab, past, (Check::None, entry + 4), |_| Expected::NoLandingPad(entry + 4))?;
    direct(report, lab, protection, &function)?;
    breakpoint(report, lab, protection, preamble, &function)
}

/// While a site is rewritten, a call meets a breakpoint behind the landing pad, and no other
/// trap.
fn breakpoint(
    report: &mut Report,
    lab: &mut Lab,
    protection: Protection,
    preamble: Preamble,
    function: &Function,
) -> Result<(), Failure> {
    // A breakpoint has an interrupt stack of its own here, and that a shadow stack of its own,
    // which this kernel does not make.
    let protection = Protection { shadow_stack: false, ..protection };
    let site = function.site();
    patch(site, &[0xcc]);
    let guarded = ("breakpoint at the patch site", protection);
    let breakpoint = |_: &Range| Expected::Breakpoint(site);
    call(report, lab, guarded, (preamble.check(), function.entry), breakpoint)?;
    Ok(())
}

fn kcfi(report: &mut Report, protection: Protection) -> Result<(), Failure> {
    // Padding of functions aligned to 4 (none), 16, 32 and 64.
    for padding in [0, 11, 27, 59] {
        for arity in [None, Arity::new(2), Some(Arity::STACK)] {
            let with_pad = Kcfi { hash: HASH, arity, padding, endbr64: true };
            let preamble = Preamble::Kcfi(with_pad);
            landing_pad(report, protection, preamble)?;
            let (mut lab, function) = function(preamble)?;
            let wrong = ("wrong hash", protection);
            let check = other_hash(preamble.check());
            call(report, &mut lab, wrong, (check, function.entry), |caller| {
                Expected::OtherHash(caller.clone())
            })?;
            let preamble = Preamble::Kcfi(Kcfi { endbr64: false, ..with_pad });
            let (mut lab, function) = self::function(preamble)?;
            let sealed = ("right hash, no landing pad", protection);
            call(report, &mut lab, sealed, (preamble.check(), function.entry), |_| {
                Expected::NoLandingPad(function.entry)
            })?;
        }
    }
    Ok(())
}

fn fineibt(
    report: &mut Report,
    protection: Protection,
    generation: Generation,
) -> Result<(), Failure> {
    let fineibt = |bhi| FineIbt { hash: HASH, generation, bhi };
    for bhi in [Bhi::None, Bhi::FirstArgument] {
        let (lab, function) = function(Preamble::FineIbt(fineibt(bhi)))?;
        let traps = function.range.start..function.entry + 4;
        with_fineibt(report, protection, lab, (fineibt(bhi), &function), &traps)?;
    }
    for arity in (0..=7).filter_map(Arity::new) {
        let mut lab = Lab::new();
        let stub = lab.emit(0, |code| {
            let start = code.here();
            bhi_stub(code, generation, arity)?;
            int3(code)?;
            Ok(start..code.here())
        })?;
        let fineibt = fineibt(Bhi::Stub(stub.start));
        let preamble = Preamble::FineIbt(fineibt);
        let function = lab.function(preamble)?;
        with_fineibt(report, protection, lab, (fineibt, &function), &stub)?;
    }
    Ok(())
}

/// What holds of every function with a FineIBT preamble, which on a wrong hash traps in `traps`.
fn with_fineibt(
    report: &mut Report,
    protection: Protection,
    mut lab: Lab,
    (fineibt, function): (FineIbt, &Function),
    traps: &Range,
) -> Result<(), Failure> {
    let lab = &mut lab;
    let preamble = Preamble::FineIbt(fineibt);
    let FineIbt { generation, bhi, .. } = fineibt;
    let entry = function.entry;
    let plain = Check::FineIbt { hash: HASH, generation, paranoid: false };
    let paranoid = Check::FineIbt { hash: HASH, generation, paranoid: true };
    for check in [plain, paranoid] {
        let right = ("right hash", protection);
        call(report, lab, right, (check, entry), |_| Expected::Returns(SUM))?;
    }
    let wrong = ("wrong hash", protection);
    let by_callee = |_: &Range| Expected::OtherHash(traps.clone());
    let trapped = call(report, lab, wrong, (other_hash(plain), entry), by_callee)?;
    if let (Bhi::FirstArgument, Outcome::Trapped { first_argument, .. }) = (bhi, trapped) {
        // The argument is the difference of the hashes, as a register of 32 bits holds it.
        report.note(first_argument == u64::from(OTHER_HASH - HASH), true);
    }
    let by_caller = |caller: &Range| Expected::OtherHash(caller.clone());
    call(report, lab, wrong, (other_hash(paranoid), entry), by_caller)?;
    for other in GENERATIONS.into_iter().filter(|it| it.register() != generation.register()) {
        // A caller of another generation has put its hash elsewhere.
        let check = Check::FineIbt { hash: HASH, generation: other, paranoid: false };
        let generation = ("another generation's caller", protection);
        call(report, lab, generation, (check, entry), by_callee)?;
    }
    let without = ("no hash", protection);
    let at_preamble = (Check::None, function.range.start);
    call(report, lab, without, at_preamble, by_callee)?;
    for past in [function.range.start + 4, entry, entry + 4] {
        let past_it = ("past the landing pad", protection);
        call(report, lab, past_it, (Check::None, past), |_| Expected::NoLandingPad(past))?;
    }
    direct(report, lab, protection, function)?;
    breakpoint(report, lab, protection, preamble, function)
}

/// That a wrong hash changes the first argument can be seen only if it was another before.
const _: () = assert!(ARGUMENTS[0] != (OTHER_HASH - HASH) as u64);
