//! Guarded branches, followed by a machine: preambles and their callers, dispatchers and call
//! tables, with any mitigations, at any addresses.

use fentry::addr::Origin;
use fentry::emit::kcfi::without_landing_pad;
use fentry::emit::x86_64::{
    Arity, BHI_STUB_MAX, Bhi, CallTable, Check, Dispatcher, FineIbt, Generation, Hardening,
    HashPlace, Kcfi, Preamble, bhi_stub,
};
use fentry::emit::{Mitigations, Stride};
use fentry::encode::CodeBuffer;

use super::flow::{Flow, Stop};
use super::guard::{GENERATIONS, Guard, emitted, guard};
use super::input::Input;

const RAX: usize = 0;
const RDI: usize = 7;
const R11: usize = 11;
/// Where the index is in what programs get first.
const INDEX: u64 = 64;

impl Guard {
    /// A machine that knows the thunks that are in use.
    fn flow<'a>(&self, code: Vec<(u64, &'a [u8])>) -> Flow<'a> {
        let mut flow = Flow::new(code);
        if self.has(Mitigations::RETPOLINE) {
            flow.indirect_thunk = self.symbols.indirect_thunk;
        }
        if self.has(Mitigations::RETURN_THUNK) {
            flow.return_thunk = self.symbols.return_thunk;
        }
        flow
    }
}

/// Whether two pieces of code are in each other's way, or one in that of a thunk.
fn overlap(pieces: &[(u64, usize)]) -> bool {
    pieces.iter().enumerate().any(|(position, &(start, len))| {
        pieces.iter().skip(position + 1).any(|&(other, other_len)| {
            other.wrapping_sub(start) < len as u64 || start.wrapping_sub(other) < other_len as u64
        })
    })
}

fn preamble(input: &mut Input<'_>, hash: u32, stub: u64) -> Preamble {
    let generation = input.choose(&GENERATIONS);
    match input.u8() % 5 {
        0 | 1 => Preamble::Kcfi(Kcfi {
            hash,
            arity: Arity::new(input.u8() % 9),
            padding: input.u8(),
            endbr64: input.choose(&[false, true]),
        }),
        2 => Preamble::FineIbt(FineIbt { hash, generation, bhi: Bhi::None }),
        3 => Preamble::FineIbt(FineIbt { hash, generation, bhi: Bhi::FirstArgument }),
        _ => Preamble::FineIbt(FineIbt { hash, generation, bhi: Bhi::Stub(stub) }),
    }
}

/// A call of one function with a preamble: it arrives if the hashes are the same.
fn checked_call(input: &mut Input<'_>) {
    let (at, callee_hash) = (input.u64(), input.u32());
    let caller_hash = match input.u8() & 3 {
        0 => input.u32(),
        bit => callee_hash ^ u32::from(bit == 3) << (input.u8() & 31),
    };
    let caller_at = input.address(at);
    let stub_at = input.address(at);
    let callee = preamble(input, callee_hash, stub_at);
    let check = match callee.check() {
        Check::Kcfi { padding, .. } => Check::Kcfi { hash: caller_hash, padding },
        Check::FineIbt { generation, .. } => {
            let paranoid = input.u8() & 1 == 1;
            Check::FineIbt { hash: caller_hash, generation, paranoid }
        }
        other => other,
    };
    let Some(guard) = guard(input, caller_at, check) else { return };
    let Some((callee_bytes, entry)) =
        emitted(at, usize::from(callee.size()), |code| callee.emit(code))
    else {
        return;
    };
    read_again(&callee, &callee_bytes, callee_hash);
    let Preamble::FineIbt(FineIbt { generation, .. }) = callee else {
        return arrives(
            &guard,
            (caller_at, (at, &callee_bytes), entry),
            &[],
            same(callee_hash, caller_hash),
        );
    };
    let arity = Arity::new(input.u8() & 7).expect("at most 7");
    let stub = emitted(stub_at, BHI_STUB_MAX, |code| bhi_stub(code, generation, arity));
    let Some((stub, ())) = stub else { return };
    let place = (caller_at, (at, &callee_bytes[..]), entry);
    arrives(&guard, place, &[(stub_at, &stub)], same(callee_hash, caller_hash));
}

fn same(callee: u32, caller: u32) -> bool {
    without_landing_pad(callee) == without_landing_pad(caller)
}

/// That a call from `caller_at` arrives behind the callee's preamble, or traps.
fn arrives(
    guard: &Guard,
    (caller_at, callee, entry): (u64, (u64, &[u8]), u64),
    more: &[(u64, &[u8])],
    same: bool,
) {
    let emit = |code: &mut CodeBuffer<'_>| guard.hardening.emit_indirect_call(code);
    let Some((caller, ())) = emitted(caller_at, Hardening::MAX_SIZE, emit) else { return };
    let behind = caller_at.wrapping_add(caller.len() as u64);
    let mut code = vec![(caller_at, &caller[..]), callee];
    code.extend(more);
    let mut pieces: Vec<(u64, usize)> = code.iter().map(|&(at, bytes)| (at, bytes.len())).collect();
    // A byte behind each: where the path goes on outside.
    pieces.iter_mut().for_each(|piece| piece.1 += 1);
    for thunk in [guard.symbols.indirect_thunk, guard.symbols.return_thunk] {
        pieces.extend(thunk.map(|thunk| (thunk, 1)));
    }
    if overlap(&pieces) {
        return;
    }
    let mut flow = guard.flow(code);
    flow.regs[R11] = entry;
    let stop = flow.run(caller_at);
    let checked = guard.has(Mitigations::CFI);
    if checked && !same {
        assert_eq!(stop, Stop::Trap);
    } else {
        let end = callee.0.wrapping_add(callee.1.len() as u64);
        assert_eq!(stop, Stop::Left(end));
        assert_eq!(flow.stack, [behind]);
        assert_eq!(flow.counts, u32::from(guard.has(Mitigations::CALL_DEPTH)));
    }
}

/// That the hash is found where it was put, and another in its place is what would have been
/// emitted.
fn read_again(preamble: &Preamble, bytes: &[u8], hash: u32) {
    let place = preamble.hash_place().expect("each of these has one");
    let mut before = bytes[..usize::from(preamble.before_entry())].to_vec();
    assert_eq!(place.read(&before), Ok(without_landing_pad(hash)));
    let other = without_landing_pad(hash.rotate_left(7) ^ 0x5a5a);
    assert_eq!(place.replace(&mut before, other), Ok(without_landing_pad(hash)));
    assert_eq!(place.read(&before), Ok(other));
}

/// Any bytes as a preamble: read or refused, never more.
fn any_preamble(input: &mut Input<'_>) {
    let place = match input.u8() & 3 {
        0 => HashPlace::Kcfi { padding: input.u8() },
        number => HashPlace::FineIbt(GENERATIONS[usize::from(number) - 1]),
    };
    let hash = input.u32();
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < 300 {
        bytes.push(input.u8());
    }
    let before = bytes.clone();
    let to_entry = usize::from(place.to_entry());
    match (place.read(&before), place.replace(&mut bytes, hash)) {
        (Ok(found), Ok(old)) => {
            assert_eq!(found, old);
            let at = before.len() - to_entry;
            assert_eq!(before[at..at + 4], found.to_le_bytes());
            assert_eq!(place.read(&bytes), Ok(hash));
        }
        (_, Err(error)) => {
            assert_eq!(bytes, before);
            assert!(!error.to_string().is_empty());
        }
        (Err(error), Ok(_)) => panic!("{error}, and yet it was replaced"),
    }
}

/// Programs with rising indexes, mostly.
fn dispatched(input: &mut Input<'_>) {
    let at = input.u64();
    let mut index = 0_u32;
    let mut programs = Vec::new();
    for _ in 0..input.u8() % 65 {
        index = index.wrapping_add(u32::from(input.u8()).pow(2) + 1);
        programs.push((index, input.address(at)));
    }
    let Some(guard) =
        guard(input, at, Check::FineIbt { hash: 1, generation: Generation::Udb, paranoid: false })
    else {
        return;
    };
    let missing = input.u32();
    let search = Dispatcher::Search(&programs);
    let emit = |code: &mut CodeBuffer<'_>| search.emit(code, &guard.hardening);
    if let Some((bytes, start)) = emitted(at, search.max_size(), emit) {
        let inside = |address: u64| address.wrapping_sub(at) < bytes.len() as u64;
        let mut ends = programs.iter().map(|&(_, program)| program);
        if guard.is_in(at, bytes.len()) || ends.any(|end| inside(end) || guard.is_in(end, 1)) {
            return;
        }
        for &(index, program) in &programs {
            assert_eq!(run(&guard, at, &bytes, start, index, &[]), Stop::Left(program));
        }
        if programs.iter().all(|&(index, _)| index != missing) {
            assert_eq!(run(&guard, at, &bytes, start, missing, &[]), Stop::Return);
        }
    }
    let stride = input.choose(&[Stride::Eight, Stride::Sixteen]);
    let column = input.u64();
    let indexed = Dispatcher::Indexed { column, stride };
    let emit = |code: &mut CodeBuffer<'_>| indexed.emit(code, &guard.hardening);
    let Some((bytes, start)) = emitted(at, indexed.max_size(), emit) else { return };
    if guard.is_in(at, bytes.len()) {
        return;
    }
    let apart = if stride == Stride::Eight { 8 } else { 16 };
    for &(index, program) in &programs {
        // A check goes to the preamble.
        let target = if guard.has(Mitigations::CFI) { program.wrapping_sub(16) } else { program };
        if target.wrapping_sub(at) < bytes.len() as u64 || guard.is_in(target, 1) {
            continue;
        }
        let place = column.wrapping_add(u64::from(index) * apart);
        // One word cannot be both.
        if place == context(at).wrapping_add(INDEX) {
            continue;
        }
        let stop = run(&guard, at, &bytes, start, index, &[(place, program)]);
        assert_eq!(stop, Stop::Left(target));
    }
}

/// Where programs find what they get first: away from the code and what belongs to it.
const fn context(at: u64) -> u64 {
    at ^ 1 << 62
}

/// Runs a dispatcher on a context with `index`.
fn run(
    guard: &Guard,
    at: u64,
    bytes: &[u8],
    start: u64,
    index: u32,
    readable: &[(u64, u64)],
) -> Stop {
    let context = context(at);
    let mut flow = guard.flow(vec![(at, bytes)]);
    flow.regs[RDI] = context;
    flow.regs[RAX] = u64::MAX;
    flow.readable.push((context.wrapping_add(INDEX), u64::from(index)));
    flow.readable.extend(readable);
    flow.run(start)
}

/// Every row calls its origin and returns.
fn call_table(input: &mut Input<'_>) {
    let at = input.u64();
    let origins: Vec<Origin> =
        (0..input.u8() % 33).map(|_| Origin::new(input.address(at))).collect();
    let endbr64 = input.choose(&[false, true]);
    let Some(guard) = guard(input, at, Check::None) else { return };
    let table = CallTable { origins: &origins, endbr64 };
    let emit = |code: &mut CodeBuffer<'_>| table.emit(code, &guard.hardening);
    let Some((bytes, select)) = emitted(at, table.max_size(&guard.hardening), emit) else { return };
    if guard.is_in(at, bytes.len()) {
        return;
    }
    for (index, origin) in (0..).zip(&origins) {
        if origin.get().wrapping_sub(at) < bytes.len() as u64 || guard.is_in(origin.get(), 1) {
            continue;
        }
        let mut flow = guard.flow(vec![(at, &bytes)]);
        flow.regs[R11] = index;
        assert_eq!(flow.run(select), Stop::Left(origin.get()));
        assert_eq!(flow.counts, u32::from(guard.has(Mitigations::CALL_DEPTH)));
        let [back] = flow.stack[..] else { panic!("{:x?}", flow.stack) };
        flow.stack.clear();
        assert_eq!(flow.run(back), Stop::Return);
    }
}

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => checked_call(&mut input),
        1 => any_preamble(&mut input),
        2 => dispatched(&mut input),
        _ => call_table(&mut input),
    }
}
