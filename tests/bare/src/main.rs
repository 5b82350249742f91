//! The core of `fentry` in a program that has no standard library, no allocator and no libc:
//! what a kernel has. That it links is half of the proof; the other half is that it runs, and
//! ends with the exit code 0.
//!
//! It is an embedder whose text, images and tables are arrays, and whose one core is always
//! in step with itself. Nothing of the text is executed.

#![no_std]
#![no_main]

mod embedder;
mod start;

use core::convert::Infallible;

use embedder::{Array, Bare, fake_parts};
use fentry::addr::Entry;
use fentry::attach::{
    AttachError, Attachment, Cookies, Engine, FunctionId, FunctionSpec, ProgramKind, Region,
    SiteNop,
};
use fentry::emit::x86_64::EntryBody;
use fentry::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use fentry::layout::x86_64::{IBT, PLAIN_UNPADDED};
use fentry::metadata::SlotState;
use fentry::patch::{Batch, CheckError, PatchError, Poke, Protocol, Text, TrapResolver};

/// What the compiler would have left of one function: 16 bytes of padding, `endbr64`, one
/// five-byte nop, and a `ret` that fills up 32 bytes.
const FUNCTION: [u8; 32] = [
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
    0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3,
];
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const FUNCTIONS: usize = 8;

static TEXT: Array<{ FUNCTIONS * FUNCTION.len() }> = Array::new();
static BODY: Array<1024> = Array::new();
static TRAPS: TrapResolver = TrapResolver::new();

/// What went wrong, as the exit code says it.
#[derive(Clone, Copy)]
enum Failure {
    Layout = 1,
    Emit = 2,
    Batch = 3,
    EngineNew = 4,
    Attach = 5,
    Detach = 6,
    Error = 7,
    Thunk = 8,
}

/// `Ok` if `good`, else `failure`.
const fn ensure(good: bool, failure: Failure) -> Result<(), Failure> {
    if good { Ok(()) } else { Err(failure) }
}

/// Runs everything; the exit code.
fn run() -> u8 {
    match emit_a_body().and_then(|()| land_a_batch()).and_then(|()| attach_and_detach()) {
        Ok(()) => 0,
        Err(failure) => failure as u8,
    }
}

/// Where function number `number` of the text is entered.
fn entry(number: usize) -> Entry {
    Entry::new(TEXT.address() + (number * FUNCTION.len()) as u64 + 16)
}

fn emit_a_body() -> Result<(), Failure> {
    let return_to_index = IBT.return_to_index().ok_or(Failure::Layout)?;
    ensure(IBT.site(entry(0)).get() == entry(0).get() + 4, Failure::Layout)?;
    let calls = [ProgramCall {
        target: BODY.address(),
        data: Some(u64::MAX),
        cookie: CookiePlace { column: TEXT.address(), stride: Stride::Sixteen },
        session: None,
    }];
    let body = EntryBody {
        index: IndexFrom::Slot { return_to_index },
        return_to_entry: IBT.return_to_entry(),
        vectors: Vectors::Ymm,
        calls: &calls,
    };
    // SAFETY: nothing else uses this array.
    let bytes = unsafe { BODY.bytes() };
    let mut code = CodeBuffer::new(bytes, BODY.address());
    body.emit(&mut code).map_err(|_| Failure::Emit)?;
    // `push rbp` at the start, `ret` and `int3` at the end.
    let [0x55, .., 0xc3, 0xcc] = code.written() else { return Err(Failure::Emit) };
    Ok(())
}

/// Fills the text with functions as compilers leave them.
fn compile() {
    // SAFETY: the functions of this file that use the array do so one after the other.
    let text = unsafe { TEXT.bytes() };
    for function in text.chunks_exact_mut(FUNCTION.len()) {
        function.copy_from_slice(&FUNCTION);
    }
}

fn land_a_batch() -> Result<(), Failure> {
    const JUMP: [u8; 5] = [0xe9, 1, 2, 3, 4];
    compile();
    for protocol in [Protocol::ShortJump, Protocol::Breakpoint] {
        let mut parts = fake_parts(&TEXT);
        let site = |number| IBT.site(entry(number));
        let mut pokes = [Poke::new(site(3), NOP, JUMP), Poke::new(site(1), NOP, JUMP)];
        let batch = Batch::new(protocol, &mut pokes);
        // SAFETY: the text is an array that nothing executes.
        let landed = unsafe { batch.apply(&mut parts.text, &mut parts.cores, &TRAPS) };
        landed.map_err(|_| Failure::Batch)?;
        ensure(parts.cores.synchronised == 3, Failure::Batch)?;
        for number in 0..FUNCTIONS {
            let expected = if matches!(number, 1 | 3) { JUMP } else { NOP };
            let Ok(found) = parts.text.read(site(number).get());
            ensure(found == expected, Failure::Batch)?;
        }
        // The same again finds other bytes than the old ones, and says so.
        let mut pokes = [Poke::new(site(2), NOP, JUMP), Poke::new(site(3), NOP, JUMP)];
        // SAFETY: as above.
        let refused = unsafe {
            Batch::new(protocol, &mut pokes).apply(&mut parts.text, &mut parts.cores, &TRAPS)
        };
        let Err(PatchError::Check(CheckError::Conflicts { count: 1, first })) = refused else {
            return Err(Failure::Batch);
        };
        ensure(first.site() == site(3), Failure::Batch)?;
        compile();
    }
    Ok(())
}

fn attach_and_detach() -> Result<(), Failure> {
    let engine = Engine::<Bare>::new(fake_parts(&TEXT), Protocol::Breakpoint, &TRAPS);
    let mut engine = engine.map_err(|_| Failure::EngineNew)?;
    let mut ids = [None; FUNCTIONS];
    for (number, id) in ids.iter_mut().enumerate() {
        let spec = FunctionSpec {
            entry: entry(number),
            layout: IBT,
            nop: SiteNop::FiveByte,
            region: Region(0),
            stack_arguments: None,
        };
        *id = Some(engine.register(&spec).map_err(|_| Failure::EngineNew)?);
    }
    let [Some(a), .., Some(b)] = ids else { return Err(Failure::EngineNew) };
    attach_to(&mut engine, [a, b])?;
    thunked(&mut engine)
}

fn attach_to(engine: &mut Engine<Bare>, functions: [FunctionId; 2]) -> Result<(), Failure> {
    let mut pokes = [Poke::EMPTY; 2];
    let program = Attachment {
        target: BODY.address(),
        kind: ProgramKind::Entry,
        data: None,
        vectors: Vectors::Untouched,
        cookies: Cookies::Each(&[40, 2]),
    };
    // SAFETY: nothing executes the text or what is emitted.
    let lanes = unsafe { engine.attach(&functions, &[program], &mut pokes) };
    let lanes = lanes.map_err(|_| Failure::Attach)?;
    for id in functions {
        let site = IBT.site(engine.entry(id).ok_or(Failure::Attach)?).get();
        let text = &engine.parts().text;
        let Ok([call, distance @ ..]) = text.read::<5>(site);
        let Ok(slot) = text.read(site - 20);
        // The site calls the image, and the slot 16 bytes before the entry holds the index.
        let image = (site + 5).wrapping_add_signed(i32::from_le_bytes(distance).into());
        ensure(call == 0xe8 && engine.parts().images.contains(image), Failure::Attach)?;
        let index = SlotState::Index(id.index());
        ensure(SlotState::read(fentry::layout::SlotKind::MovEax, slot) == index, Failure::Attach)?;
    }
    // Too few cookies is an error that says so, and displays without an allocator.
    let short = Attachment { cookies: Cookies::Each(&[]), ..program };
    // SAFETY: as above.
    let refused = unsafe { engine.attach(&functions, &[short], &mut pokes) };
    let Err(error @ AttachError::CookieCount { cookies: 0, .. }) = refused else {
        return Err(Failure::Error);
    };
    ensure(embedder::length_of(&error) > 20, Failure::Error)?;

    // SAFETY: as above.
    unsafe { engine.detach(&functions, lanes, &mut pokes) }.map_err(|_| Failure::Detach)?;
    for id in functions {
        let site = IBT.site(engine.entry(id).ok_or(Failure::Detach)?);
        ensure(engine.parts().text.read(site.get()) == Ok::<_, Infallible>(NOP), Failure::Detach)?;
    }
    // SAFETY: there is one core, and it is here.
    let freed = unsafe { engine.quiesced() };
    ensure(freed == 1 && engine.parts().images.freed == 1, Failure::Detach)
}

/// A function without a slot is reached through a thunk.
fn thunked(engine: &mut Engine<Bare>) -> Result<(), Failure> {
    compile();
    // The site of this one is where the plain functions of this text have theirs.
    let entry = Entry::new(IBT.site(entry(5)).get());
    let layout = PLAIN_UNPADDED;
    let spec = FunctionSpec {
        entry,
        layout,
        nop: SiteNop::FiveByte,
        region: Region(0),
        stack_arguments: None,
    };
    let id = engine.register(&spec).map_err(|_| Failure::Thunk)?;
    let mut pokes = [Poke::EMPTY; 2];
    ensure(engine.pokes_needed(&[id]) == 2, Failure::Thunk)?;
    let program = Attachment {
        target: BODY.address(),
        kind: ProgramKind::Entry,
        data: Some(1),
        vectors: Vectors::Xmm,
        cookies: Cookies::Position,
    };
    // SAFETY: nothing executes the text or what is emitted.
    let lanes = unsafe { engine.attach(&[id], &[program], &mut pokes) };
    let lanes = lanes.map_err(|_| Failure::Thunk)?;
    ensure(engine.parts().text.read(entry.get()) != Ok(NOP), Failure::Thunk)?;
    // SAFETY: as above.
    unsafe { engine.detach(&[id], lanes, &mut pokes) }.map_err(|_| Failure::Thunk)?;
    ensure(engine.parts().text.read(entry.get()) == Ok(NOP), Failure::Thunk)
}
