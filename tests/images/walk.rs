//! Every kind of image with exit programs, and every place where it can be cut.

use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::{
    Bodies, EXIT_THUNK_SIZE, Hardening, Kept, MakeSideStack, SideStackPlace, exit_thunk,
};
use fentry::emit::{CookiePlace, EmitError, IndexFrom, ProgramCall, SESSIONS, Stride, Vectors};
use fentry::encode::{CodeBuffer, EncodeError};

use crate::branches::Call;
use crate::case::{Case, Form};
use crate::jumps::is_exit_thunk;
use crate::{in_column, in_records};

pub const IMAGE: u64 = 0x5000_0000;
const ORIGIN: u64 = 0x5100_0005;
const VECTORS: [Vectors; 4] = [Vectors::Untouched, Vectors::Xmm, Vectors::Ymm, Vectors::Zmm];

/// Programs near and far, with cookies in records and columns, and every kind of data.
pub fn programs(count: usize, near: bool) -> Vec<ProgramCall> {
    let call = |position: usize| {
        let target = if near { 0x5200_0000 } else { 0x7f00_0000_0000 } + 0x100 * position as u64;
        let call = if position == 0 { in_records } else { in_column };
        let data = [None, Some(7), Some(1 << 40)][position % 3];
        let session = (position % 2 == 1).then_some((position / 2) as u8);
        ProgramCall { data, session, ..call(target, 0x7e00_0000_0000) }
    };
    (0..count).map(call).collect()
}

const fn functions(stride: Stride) -> CookiePlace {
    CookiePlace { column: 0x7d00_0000_0000, stride }
}

pub const SIDE_STACK: Form = Form::SideStack(functions(Stride::Sixteen));

pub const fn framed(stack_arguments: u8) -> Form {
    Form::Frame(functions(Stride::Sixteen), stack_arguments)
}

const fn swap(index: IndexFrom) -> Form {
    Form::Swap { index, return_to_entry: 0x8000 }
}

const fn called(stack_arguments: u8) -> Form {
    let (function, origin) = (Entry::new(ORIGIN - 5), Origin::new(ORIGIN));
    Form::Called { index: 9, function, origin, stack_arguments }
}

const FORMS: [Form; 11] = [
    framed(0),
    framed(1),
    framed(4),
    framed(255),
    Form::SideStack(functions(Stride::Eight)),
    SIDE_STACK,
    swap(IndexFrom::Thunk),
    swap(IndexFrom::Slot { return_to_index: 0x8000 }),
    called(0),
    called(1),
    called(255),
];

/// Programs that may modify the return, where the form has such.
pub fn modify(form: Form, entries: &[ProgramCall]) -> Vec<ProgramCall> {
    let of_form = matches!(form, Form::SideStack(_) | Form::Frame(..));
    let calls = entries.iter().take(if of_form { 2 } else { 0 });
    calls.map(|call| ProgramCall { session: None, ..*call }).collect()
}

/// Emits an image, and follows its paths.
pub fn walk(case: &Case<'_>) -> Vec<Call> {
    let mut bytes = vec![0; case.max_size()];
    let mut code = CodeBuffer::new(&mut bytes, case.address);
    let bodies = case.emit(&mut code).unwrap();
    case.walk(code.written(), bodies)
}

fn each_case(mut each: impl FnMut(&Case<'_>)) {
    for form in FORMS {
        for vectors in VECTORS {
            for target in [None, Some(0x5300_0000), Some(0x7f10_0000_0000)] {
                for (entries, exits) in [(0, 0), (0, 1), (1, 0), (1, 1), (3, 3), (16, 16)] {
                    for near in [true, false] {
                        let make = target.map(|target| MakeSideStack { target, vectors });
                        let (entries, exits) = (programs(entries, near), programs(exits, near));
                        each(&Case {
                            address: IMAGE,
                            form,
                            vectors,
                            side_stack: SideStackPlace { thread_offset: -0x1000, make },
                            entries: &entries,
                            modify: &modify(form, &entries),
                            exits: &exits,
                            hardening: Hardening::NONE,
                            hash: 0,
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn every_path_through_every_image_is_balanced() {
    each_case(|case| drop(walk(case)));
}

#[test]
fn a_session_word_that_no_call_has_is_refused() {
    each_case(|case| {
        let with_session = |calls: &[ProgramCall], session| {
            calls.iter().map(|call| ProgramCall { session, ..*call }).collect::<Vec<_>>()
        };
        for number in [SESSIONS - 1, SESSIONS, u8::MAX] {
            for at_entry in [true, false] {
                let mut case = Case { ..*case };
                let (before, after) = (with_session(case.entries, Some(number)), case.exits);
                let changed = if at_entry { before } else { with_session(after, Some(number)) };
                if at_entry {
                    case.entries = &changed;
                } else {
                    case.exits = &changed;
                }
                let mut bytes = vec![0; case.max_size()];
                let mut code = CodeBuffer::new(&mut bytes, IMAGE);
                let emitted = case.emit(&mut code);
                if changed.is_empty() || number < SESSIONS {
                    emitted.unwrap();
                } else {
                    assert_eq!(emitted, Err(EmitError::Session { number, words: SESSIONS }));
                    assert_eq!(code.position(), 0, "nothing is emitted");
                }
            }
        }
    });
}

#[test]
fn an_image_fits_no_smaller_buffer() {
    each_case(|case| {
        let mut bytes = vec![0xa5; case.max_size() + 1];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        case.emit(&mut code).unwrap();
        let len = code.position();
        assert!(len <= case.max_size(), "{:?}: {len} bytes of {}", case.form, case.max_size());
        assert!(bytes[len..].iter().all(|&byte| byte == 0xa5), "bytes behind the image");
        let sizes = if case.entries.len() == 1 && case.exits.len() == 1 { 0 } else { len - 1 };
        for size in sizes..len {
            let mut code = CodeBuffer::new(&mut bytes[..size], IMAGE);
            let error = case.emit(&mut code);
            assert!(matches!(error, Err(EmitError::Encode(EncodeError::Overflow { .. }))));
        }
    });
}

#[test]
fn a_thunk_has_direct_branches_only() {
    let bodies = Bodies { enter: IMAGE + 0x1000, exit: IMAGE - 0x1000, kept: Kept::OnSideStack };
    for index in [0, 1, u32::MAX] {
        let mut bytes = [0; EXIT_THUNK_SIZE];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        exit_thunk(&mut code, index, bodies, Origin::new(ORIGIN)).unwrap();
        assert_eq!(code.remaining(), 0);
        is_exit_thunk(&bytes, IMAGE, index, bodies, ORIGIN, &Hardening::NONE);
    }
    for size in 0..EXIT_THUNK_SIZE {
        let mut bytes = vec![0; size];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        let error = exit_thunk(&mut code, 0, bodies, Origin::new(ORIGIN));
        assert!(matches!(error, Err(EmitError::Encode(EncodeError::Overflow { .. }))));
    }
}
