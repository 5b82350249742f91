//! Programs that bodies reach in other ways than by a direct call: far away, by a dispatcher; and
//! origins by a table of calls.

use core::sync::atomic::{AtomicU64, Ordering};

use fentry::addr::Entry;
use fentry::emit::x86_64::{
    Bhi, CallTable, Check, Dispatcher, EntryBody, FineIbt, Hardening, Preamble, Symbols, TARGET,
    replacement,
};
use fentry::emit::{Mitigations, Stride, Vectors};
use fentry::encode::x86_64::{
    Mem, Reg, add_reg, call, endbr64, int3, jmp_bytes, mov_imm32, mov_load64, mov_store64, ret,
};
use fentry::layout::{Config, LandingPad};
use machine::paging::{self, Range, Rights};

use crate::attempt::{Protection, far};
use crate::images::{call_site, function, index_from};
use crate::lab::{Failure, Function, Lab, patch};
use crate::preambles::{GENERATIONS, HASH, OTHER_HASH, PROTECTIONS};
use crate::programs::{COOKIE, INDEX, program};
use crate::report::{Code, Expected, Report, SUM};
use crate::shape;

/// Programs by index, for the dispatcher that finds them there.
static PROGRAMS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

pub fn all(report: &mut Report) -> Result<(), Failure> {
    far_programs(report)?;
    far_replacement(report)?;
    report.end_group("programs out of a direct call's reach");
    dispatchers(report)?;
    report.end_group("dispatchers");
    call_tables(report)?;
    report.end_group("call table");
    Ok(())
}

/// Emits a program that adds its cookie to the first argument.
fn emitted_program(lab: &mut Lab, preamble: Preamble) -> Result<u64, Failure> {
    lab.emit(preamble.before_entry(), |code| {
        let entry = preamble.emit(code)?;
        mov_load64(code, Reg::Rax, Mem::at(Reg::Rdi, 0))?;
        add_reg(code, Reg::Rax, Reg::Rsi)?;
        mov_store64(code, Mem::at(Reg::Rdi, 0), Reg::Rax)?;
        ret(code)?;
        int3(code)?;
        Ok(entry)
    })
}

/// What the functions are from here on: a landing pad, and 16 bytes of padding.
const PLAIN: Config = Config::X86_64
    .with_padding(16)
    .with_landing_pad(LandingPad::Endbr64)
    .with_site(fentry::layout::x86_64::SITE_LEN);

/// Hooks the function with one program, and calls it.
fn with_program(
    report: &mut Report,
    lab: &mut Lab,
    (what, protection): (&str, Protection),
    (function, target): (&Function, u64),
    expected: &Expected,
) -> Result<(), Failure> {
    let body = EntryBody {
        index: index_from(function),
        return_to_entry: function.layout.return_to_entry(),
        vectors: Vectors::Untouched,
        calls: &[program(target)],
    };
    let body = lab.emit(0, |code| {
        let start = code.here();
        body.emit(code)?;
        Ok(start)
    })?;
    call_site(function, body)?;
    let caller = lab.right_caller(function)?;
    let code = Code { address: caller.start, target: function.entry };
    report.case(what, protection, code, expected);
    Ok(())
}

/// Programs that a body can only call through a register need a landing pad.
fn far_programs(report: &mut Report) -> Result<(), Failure> {
    let ran = Expected::Returns(SUM + COOKIE);
    let mut mapped = false;
    for protection in PROTECTIONS {
        for preamble in [Preamble::Endbr64, Preamble::None] {
            // The program comes first, so that it is in the page that is mapped again.
            let mut lab = Lab::new();
            let target = emitted_program(&mut lab, preamble)?;
            let page = paging::images().start;
            if !mapped {
                mapped = paging::map_again(page, far().start, Rights::Execute).is_some();
            }
            let target = far().start + (target - page);
            let function = shape::function(&mut lab, &PLAIN, INDEX)?;
            let expected = match preamble {
                Preamble::None => Expected::NoLandingPad(target),
                _ => ran.clone(),
            };
            let far = ("far program", protection);
            with_program(report, &mut lab, far, (&function, target), &expected)?;
        }
    }
    Ok(())
}

/// So does what replaces a function and can only be jumped to through a register.
fn far_replacement(report: &mut Report) -> Result<(), Failure> {
    for protection in PROTECTIONS {
        for preamble in [Preamble::Endbr64, Preamble::None] {
            let mut lab = Lab::new();
            let target = lab.function(preamble)?.entry;
            let target = far().start + (target - paging::images().start);
            let function = shape::function(&mut lab, &PLAIN, INDEX)?;
            let jump = lab.emit(0, |code| {
                let start = code.here();
                replacement(code, target)?;
                Ok(start)
            })?;
            patch(function.site(), &jmp_bytes(function.site(), jump)?);
            let caller = lab.right_caller(&function)?;
            let code = Code { address: caller.start, target: function.entry };
            let expected = match preamble {
                Preamble::None => Expected::NoLandingPad(target),
                _ => Expected::Returns(SUM),
            };
            report.case("far replacement", protection, code, &expected);
        }
    }
    Ok(())
}

/// A thunk that goes on at the address in `r11` by a return (retpoline).
fn retpoline(lab: &mut Lab) -> Result<Range, Failure> {
    lab.emit(0, |code| {
        let start = code.here();
        // Over the `int3` that speculation stops at.
        call(code, start + 6)?;
        int3(code)?;
        mov_store64(code, Mem::at(Reg::Rsp, 0), TARGET)?;
        ret(code)?;
        int3(code)?;
        Ok(start..code.here())
    })
}

/// Dispatchers with every kind of branch to the program.
fn dispatchers(report: &mut Report) -> Result<(), Failure> {
    let ran = || Expected::Returns(SUM + COOKIE);
    let [_, _, udb] = GENERATIONS;
    let fineibt = |hash| Check::FineIbt { hash, generation: udb, paranoid: false };
    let checked = FineIbt { hash: HASH, generation: udb, bhi: Bhi::None };
    for protection in PROTECTIONS {
        // By a search: direct branches, no landing pad needed.
        let (mut lab, function) = function(&PLAIN)?;
        let target = emitted_program(&mut lab, Preamble::None)?;
        let search = Dispatcher::Search(&[(INDEX, target)]);
        let search = lab.emit(0, |code| search.emit(code, &Hardening::NONE))?;
        with_program(report, &mut lab, ("search", protection), (&function, search), &ran())?;

        // By index.
        for (preamble, check) in [
            (Preamble::Endbr64, Check::None),
            (Preamble::None, Check::None),
            (Preamble::FineIbt(checked), fineibt(HASH)),
            (Preamble::FineIbt(checked), fineibt(OTHER_HASH)),
        ] {
            for mitigations in [Mitigations::empty(), Mitigations::LFENCE, Mitigations::RETPOLINE] {
                let (mut lab, function) = self::function(&PLAIN)?;
                let target = emitted_program(&mut lab, preamble)?;
                let thunk = retpoline(&mut lab)?;
                let cfi =
                    if let Check::None = check { Mitigations::empty() } else { Mitigations::CFI };
                let symbols = Symbols { indirect_thunk: Some(thunk.start), check, ..Symbols::NONE };
                let hardening = Hardening::new(mitigations | cfi, symbols)?;
                if let Some(place) = PROGRAMS.get(INDEX as usize) {
                    place.store(target, Ordering::Relaxed);
                }
                let column = PROGRAMS.as_ptr() as u64;
                let indexed = Dispatcher::Indexed { column, stride: Stride::Eight };
                let indexed = lab.emit(0, |code| indexed.emit(code, &hardening))?;
                let expected = if mitigations == Mitigations::RETPOLINE {
                    // Its return goes where no call came from, which is what it is for: no
                    // landing pad is looked for, and no shadow stack allows it.
                    if protection.shadow_stack {
                        Expected::OtherReturn(thunk)
                    } else if matches!(check, Check::FineIbt { hash: OTHER_HASH, .. }) {
                        Expected::OtherHash(target - 16..target + 4)
                    } else {
                        ran()
                    }
                } else {
                    match (preamble, check) {
                        (Preamble::None, _) => Expected::NoLandingPad(target),
                        (_, Check::FineIbt { hash: OTHER_HASH, .. }) => {
                            Expected::OtherHash(target - 16..target + 4)
                        }
                        _ => ran(),
                    }
                };
                let by_index = ("by index", protection);
                with_program(report, &mut lab, by_index, (&function, indexed), &expected)?;
            }
        }
    }
    Ok(())
}

/// The table's rows are arrived at by a computed jump.
fn call_tables(report: &mut Report) -> Result<(), Failure> {
    for protection in PROTECTIONS {
        for with_pads in [true, false] {
            let (mut lab, function) = function(&PLAIN)?;
            let origin = function.layout.origin(Entry::new(function.entry));
            let table = CallTable { origins: &[origin, origin], endbr64: with_pads };
            let select = lab.emit(0, |code| table.emit(code, &Hardening::NONE))?;
            let caller = lab.emit(0, |code| {
                let start = code.here();
                endbr64(code)?;
                mov_imm32(code, TARGET, 1)?;
                call(code, select)?;
                ret(code)?;
                Ok(start)
            })?;
            let row = select - table.stride(&Hardening::NONE) as u64;
            let expected =
                if with_pads { Expected::Returns(SUM) } else { Expected::NoLandingPad(row) };
            report.case("row 1", protection, Code { address: caller, target: 0 }, &expected);
        }
    }
    Ok(())
}
