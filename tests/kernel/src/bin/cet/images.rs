//! Every image, entered from hooked functions with each preamble.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::{
    Bhi, CalledTrampoline, Check, EntryBody, FineIbt, Kcfi, Preamble, SideStack, SideStackBodies,
    SideStackPlace, SwapBodies, THUNK_JUMP, entry_thunk, exit_thunk, replacement,
};
use fentry::emit::{Context, CookiePlace, ExitContext, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::x86_64::{call_bytes, jmp_bytes};
use fentry::layout::LandingPad;
use machine::cpu::{FS_BASE, write_msr};
use machine::paging::Range;

use crate::attempt::Protection;
use crate::lab::{Failure, Function, Lab, Shape, patch};
use crate::patching;
use crate::preambles::{GENERATIONS, HASH, PROTECTIONS, other_hash};
use crate::report::{ARGUMENTS, Code, Expected, Report, SUM};

/// The index of the functions here, and the cookie that their programs get with it.
pub const INDEX: u32 = 5;
pub const COOKIE: u64 = 700_000;

/// Cookies by index; all but one are never to be read.
static COOKIES: [AtomicU64; 8] = [const { AtomicU64::new(u64::MAX / 2) }; 8];
/// Entries by index, for images that find the function there.
static ENTRIES: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

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

/// Returns in the place of the function: one more than the cookie.
extern "C" fn instead(_: &mut Context, cookie: u64) -> u64 {
    cookie + 1
}

/// Runs instead of the function.
extern "C" fn double(argument: u64) -> u64 {
    2 * argument
}

/// A call of the program at `target`.
pub fn program(target: u64) -> ProgramCall {
    let cookie = CookiePlace { column: COOKIES.as_ptr() as u64, stride: Stride::Eight };
    ProgramCall { target, data: None, cookie, session: None }
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
            skipped(report, protection, shape)?;
            replaced(report, protection, shape)?;
        }
        unbalanced(report, shape)?;
        patching::while_patched(report, shape)?;
        report.end_group(name);
    }
    Ok(())
}

/// What functions look like in the builds that indirect calls are checked in.
fn shapes() -> [(&'static str, Shape); 10] {
    let kcfi = Preamble::Kcfi(Kcfi {
        hash: HASH,
        arity: None,
        padding: 11,
        landing_pad: LandingPad::Endbr64,
    });
    let fineibt = GENERATIONS
        .map(|generation| Preamble::FineIbt(FineIbt { hash: HASH, generation, bhi: Bhi::None }));
    let [original, short, udb] = fineibt;
    let [_, _, generation] = GENERATIONS;
    let bhi = FineIbt { hash: HASH, generation, bhi: Bhi::FirstArgument };
    let shape = |preamble, slot| Shape { preamble, slot };
    [
        ("hooked: IBT, padding of 16", shape(Preamble::Endbr64, Some(16))),
        ("hooked: IBT, no padding", shape(Preamble::Endbr64, None)),
        ("hooked: kCFI, slot behind the hash", shape(kcfi, Some(5))),
        ("hooked: FineIBT 6.2, aligned to 16", shape(original, None)),
        ("hooked: FineIBT 6.15, aligned to 16", shape(short, None)),
        ("hooked: FineIBT 7.2, aligned to 16", shape(udb, None)),
        ("hooked: FineIBT 6.2, aligned to 32", shape(original, Some(32))),
        ("hooked: FineIBT 6.15, aligned to 32", shape(short, Some(32))),
        ("hooked: FineIBT 7.2 with bhi, aligned to 32", shape(Preamble::FineIbt(bhi), Some(32))),
        ("hooked: FineIBT 7.2, aligned to 32", shape(udb, Some(32))),
    ]
}

/// An empty lab with one function, known by its index.
pub fn function(shape: Shape) -> Result<(Lab, Function), Failure> {
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
pub fn index_from(function: &Function) -> IndexFrom {
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
    let check = other_hash(shape.preamble.check());
    let wrong = lab.caller(check)?;
    let trap = match check {
        Check::Kcfi { .. } => Some(Expected::OtherHash(wrong.clone())),
        Check::FineIbt { .. } => Some(Expected::OtherHash(function.range.clone())),
        _ => None,
    };
    if let Some(trap) = trap {
        let code = Code { address: wrong.start, target: function.entry };
        report.case("wrong hash", protection, code, &trap);
    }
    if protection.landing_pads {
        let past = function.entry + 4;
        let caller = lab.caller(Check::None)?;
        let code = Code { address: caller.start, target: past };
        report.case("past the landing pad", protection, code, &Expected::NoLandingPad(past));
    }
    Ok(())
}

pub fn call_site(function: &Function, target: u64) -> Result<(), Failure> {
    patch(function.site(), &call_bytes(function.site(), target)?);
    Ok(())
}

/// The entry body, called by the patch site or by way of a thunk.
fn entry_only(report: &mut Report, protection: Protection, shape: Shape) -> Result<(), Failure> {
    let (mut lab, function) = function(shape)?;
    let called = entry_image(&mut lab, &function)?;
    call_site(&function, called)?;
    let hooked = ("entry", protection);
    let ran = Expected::Returns(SUM + COOKIE);
    through_preamble(report, &mut lab, hooked, (shape, &function), &ran)
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

const SIDE_STACK: SideStackPlace = SideStackPlace { thread_offset: 0, make: None };

/// The balanced form: the patch site jumps to a thunk, which calls the origin.
fn entry_and_exit(
    report: &mut Report,
    protection: Protection,
    shape: Shape,
) -> Result<(), Failure> {
    let (mut lab, function) = function(shape)?;
    let thunk = balanced_image(&mut lab, &function)?;
    patch(function.site(), &jmp_bytes(function.site(), thunk)?);
    let hooked = ("entry and exit", protection);
    let ran = Expected::Returns(SUM + 2 * COOKIE);
    through_preamble(report, &mut lab, hooked, (shape, &function), &ran)
}

/// Leads the function to a thunk, which goes on at `origin`, and to bodies with these programs:
/// at the entry, those that may modify the return, and at the exit.
fn jump_to_thunk(
    lab: &mut Lab,
    function: &Function,
    origin: u64,
    programs: [&[ProgramCall]; 3],
) -> Result<(), Failure> {
    let thunk = exit_image(lab, origin, programs)?;
    patch(function.site(), &jmp_bytes(function.site(), thunk)?);
    Ok(())
}

/// Emits both bodies and a thunk; what the patch site jumps to.
fn exit_image(
    lab: &mut Lab,
    origin: u64,
    [entries, modify, exits]: [&[ProgramCall]; 3],
) -> Result<u64, Failure> {
    let bodies = SideStackBodies {
        functions: CookiePlace { column: ENTRIES.as_ptr() as u64, stride: Stride::Eight },
        side_stack: SIDE_STACK,
        vectors: Vectors::Untouched,
        entries,
        modify,
        exits,
    };
    let bodies = lab.emit(0, |code| bodies.emit(code))?;
    lab.emit(0, |code| {
        let start = code.here();
        exit_thunk(code, INDEX, bodies, Origin::new(origin))?;
        Ok(start)
    })
}

/// Emits what a function with programs at entry and exit jumps to.
pub fn balanced_image(lab: &mut Lab, function: &Function) -> Result<u64, Failure> {
    let origin = function.layout.origin(Entry::new(function.entry)).get();
    exit_image(lab, origin, [&entry_program(), &[], &exit_program()])
}

/// The origin is skipped, for what a program returns in its place.
fn skipped(report: &mut Report, protection: Protection, shape: Shape) -> Result<(), Failure> {
    let (mut lab, function) = function(shape)?;
    let origin = function.layout.origin(Entry::new(function.entry)).get();
    let modify = [program(instead as extern "C" fn(_, _) -> _ as usize as u64)];
    jump_to_thunk(&mut lab, &function, origin, [&entry_program(), &modify, &exit_program()])?;
    let hooked = ("origin skipped", protection);
    let ran = Expected::Returns(COOKIE + 1 + COOKIE);
    through_preamble(report, &mut lab, hooked, (shape, &function), &ran)
}

/// The function is replaced, without programs and with them.
fn replaced(report: &mut Report, protection: Protection, shape: Shape) -> Result<(), Failure> {
    let target = double as extern "C" fn(_) -> _ as usize as u64;
    let [first, _] = ARGUMENTS;
    for programs in [false, true] {
        let (mut lab, function) = function(shape)?;
        let jump = lab.emit(0, |code| {
            let start = code.here();
            replacement(code, target)?;
            Ok(start)
        })?;
        let expected = if programs {
            jump_to_thunk(&mut lab, &function, jump, [&entry_program(), &[], &exit_program()])?;
            2 * (first + COOKIE) + COOKIE
        } else {
            patch(function.site(), &jmp_bytes(function.site(), jump)?);
            2 * first
        };
        let hooked = ("replaced", protection);
        let expected = Expected::Returns(expected);
        through_preamble(report, &mut lab, hooked, (shape, &function), &expected)?;
    }
    Ok(())
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
