//! Every image: entered from functions with each preamble, and from tables.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::addr::Entry;
use fentry::emit::x86_64::Bhi;
use fentry::emit::x86_64::{
    Bodies, CallTable, CalledTrampoline, Check, Dispatcher, EXIT_THUNK_SIZE, EntryBody, FineIbt,
    Hardening, Kcfi, Preamble, SideStack, SideStackBodies, SideStackPlace, SwapBodies, Symbols,
    TARGET, THUNK_JUMP, entry_thunk, exit_thunk,
};
use fentry::emit::{
    Context, CookiePlace, ExitContext, IndexFrom, Mitigations, ProgramCall, Stride, Vectors,
};
use fentry::encode::x86_64::{
    Mem, Reg, add_reg, call, call_bytes, endbr64, int3, jmp_bytes, mov_imm32, mov_load64,
    mov_store64, ret,
};
use fentry::layout::LandingPad;
use machine::cpu::{FS_BASE, write_msr};
use machine::paging::{self, PAGE, Range, Rights};

use crate::attempt::{Protection, far};
use crate::lab::{Failure, Function, Lab, Shape, patch};
use crate::preambles::{GENERATIONS, HASH, OTHER_HASH, PROTECTIONS};
use crate::report::{Code, Expected, Report, SUM};

/// The index of the functions here, and the cookie that their programs get with it.
const INDEX: u32 = 5;
const COOKIE: u64 = 700_000;

/// Cookies by index; all but one are never to be read.
static COOKIES: [AtomicU64; 8] = [const { AtomicU64::new(u64::MAX / 2) }; 8];
/// Entries by index, for images that find the function there.
static ENTRIES: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
/// Programs by index, for the dispatcher that finds them there.
static PROGRAMS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Frames of the side stack.
const DEPTH: u32 = 8;

/// The processor's own data: a pointer to its side stack, which is behind it.
#[repr(C, align(16))]
struct Own {
    side_stack: UnsafeCell<*mut SideStack>,
    frames: UnsafeCell<[u128; SideStack::size_for(DEPTH) / 16]>,
}

// SAFETY: there is one processor.
unsafe impl Sync for Own {}

static OWN: Own = Own {
    side_stack: UnsafeCell::new(core::ptr::null_mut()),
    frames: UnsafeCell::new([0; SideStack::size_for(DEPTH) / 16]),
};

/// Adds the cookie to the first argument.
extern "C" fn at_entry(context: &mut Context, cookie: u64) {
    let [first, ..] = context.args_mut();
    *first = first.wrapping_add(cookie);
}

/// Adds the cookie to what is returned.
extern "C" fn at_exit(context: &mut ExitContext, cookie: u64) {
    let [low, high] = context.returned();
    context.set_returned([low.wrapping_add(cookie), high]);
}

/// A call of the program at `target`.
fn program(target: u64) -> ProgramCall {
    let cookie = CookiePlace { column: COOKIES.as_ptr() as u64, stride: Stride::Eight };
    ProgramCall { target, data: None, cookie }
}

fn entry_program() -> [ProgramCall; 1] {
    [program(at_entry as extern "C" fn(_, _) as usize as u64)]
}

fn exit_program() -> [ProgramCall; 1] {
    [program(at_exit as extern "C" fn(_, _) as usize as u64)]
}

pub fn all(report: &mut Report) -> Result<(), Failure> {
    if let Some(cookie) = COOKIES.get(INDEX as usize) {
        cookie.store(COOKIE, Ordering::Relaxed);
    }
    // SAFETY: emitted code finds `OWN` there, and compiled code does not look.
    unsafe { write_msr(FS_BASE, &raw const OWN as u64) };
    for (name, shape) in shapes() {
        for protection in PROTECTIONS {
            entry_only(report, protection, shape)?;
            entry_and_exit(report, protection, shape)?;
        }
        unbalanced(report, shape)?;
        report.end_group(name);
    }
    far_programs(report)?;
    report.end_group("programs out of a direct call's reach");
    dispatchers(report)?;
    report.end_group("dispatchers");
    call_tables(report)?;
    report.end_group("call table");
    Ok(())
}

/// What functions look like in the builds that indirect calls are checked in.
fn shapes() -> [(&'static str, Shape); 8] {
    let kcfi = Preamble::Kcfi(Kcfi {
        hash: HASH,
        arity: None,
        padding: 11,
        landing_pad: LandingPad::Endbr64,
    });
    let fineibt = GENERATIONS
        .map(|generation| Preamble::FineIbt(FineIbt { hash: HASH, generation, bhi: Bhi::None }));
    let [original, short, udb] = fineibt;
    let shape = |preamble, slot| Shape { preamble, slot };
    [
        ("hooked: IBT, padding of 16", shape(Preamble::Endbr64, Some(16))),
        ("hooked: IBT, no padding", shape(Preamble::Endbr64, None)),
        ("hooked: kCFI, slot behind the hash", shape(kcfi, Some(5))),
        ("hooked: FineIBT 6.2, aligned to 16", shape(original, None)),
        ("hooked: FineIBT 6.15, aligned to 16", shape(short, None)),
        ("hooked: FineIBT 7.2, aligned to 16", shape(udb, None)),
        ("hooked: FineIBT 6.2, aligned to 32", shape(original, Some(32))),
        ("hooked: FineIBT 7.2, aligned to 32", shape(udb, Some(32))),
    ]
}

/// An empty lab with one function, known by its index.
fn function(shape: Shape) -> Result<(Lab, Function), Failure> {
    let mut lab = Lab::new();
    let function = lab.function(shape, INDEX)?;
    if let Some(entry) = ENTRIES.get(INDEX as usize) {
        entry.store(function.entry, Ordering::Relaxed);
    }
    let memory = NonNull::from(&OWN.frames).cast();
    // SAFETY: the memory is what `size_for` says, and only emitted code uses it.
    let side_stack = unsafe { SideStack::init(memory, SideStack::size_for(DEPTH)) };
    // SAFETY: there is one processor, and it runs nothing emitted now.
    unsafe {
        OWN.side_stack.get().write(side_stack.map_or(core::ptr::null_mut(), NonNull::as_ptr))
    };
    Ok((lab, function))
}

/// Where an image of a function of this shape finds the index.
fn index_from(function: &Function) -> IndexFrom {
    match function.layout.return_to_index() {
        Some(return_to_index) => IndexFrom::Slot { return_to_index },
        None => IndexFrom::Thunk,
    }
}

/// Calls the function as its callers do, and as they must not.
fn through_preamble(
    report: &mut Report,
    lab: &mut Lab,
    (what, protection): (&str, Protection),
    (shape, function): (Shape, &Function),
    expected: &Expected,
) -> Result<(), Failure> {
    let caller = lab.caller(shape.preamble.check())?;
    let code = Code { address: caller.start, target: function.entry };
    report.case(what, protection, code, expected);
    if protection.landing_pads {
        let past = function.entry + 4;
        let caller = lab.caller(Check::None)?;
        let code = Code { address: caller.start, target: past };
        report.case("past the landing pad", protection, code, &Expected::NoLandingPad(past));
    }
    Ok(())
}

fn call_site(function: &Function, target: u64) -> Result<(), Failure> {
    patch(function.site(), &call_bytes(function.site(), target)?);
    Ok(())
}

/// The entry body, called by the patch site or by way of a thunk.
fn entry_only(report: &mut Report, protection: Protection, shape: Shape) -> Result<(), Failure> {
    let (mut lab, function) = function(shape)?;
    let body = EntryBody {
        index: index_from(&function),
        return_to_entry: function.layout.return_to_entry(),
        vectors: Vectors::Untouched,
        calls: &entry_program(),
    };
    let body = lab.emit(0, |code| {
        let start = code.here();
        body.emit(code)?;
        Ok(start)
    })?;
    if function.layout.slot_kind().is_some() {
        call_site(&function, body)?;
    } else {
        let thunk = lab.emit(0, |code| {
            let start = code.here();
            entry_thunk(code, INDEX)?;
            Ok(start)
        })?;
        let jump = thunk + THUNK_JUMP as u64;
        patch(jump, &jmp_bytes(jump, body)?);
        call_site(&function, thunk)?;
    }
    let hooked = ("entry", protection);
    let ran = Expected::Returns(SUM + COOKIE);
    through_preamble(report, &mut lab, hooked, (shape, &function), &ran)
}

const SIDE_STACK: SideStackPlace = SideStackPlace { thread_offset: 0, make: None };

/// The balanced form: the patch site jumps to a thunk, which calls the origin.
fn entry_and_exit(
    report: &mut Report,
    protection: Protection,
    shape: Shape,
) -> Result<(), Failure> {
    let (mut lab, function) = function(shape)?;
    let bodies = SideStackBodies {
        functions: ENTRIES.as_ptr() as u64,
        side_stack: SIDE_STACK,
        vectors: Vectors::Untouched,
        entries: &entry_program(),
        exits: &exit_program(),
    };
    let bodies: Bodies = lab.emit(0, |code| bodies.emit(code))?;
    let origin = function.layout.origin(Entry::new(function.entry));
    let thunk = lab.emit(0, |code| {
        let start = code.here();
        exit_thunk(code, INDEX, bodies, origin)?;
        debug_assert_eq!(code.here() - start, EXIT_THUNK_SIZE as u64);
        Ok(start)
    })?;
    patch(function.site(), &jmp_bytes(function.site(), thunk)?);
    let hooked = ("entry and exit", protection);
    let ran = Expected::Returns(SUM + 2 * COOKIE);
    through_preamble(report, &mut lab, hooked, (shape, &function), &ran)
}

/// The forms that unbalance calls and returns: right where nothing looks, and stopped by a
/// shadow stack, and the swap by landing pads too.
fn unbalanced(report: &mut Report, shape: Shape) -> Result<(), Failure> {
    let ran = Expected::Returns(SUM + 2 * COOKIE);
    for protection in
        [Protection::NONE, Protection::LANDING_PADS, Protection::SHADOW_STACK, Protection::BOTH]
    {
        let (mut lab, function) = function(shape)?;
        let trampoline = called_trampoline(&mut lab, &function)?;
        call_site(&function, trampoline.start)?;
        let expected =
            if protection.shadow_stack { Expected::OtherReturn(trampoline) } else { ran.clone() };
        let skipped = ("called and skipped", protection);
        through_preamble(report, &mut lab, skipped, (shape, &function), &expected)?;

        if function.layout.slot_kind().is_none() {
            continue;
        }
        let (mut lab, function) = self::function(shape)?;
        let swap = SwapBodies {
            index: index_from(&function),
            return_to_entry: function.layout.return_to_entry(),
            side_stack: SIDE_STACK,
            vectors: Vectors::Untouched,
            entries: &entry_program(),
            exits: &exit_program(),
        };
        let bodies = lab.emit(0, |code| swap.emit(code))?;
        call_site(&function, bodies.enter)?;
        let caller = lab.caller(shape.preamble.check())?;
        let expected = if protection.shadow_stack {
            Expected::OtherReturn(function.range.clone())
        } else if protection.landing_pads {
            // The jump back arrives behind the call in the caller, right before its `ret`.
            Expected::NoLandingPad(caller.end - 1)
        } else {
            ran.clone()
        };
        let code = Code { address: caller.start, target: function.entry };
        report.case("return address swapped", protection, code, &expected);
    }
    Ok(())
}

fn called_trampoline(lab: &mut Lab, function: &Function) -> Result<Range, Failure> {
    let entry = Entry::new(function.entry);
    let trampoline = CalledTrampoline {
        index: INDEX,
        function: entry,
        origin: function.layout.origin(entry),
        stack_arguments: 0,
        vectors: Vectors::Untouched,
        entries: &entry_program(),
        exits: &exit_program(),
    };
    lab.emit(0, |code| {
        let start = trampoline.emit(code)?;
        Ok(start..code.here())
    })
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

/// The shape of the functions from here on.
const PLAIN: Shape = Shape { preamble: Preamble::Endbr64, slot: Some(16) };

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
    let caller = lab.caller(PLAIN.preamble.check())?;
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
            let function = lab.function(PLAIN, INDEX)?;
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
        let (mut lab, function) = function(PLAIN)?;
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
                let (mut lab, function) = self::function(PLAIN)?;
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
        for landing_pad in [LandingPad::Endbr64, LandingPad::None] {
            let (mut lab, function) = function(PLAIN)?;
            let origin = function.layout.origin(Entry::new(function.entry));
            let table = CallTable { origins: &[origin, origin], landing_pad };
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
            let expected = match landing_pad {
                LandingPad::Endbr64 => Expected::Returns(SUM),
                _ => Expected::NoLandingPad(row),
            };
            report.case("row 1", protection, Code { address: caller, target: 0 }, &expected);
        }
    }
    Ok(())
}

const _: () = assert!(PAGE > 2048, "a program is in the first page of the memory for images");
