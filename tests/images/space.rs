//! What holds for every image that can be emitted.

use fentry::emit::x86_64::EntryBody;
use fentry::emit::{CookiePlace, EmitError, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::{CodeBuffer, EncodeError};
use fentry::layout::x86_64::{IBT, PLAIN, layout};
use fentry::layout::{EntryLayout, LandingPad};
use iced_x86::Register;

use crate::symbolic::{CONTEXT, Call, Known, Machine, Value};
use crate::{emit, in_column};

/// Images for the lower half of the address space and for a kernel.
const IMAGES: [u64; 2] = [0x5000_0000, 0xffff_ffff_c000_0000];
const VECTORS: [Vectors; 4] = [Vectors::Untouched, Vectors::Xmm, Vectors::Ymm, Vectors::Zmm];
const MOST_PROGRAMS: usize = 16;

/// The argument registers, in the psABI's order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Every layout that the padding and landing pad of a compiler can make.
fn layouts() -> impl Iterator<Item = EntryLayout> {
    let padding = [0, 4, 5, 11, 16, 64];
    padding.into_iter().flat_map(|padding| {
        [LandingPad::None, LandingPad::Endbr64].map(|pad| layout(padding, pad).unwrap())
    })
}

/// Where programs are.
#[derive(Clone, Copy, Debug)]
enum Reach {
    Near,
    Far,
    /// By turns.
    Mixed,
}

/// What programs get as their third argument.
#[derive(Clone, Copy, Debug)]
enum Data {
    None,
    Bits32,
    Bits64,
}

/// The programs of one image, no two of them alike.
fn programs(image: u64, count: usize, reach: Reach, data: Data, first: Stride) -> Vec<ProgramCall> {
    let call = |position: u64| {
        let near = match reach {
            Reach::Near => true,
            Reach::Far => false,
            Reach::Mixed => position.is_multiple_of(2),
        };
        let target = if near { image + 0x1_0000 } else { image ^ (1 << 40) } + 0x100 * position;
        let data = match data {
            Data::None => None,
            Data::Bits32 => Some(0xffff_ffff - position),
            Data::Bits64 => Some(u64::MAX - position),
        };
        // As many programs have lane 0 as a set can have: one.
        let stride = if position == 0 { first } else { Stride::Eight };
        let column = 0x7e00_0000_0000 + (position << 24);
        ProgramCall { target, data, cookie: CookiePlace { column, stride }, session: None }
    };
    (0..count as u64).map(call).collect()
}

/// Executes an image on symbols and compares what the programs and the function get.
fn check(body: &EntryBody<'_>, image: u64) {
    let bytes = emit(body, image);
    let return_to_index = match body.index {
        IndexFrom::Slot { return_to_index } => Some(return_to_index),
        _ => None,
    };
    let known = Known { vectors: body.vectors, return_to_index };
    let machine = Machine::run(&bytes, image, known);

    assert_eq!(machine.calls.len(), body.calls.len());
    for (call, program) in machine.calls.iter().zip(body.calls) {
        // A direct call is 8 bytes shorter than `mov r11, imm64; call r11`.
        let next = if call.through_register { call.next - 8 } else { call.next };
        let distance = program.target.wrapping_sub(next).cast_signed();
        let column = program.cookie.column;
        let distance_of_cookies = match program.cookie.stride {
            Stride::Eight => 8,
            Stride::Sixteen => 16,
        };
        let expected = Call {
            next: call.next,
            target: program.target,
            // An indirect branch only where there is no other way.
            through_register: i32::try_from(distance).is_err(),
            context: Value::Entry(-CONTEXT),
            cookie: Value::Cookie { column, distance: distance_of_cookies },
            data: program.data.map_or(call.data, Value::Number),
        };
        assert_eq!(*call, expected);
    }

    // What programs found in the context, but for the arguments, which they may change.
    assert_eq!(machine.context(48, 8), Value::Original(Register::RAX));
    assert_eq!(machine.context(56, 8), Value::Original(Register::R10));
    assert_eq!(machine.context(64, 4), Value::Index(1));
    let width = VECTORS.iter().position(|vectors| *vectors == body.vectors).unwrap() as u64;
    assert_eq!(machine.context(68, 4), Value::Number(width << 1));
    assert_eq!(machine.context(72, 8), Value::Return(-i64::from(body.return_to_entry)));
    if width > 0 {
        assert_eq!(machine.context(80, 8), Value::Aligned(-8 * [0, 16, 32, 64][width as usize]));
    }
    assert_eq!(machine.context(88, 8), Value::Original(Register::RBP));
    assert_eq!(machine.context(96, 8), Value::Return(0));

    // What the function gets: everything but `r11`, and what programs made of its arguments.
    let general = (0..16).map(|number| Register::RAX + number);
    for register in general.filter(|&register| register != Register::R11) {
        let argument = ARGUMENTS.iter().position(|&argument| argument == register);
        let expected = match argument {
            _ if register == Register::RSP => Value::Entry(8),
            Some(position) if !body.calls.is_empty() => Value::Argument(position),
            _ => Value::Original(register),
        };
        assert_eq!(machine.get(register), expected, "{register:?}");
    }
    let saved = match body.vectors {
        Vectors::Xmm => 16,
        Vectors::Ymm => 32,
        _ => 64,
    };
    assert!(machine.intact.iter().all(|&bytes| bytes >= saved), "{:?}", machine.intact);
}

/// Calls `each` for every kind of image of up to `most` programs.
fn each_kind(image: u64, most: usize, mut each: impl FnMut(&[ProgramCall], Vectors)) {
    for count in 0..=most {
        for reach in [Reach::Near, Reach::Far, Reach::Mixed] {
            for data in [Data::None, Data::Bits32, Data::Bits64] {
                for first in [Stride::Eight, Stride::Sixteen] {
                    let calls = programs(image, count, reach, data, first);
                    VECTORS.into_iter().for_each(|vectors| each(&calls, vectors));
                }
            }
        }
    }
}

#[test]
fn every_image_gives_programs_their_arguments_and_functions_their_registers() {
    let mut images = IMAGES.into_iter().cycle();
    for layout in layouts() {
        let slot = layout.return_to_index();
        let slot = slot.map(|return_to_index| IndexFrom::Slot { return_to_index });
        for index in slot.into_iter().chain([IndexFrom::Thunk]) {
            let image = images.next().unwrap();
            // What programs add to an image does not depend on the layout.
            let common = layout == PLAIN || layout == IBT;
            let most = if common { MOST_PROGRAMS } else { 2 };
            each_kind(image, most, |calls, vectors| {
                let return_to_entry = layout.return_to_entry();
                check(&EntryBody { index, return_to_entry, vectors, calls }, image);
            });
        }
    }
}

#[test]
fn a_body_is_no_larger_than_it_says_and_fits_no_smaller_buffer() {
    // The largest displacements that a layout has make the largest instructions.
    let index = IndexFrom::Slot { return_to_index: 0x8000 };
    each_kind(IMAGES[0], MOST_PROGRAMS, |calls, vectors| {
        let body = EntryBody { index, return_to_entry: 0x8000, vectors, calls };
        let mut bytes = vec![0xa5; EntryBody::max_size(calls.len())];
        let mut code = CodeBuffer::new(&mut bytes, IMAGES[0]);
        body.emit(&mut code).unwrap();
        let len = code.position();
        assert!(bytes[len..].iter().all(|&byte| byte == 0xa5), "bytes behind the image");
        // Every place where a body of one program can be cut; with more, the same repeats.
        let sizes = if calls.len() <= 1 { 0..len } else { len - 1..len };
        for size in sizes {
            let mut code = CodeBuffer::new(&mut bytes[..size], IMAGES[0]);
            let error = body.emit(&mut code);
            assert!(
                matches!(error, Err(EmitError::Encode(EncodeError::Overflow { .. }))),
                "{error:?} with {size} bytes of {len}"
            );
        }
    });
}

#[test]
fn a_body_without_exits_has_no_session_words() {
    let [image, _] = IMAGES;
    each_kind(image, 3, |calls, vectors| {
        let Some((last, others)) = calls.split_last() else { return };
        let calls = [others, &[ProgramCall { session: Some(0), ..*last }]].concat();
        let body =
            EntryBody { index: IndexFrom::Thunk, return_to_entry: 5, vectors, calls: &calls };
        let mut bytes = vec![0; EntryBody::max_size(calls.len())];
        let mut code = CodeBuffer::new(&mut bytes, image);
        assert_eq!(body.emit(&mut code), Err(EmitError::Session { number: 0, words: 0 }));
        assert_eq!(code.position(), 0, "nothing is emitted");
    });
}

/// A call reaches from -2^31 to 2^31 - 1 bytes from the instruction behind it.
#[test]
fn a_direct_call_is_used_exactly_as_far_as_it_reaches() {
    let [image, _] = IMAGES;
    let image = image + (1 << 32);
    let call_of = |target| {
        let calls = [in_column(target, 0x7e00_0000_0000)];
        let index = IndexFrom::Thunk;
        let vectors = Vectors::Untouched;
        let body = EntryBody { index, return_to_entry: 5, vectors, calls: &calls };
        check(&body, image);
        let known = Known { vectors, return_to_index: None };
        Machine::run(&emit(&body, image), image, known).calls[0]
    };
    let next = call_of(image).next;
    let lowest = next - (1 << 31);
    let highest = next + (1 << 31) - 1;
    for (target, through_register) in
        [(lowest, false), (lowest - 1, true), (highest, false), (highest + 1, true)]
    {
        assert_eq!(call_of(target).through_register, through_register, "{target:#x}");
    }
}
