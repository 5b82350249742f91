//! Images with exit programs, of every form, followed on all their paths: any vectors, programs,
//! addresses and mitigations. And what jumps to them, or to what runs instead of a function.

use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::{
    Bodies, CallDepth, EXIT_THUNK_SIZE, HARDENED_REPLACEMENT_SIZE, Hardening, MakeSideStack,
    REPLACEMENT_SIZE, SideStackPlace, exit_thunk_hardened, replacement, replacement_hardened,
};
use fentry::emit::{
    CookiePlace, EmitError, IndexFrom, Mitigations, ProgramCall, SESSIONS, Stride, Vectors,
};
use fentry::encode::{CodeBuffer, EncodeError};

use super::guard::{Guard, checked, emitted, guard};
use super::input::Input;
use crate::case::{Case, Form};
use crate::jumps::{is_exit_thunk, is_replacement};

const VECTORS: [Vectors; 4] = [Vectors::Untouched, Vectors::Xmm, Vectors::Ymm, Vectors::Zmm];
/// As many programs as a function can have of one kind.
const MAX_PROGRAMS: usize = fentry::attach::MAX_PROGRAMS;
/// What is within so many bytes of an image's address, all of the image reaches.
const SURELY_REACHED: u64 = 1 << 30;

fn place(input: &mut Input<'_>) -> CookiePlace {
    let stride = input.choose(&[Stride::Eight, Stride::Sixteen]);
    CookiePlace { column: input.u64(), stride }
}

fn form(input: &mut Input<'_>, near: u64) -> Form {
    match input.u8() % 6 {
        0 | 1 => Form::SideStack(place(input)),
        2 | 3 => Form::Frame(place(input), input.u8()),
        4 => {
            let slot = input.u8() & 1 == 0;
            let (return_to_index, return_to_entry) = (input.u16(), input.u16());
            let index = if slot { IndexFrom::Slot { return_to_index } } else { IndexFrom::Thunk };
            Form::Swap { index, return_to_entry }
        }
        _ => Form::Called {
            index: input.u32(),
            function: Entry::new(input.u64()),
            origin: Origin::new(input.address(near)),
            stack_arguments: input.u8(),
        },
    }
}

fn programs(input: &mut Input<'_>, near: u64) -> Vec<ProgramCall> {
    let count = match input.u8() {
        number @ 0..240 => usize::from(number % 5),
        _ => MAX_PROGRAMS,
    };
    let program = |_| {
        let flags = input.u8();
        let data = match flags & 3 {
            0 | 1 => None,
            2 => Some(u64::from(input.u32())),
            _ => Some(input.u64()),
        };
        let session = (flags & 4 != 0).then_some(flags >> 3 & 0x0f).filter(|&s| s < SESSIONS);
        ProgramCall { target: input.address(near), data, cookie: place(input), session }
    };
    (0..count).map(program).collect()
}

/// Whether all of what is at `at` reaches `target`.
const fn surely_reached(at: u64, target: u64) -> bool {
    target.wrapping_sub(at).cast_signed().unsigned_abs() < SURELY_REACHED
}

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let address = input.u64();
    let form = form(&mut input, address);
    let (check, hash) = checked(&mut input);
    let Some(mut guard) = guard(&mut input, address, check) else { return };
    jump_instead(&mut input, &guard);
    let hardened = matches!(form, Form::SideStack(_) | Form::Frame(..));
    if !hardened {
        guard.hardening = Hardening::NONE;
    }
    let vectors = input.choose(&VECTORS);
    let make = (input.u8() & 1 != 0).then(|| {
        let vectors = input.choose(&VECTORS);
        MakeSideStack { target: input.address(address), vectors }
    });
    let side_stack = SideStackPlace { thread_offset: input.i32(), make };
    let thunk = input.address(address);
    let index = input.u32();
    let origin = input.address(thunk);
    let cut = usize::from(input.u16());
    let (entries, exits) = (programs(&mut input, address), programs(&mut input, address));
    let modify = if hardened { programs(&mut input, address) } else { Vec::new() };
    let case = Case {
        address,
        form,
        vectors,
        side_stack,
        entries: &entries,
        modify: &modify,
        exits: &exits,
        hardening: guard.hardening,
        hash,
    };
    let emit = |code: &mut CodeBuffer<'_>| case.emit(code);
    let Some((bytes, bodies)) = emitted(address, case.max_size(), emit) else {
        let count = match guard.symbols.call_depth {
            Some(CallDepth::RipRelative(count)) => Some(count),
            _ => None,
        };
        let needed = [
            guard.hardening.indirect_thunk(),
            guard.hardening.return_thunk(),
            count.filter(|_| guard.has(Mitigations::CALL_DEPTH)),
            if let Form::Called { origin, .. } = form { Some(origin.get()) } else { None },
        ];
        let missed = needed.into_iter().flatten().any(|to| !surely_reached(address, to));
        return assert!(missed, "all that it needs is in reach");
    };
    fits_nothing_smaller(&case, cut % bytes.len());
    if hardened {
        is_jumped_to(thunk, index, bodies, origin, &guard.hardening);
    }
    // The thunks are told from all else by their addresses.
    let called = entries.iter().chain(&modify).chain(&exits).map(|program| program.target);
    let mut called = called.chain(make.map(|make| make.target));
    let confused = called.any(|target| guard.hardening.indirect_thunk() == Some(target));
    if confused || guard.is_in(address, bytes.len()) {
        return;
    }
    case.walk(&bytes, bodies);
}

/// That a buffer of `size` bytes is refused, and nothing behind it changed.
fn fits_nothing_smaller(case: &Case<'_>, size: usize) {
    const FILL: u8 = 0xa5;
    let mut bytes = vec![FILL; size + 64];
    let refused = case.emit(&mut CodeBuffer::new(&mut bytes[..size], case.address));
    assert!(matches!(refused, Err(EmitError::Encode(EncodeError::Overflow { .. }))));
    assert!(bytes[size..].iter().all(|&byte| byte == FILL));
}

/// The thunk of these bodies.
fn is_jumped_to(at: u64, index: u32, bodies: Bodies, origin: u64, hardening: &Hardening) {
    let emit = |code: &mut CodeBuffer<'_>| {
        exit_thunk_hardened(code, index, bodies, Origin::new(origin), hardening)
    };
    match emitted(at, EXIT_THUNK_SIZE, emit) {
        Some((bytes, ())) => is_exit_thunk(&bytes, at, index, bodies, origin, hardening),
        None => {
            let needed = [bodies.enter, bodies.exit, origin];
            assert!(needed.into_iter().any(|to| !surely_reached(at, to)));
        }
    }
}

/// What runs instead of a function, with mitigations and without.
fn jump_instead(input: &mut Input<'_>, guard: &Guard) {
    let at = input.u64();
    let target = input.address(at);
    let emit = |code: &mut CodeBuffer<'_>| replacement(code, target);
    let (bytes, ()) = emitted(at, REPLACEMENT_SIZE, emit).expect("no thunk is needed");
    assert_eq!(bytes.len(), REPLACEMENT_SIZE);
    is_replacement(&bytes, at, target, &Hardening::NONE);
    let emit = |code: &mut CodeBuffer<'_>| replacement_hardened(code, target, &guard.hardening);
    match emitted(at, HARDENED_REPLACEMENT_SIZE, emit) {
        Some((bytes, ())) => {
            assert_eq!(bytes.len(), HARDENED_REPLACEMENT_SIZE);
            is_replacement(&bytes, at, target, &guard.hardening);
        }
        None => {
            let thunk = guard.hardening.indirect_thunk().expect("nothing else is needed");
            assert!(!surely_reached(at, thunk), "{thunk:#x} is in reach");
        }
    }
}
