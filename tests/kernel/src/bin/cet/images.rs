//! Every image, entered from hooked functions with each preamble.

use core::sync::atomic::Ordering;

use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::{
    Bodies, CalledTrampoline, Check, EntryBody, FrameBodies, SideStackBodies, SwapBodies,
    THUNK_JUMP, entry_thunk, exit_thunk, replacement,
};
use fentry::emit::{IndexFrom, ProgramCall, Vectors};
use fentry::encode::x86_64::{call_bytes, jmp_bytes};
use fentry::layout::named::{NAMED, Named};
use fentry::layout::{Arch, Config};
use machine::paging::Range;

use crate::attempt::Protection;
use crate::lab::{Failure, Function, Lab, patch};
use crate::patching;
use crate::preambles::{PROTECTIONS, other_hash};
use crate::programs::{
    COOKIE, INDEX, SIDE_STACK, begin, double, entry_place, entry_program, exit_program, instead,
    program,
};
use crate::report::{ARGUMENTS, Code, Expected, Report, SUM};
use crate::shape::{self, CALLS, SHIFT};

pub fn all(report: &mut Report) -> Result<(), Failure> {
    let is_ours = |named: &&Named| named.config.arch() == Arch::X86_64 && named.config.site() > 0;
    for Named { name, config } in NAMED.iter().filter(is_ours) {
        for protection in PROTECTIONS {
            as_compiled(report, protection, config)?;
            entry_only(report, protection, config)?;
            entry_and_exit(report, protection, config)?;
            skipped(report, protection, config)?;
            replaced(report, protection, config)?;
        }
        unbalanced(report, config)?;
        patching::while_patched(report, config)?;
        report.end_group(name);
    }
    Ok(())
}

/// An empty lab with one function, known by its index.
pub fn function(config: &Config) -> Result<(Lab, Function), Failure> {
    let mut lab = Lab::new();
    let function = shape::function(&mut lab, config, INDEX)?;
    begin(function.entry);
    Ok((lab, function))
}

/// Where an image of a function of this shape finds the index.
pub fn index_from(function: &Function) -> IndexFrom {
    match function.layout.return_to_index() {
        Some(return_to_index) => IndexFrom::Slot { return_to_index },
        None => IndexFrom::Thunk,
    }
}

/// Calls the function as its callers do, and as they must not.
fn call(
    report: &mut Report,
    lab: &mut Lab,
    (what, protection): (&str, Protection),
    function: &Function,
    expected: &Expected,
) -> Result<(), Failure> {
    let entry = function.entry;
    let right = lab.right_caller(function)?;
    report.case(what, protection, Code { address: right.start, target: entry }, expected);
    let mut misuse = |what, check, target, expected: &dyn Fn(&Range) -> Expected| {
        let caller = lab.caller(check)?;
        let code = Code { address: caller.start, target };
        report.case(what, protection, code, &expected(&caller));
        Ok::<(), Failure>(())
    };
    match function.check.map(other_hash) {
        Some(check @ Check::Kcfi { .. }) => {
            misuse("wrong hash", check, entry, &|caller| Expected::OtherHash(caller.clone()))?;
        }
        Some(check @ Check::FineIbt { .. }) => {
            misuse("wrong hash", check, entry, &|_| Expected::OtherHash(function.traps.clone()))?;
        }
        _ => {}
    }
    if protection.landing_pads {
        let missed = |target| move |_: &Range| Expected::NoLandingPad(target);
        if !matches!(function.check, Some(Check::None | Check::Kcfi { .. })) {
            misuse("no landing pad at the entry", Check::None, entry, &missed(entry))?;
        }
        let site = function.site();
        if site != entry {
            misuse("past the landing pad", Check::None, site, &missed(site))?;
        }
    }
    Ok(())
}

/// Not hooked, and entered before the entry where calls are counted there.
fn as_compiled(
    report: &mut Report,
    protection: Protection,
    config: &Config,
) -> Result<(), Failure> {
    let (mut lab, function) = function(config)?;
    call(report, &mut lab, ("not hooked", protection), &function, &Expected::Returns(SUM))?;
    let Some(counting) = config.call_depth() else { return Ok(()) };
    CALLS.store(3 << SHIFT, Ordering::Relaxed);
    let caller = lab.direct_caller(function.entry - u64::from(counting.size()))?;
    let code = Code { address: caller.start, target: 0 };
    report.case("counted", protection, code, &Expected::Returns(SUM));
    report.note(CALLS.load(Ordering::Relaxed) == 3, false);
    Ok(())
}

pub fn call_site(function: &Function, target: u64) -> Result<(), Failure> {
    patch(function.site(), &call_bytes(function.site(), target)?);
    Ok(())
}

/// The entry body, called by the patch site or by way of a thunk.
fn entry_only(report: &mut Report, protection: Protection, config: &Config) -> Result<(), Failure> {
    let (mut lab, function) = function(config)?;
    let called = entry_image(&mut lab, &function)?;
    call_site(&function, called)?;
    let hooked = ("entry", protection);
    let ran = Expected::Returns(SUM + COOKIE);
    call(report, &mut lab, hooked, &function, &ran)
}

/// Emits an entry body, and a thunk where the function has no slot; what the patch site calls.
pub fn entry_image(lab: &mut Lab, function: &Function) -> Result<u64, Failure> {
    let body = EntryBody {
        index: index_from(function),
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
        return Ok(body);
    }
    let thunk = lab.emit(0, |code| {
        let start = code.here();
        entry_thunk(code, INDEX)?;
        Ok(start)
    })?;
    let jump = thunk + THUNK_JUMP as u64;
    patch(jump, &jmp_bytes(jump, body)?);
    Ok(thunk)
}

/// The balanced form: the patch site jumps to a thunk, which calls the origin.
fn entry_and_exit(
    report: &mut Report,
    protection: Protection,
    config: &Config,
) -> Result<(), Failure> {
    for kept in [Kept::SideStack, Kept::Stack] {
        let (mut lab, function) = function(config)?;
        let programs: [&[_]; 3] = [&entry_program(), &[], &exit_program()];
        jump_to_thunk(&mut lab, &function, (kept, origin(&function)), programs)?;
        let hooked = ("entry and exit", protection);
        let ran = Expected::Returns(SUM + 2 * COOKIE);
        call(report, &mut lab, hooked, &function, &ran)?;
    }
    Ok(())
}

/// Where the state of a call is kept that has programs at its exit.
#[derive(Clone, Copy)]
enum Kept {
    SideStack,
    Stack,
}

/// Leads the function to a thunk, which goes on at `origin`, and to bodies with these programs:
/// at the entry, those that may modify the return, and at the exit.
fn jump_to_thunk(
    lab: &mut Lab,
    function: &Function,
    (kept, origin): (Kept, u64),
    programs: [&[ProgramCall]; 3],
) -> Result<(), Failure> {
    let thunk = exit_image(lab, (kept, origin), programs)?;
    patch(function.site(), &jmp_bytes(function.site(), thunk)?);
    Ok(())
}

/// Emits both bodies and a thunk; what the patch site jumps to.
fn exit_image(
    lab: &mut Lab,
    (kept, origin): (Kept, u64),
    [entries, modify, exits]: [&[ProgramCall]; 3],
) -> Result<u64, Failure> {
    let functions = entry_place();
    let vectors = Vectors::Untouched;
    let bodies: Bodies = lab.emit(0, |code| match kept {
        Kept::SideStack => {
            let side_stack = SIDE_STACK;
            SideStackBodies { functions, side_stack, vectors, entries, modify, exits }.emit(code)
        }
        Kept::Stack => {
            let stack_arguments = 0;
            FrameBodies { functions, stack_arguments, vectors, entries, modify, exits }.emit(code)
        }
    })?;
    lab.emit(0, |code| {
        let start = code.here();
        exit_thunk(code, INDEX, bodies, Origin::new(origin))?;
        Ok(start)
    })
}

/// Emits what a function with programs at entry and exit jumps to.
pub fn balanced_image(lab: &mut Lab, function: &Function) -> Result<u64, Failure> {
    exit_image(lab, (Kept::SideStack, origin(function)), [&entry_program(), &[], &exit_program()])
}

fn origin(function: &Function) -> u64 {
    function.layout.origin(Entry::new(function.entry)).get()
}

/// The origin is skipped, for what a program returns in its place.
fn skipped(report: &mut Report, protection: Protection, config: &Config) -> Result<(), Failure> {
    let modify = [program(instead as extern "C" fn(_, _) -> _ as usize as u64)];
    for kept in [Kept::SideStack, Kept::Stack] {
        let (mut lab, function) = function(config)?;
        let programs: [&[_]; 3] = [&entry_program(), &modify, &exit_program()];
        jump_to_thunk(&mut lab, &function, (kept, origin(&function)), programs)?;
        let hooked = ("origin skipped", protection);
        let ran = Expected::Returns(COOKIE + 1 + COOKIE);
        call(report, &mut lab, hooked, &function, &ran)?;
    }
    Ok(())
}

/// The function is replaced, without programs and with them.
fn replaced(report: &mut Report, protection: Protection, config: &Config) -> Result<(), Failure> {
    let target = double as extern "C" fn(_) -> _ as usize as u64;
    let [first, _] = ARGUMENTS;
    for programs in [false, true] {
        let (mut lab, function) = function(config)?;
        let jump = lab.emit(0, |code| {
            let start = code.here();
            replacement(code, target)?;
            Ok(start)
        })?;
        let expected = if programs {
            let programs: [&[_]; 3] = [&entry_program(), &[], &exit_program()];
            jump_to_thunk(&mut lab, &function, (Kept::SideStack, jump), programs)?;
            2 * (first + COOKIE) + COOKIE
        } else {
            patch(function.site(), &jmp_bytes(function.site(), jump)?);
            2 * first
        };
        let hooked = ("replaced", protection);
        let expected = Expected::Returns(expected);
        call(report, &mut lab, hooked, &function, &expected)?;
    }
    Ok(())
}

/// The forms that unbalance calls and returns: right where nothing looks, and stopped by a
/// shadow stack, and the swap by landing pads too.
fn unbalanced(report: &mut Report, config: &Config) -> Result<(), Failure> {
    let ran = Expected::Returns(SUM + 2 * COOKIE);
    for protection in
        [Protection::NONE, Protection::LANDING_PADS, Protection::SHADOW_STACK, Protection::BOTH]
    {
        let (mut lab, function) = function(config)?;
        let trampoline = called_trampoline(&mut lab, &function)?;
        call_site(&function, trampoline.start)?;
        let expected =
            if protection.shadow_stack { Expected::OtherReturn(trampoline) } else { ran.clone() };
        let skipped = ("called and skipped", protection);
        call(report, &mut lab, skipped, &function, &expected)?;

        if function.layout.slot_kind().is_none() {
            continue;
        }
        let (mut lab, function) = self::function(config)?;
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
        let caller = lab.right_caller(&function)?;
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
