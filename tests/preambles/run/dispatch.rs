//! Dispatchers find every program, and call tables every origin, under every set of mitigations.

use core::mem;

use fentry::addr::Origin;
use fentry::emit::x86_64::{
    Bhi, CallDepth, CallTable, Check, Dispatcher, EntryBody, Generation, Hardening, Preamble,
    Symbols, TARGET,
};
use fentry::emit::{CookiePlace, EmitError, IndexFrom, Mitigations, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{Mem, Reg, call, mov_imm32, mov_imm64, mov_reg_reg, mov_store64, ret};
use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::machine::{COUNT, FREE, Ground, set_gs_base, with_ground};
use crate::{emitted, fineibt};

const PREAMBLE: Preamble = fineibt(0x1234_5678, Generation::Udb, Bhi::None);
/// Bytes from one program to the next, and where the dispatcher is behind them.
const STRIDE: u64 = 64;
/// What a program returns: this and its number.
const FIRST: u32 = 1000;
/// The index in what a program gets first, by its offset in bytes.
const INDEX: usize = 64 / 8;

/// Functions that return their numbers, behind a preamble; and the place behind them.
fn functions(ground: &Ground, count: u32) -> (Vec<u64>, u64) {
    let mut entries = Vec::new();
    let mut at = FREE;
    for number in 0..count {
        ground.emit(at, |code| {
            entries.push(PREAMBLE.emit(code).unwrap());
            mov_imm32(code, Reg::Rax, FIRST + number).unwrap();
            ret(code).unwrap();
        });
        at += STRIDE;
    }
    (entries, at)
}

/// Every set of mitigations there is for x86-64, with what it needs.
fn hardenings(ground: &Ground, check: Check) -> Vec<Hardening> {
    let [indirect_thunk, return_thunk] = ground.thunks();
    let symbols = Symbols {
        indirect_thunk: Some(indirect_thunk),
        return_thunk: Some(return_thunk),
        call_depth: Some(CallDepth::Absolute(0)),
        check,
    };
    (0..Mitigations::SIGNED_RETURNS.bits())
        .filter_map(|bits| Hardening::new(Mitigations::from_bits_retain(bits), symbols).ok())
        .collect()
}

/// What the dispatcher at `at` returns for a context with `index`.
fn dispatched(at: u64, index: u32) -> u64 {
    let mut context = [0_u64; 13];
    context[INDEX] = u64::from(index);
    // SAFETY: a program that reads the index of its context and goes on as another, which
    // returns its number; or returns at once, with the index.
    unsafe {
        let program: unsafe extern "C" fn(*const u64) -> u64 = mem::transmute(at as usize);
        program(context.as_ptr())
    }
}

/// Emits at `at` and returns what was emitted, its start and its bytes.
fn place(
    ground: &Ground,
    at: u64,
    max_size: usize,
    emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<u64, EmitError>,
) -> (u64, Vec<u8>) {
    let mut start = 0;
    let mut bytes = Vec::new();
    ground.emit(at, |code| {
        let before = code.position();
        start = emit(code).unwrap();
        bytes.extend_from_slice(&code.written()[before..]);
    });
    assert!(bytes.len() <= max_size, "{} of {max_size} bytes", bytes.len());
    (start, bytes)
}

/// How many indirect branches are in `bytes`; nothing may be no instruction.
fn indirect_branches(bytes: &[u8]) -> usize {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    decoder
        .iter()
        .inspect(|instruction| assert!(!instruction.is_invalid()))
        .filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::IndirectBranch | FlowControl::IndirectCall
            )
        })
        .count()
}

/// Numbers of programs, and how far apart their indexes are.
const LISTS: [(u32, u32); 12] = [
    (0, 1),
    (1, 1),
    (2, 3),
    (3, 1),
    (4, 1),
    (5, 1),
    (6, 2),
    (7, 1),
    (9, 1),
    (33, 5),
    (100, 1),
    (1000, 1 << 21),
];

#[test]
fn a_search_finds_every_program_and_no_other() {
    with_ground(|ground| {
        let (entries, at) = functions(ground, 1000);
        for hardening in hardenings(ground, PREAMBLE.check()) {
            for (count, apart) in LISTS {
                let programs: Vec<(u32, u64)> = (0..count)
                    .zip(&entries)
                    .map(|(number, &entry)| (7 + number * apart, entry))
                    .collect();
                let search = Dispatcher::Search(&programs);
                let max = search.max_size();
                let (start, bytes) = place(ground, at, max, |code| search.emit(code, &hardening));
                assert_eq!(indirect_branches(&bytes), 0);
                ground.executable(|| {
                    for (number, &(index, _)) in programs.iter().enumerate() {
                        let found = dispatched(start, index);
                        assert_eq!(found, u64::from(FIRST) + number as u64, "{hardening:?}");
                    }
                    for missing in [0, 6, 7 + count * apart, u32::MAX - 1] {
                        if programs.iter().all(|&(index, _)| index != missing) {
                            assert_eq!(dispatched(start, missing), u64::from(missing));
                        }
                    }
                });
            }
        }
    });
}

#[test]
fn a_column_of_programs_is_indexed() {
    with_ground(|ground| {
        let (entries, at) = functions(ground, 40);
        let records: Vec<[u64; 2]> = entries.iter().map(|&entry| [entry, 0]).collect();
        for hardening in hardenings(ground, PREAMBLE.check()) {
            for (stride, column) in [
                (Stride::Eight, entries.as_ptr() as u64),
                (Stride::Sixteen, records.as_ptr() as u64),
            ] {
                let indexed = Dispatcher::Indexed { column, stride };
                let max = indexed.max_size();
                let (start, bytes) = place(ground, at, max, |code| indexed.emit(code, &hardening));
                let retpoline = hardening.mitigations().contains(Mitigations::RETPOLINE);
                assert_eq!(indirect_branches(&bytes), usize::from(!retpoline));
                ground.executable(|| {
                    for index in 0..40 {
                        assert_eq!(dispatched(start, index), u64::from(FIRST + index));
                    }
                });
            }
        }
    });
}

#[test]
fn an_image_runs_each_functions_own_program() {
    with_ground(|ground| {
        let count = ground.at(COUNT) as *mut u64;
        let mut at = FREE;
        let mut programs = Vec::new();
        // Programs that write their number where it can be seen.
        for number in 0..40_u32 {
            programs.push((number, ground.at(at)));
            ground.emit(at, |code| {
                mov_imm64(code, Reg::R10, count as u64).unwrap();
                mov_imm32(code, Reg::R11, FIRST + number).unwrap();
                mov_store64(code, Mem::at(Reg::R10, 0), Reg::R11).unwrap();
                ret(code).unwrap();
            });
            at += STRIDE;
        }
        let column: Vec<u64> = programs.iter().map(|&(_, program)| program).collect();
        let cookies = [0_u64; 40];
        let indexed = Dispatcher::Indexed { column: column.as_ptr() as u64, stride: Stride::Eight };
        for dispatcher in [Dispatcher::Search(&programs), indexed] {
            let max = dispatcher.max_size();
            let (target, bytes) =
                place(ground, at, max, |code| dispatcher.emit(code, &Hardening::NONE));
            let body = at + bytes.len() as u64;
            let cookie = CookiePlace { column: cookies.as_ptr() as u64, stride: Stride::Eight };
            let image = EntryBody {
                index: IndexFrom::Thunk,
                return_to_entry: 5,
                vectors: Vectors::Untouched,
                calls: &[ProgramCall { target, data: None, cookie, session: None }],
            };
            let function = ground.emit(body, |code| image.emit(code).unwrap());
            ground.emit(function, |code| {
                mov_reg_reg(code, TARGET, Reg::Rdi).unwrap();
                call(code, ground.at(body)).unwrap();
                mov_reg_reg(code, Reg::Rax, Reg::Rdi).unwrap();
                ret(code).unwrap();
            });
            ground.executable(|| {
                for index in 0..40 {
                    // SAFETY: it calls the image, which keeps the argument.
                    let kept = unsafe {
                        let function: unsafe extern "C" fn(u64) -> u64 =
                            mem::transmute(ground.at(function) as usize);
                        function(index)
                    };
                    // SAFETY: a word of the mapping, which the programs write.
                    let seen = unsafe { count.read_volatile() };
                    assert_eq!((kept, seen), (index, u64::from(FIRST) + index));
                }
            });
        }
    });
}

#[test]
fn a_call_table_calls_the_origin_of_the_index() {
    with_ground(|ground| {
        let (entries, at) = functions(ground, 40);
        let origins: Vec<Origin> = entries.iter().map(|&entry| Origin::new(entry)).collect();
        set_gs_base(ground.at(COUNT));
        for hardening in hardenings(ground, PREAMBLE.check()) {
            for endbr64 in [false, true] {
                let table = CallTable { origins: &origins, endbr64 };
                let max = table.max_size(&hardening);
                // Rows are aligned wherever the table begins.
                let begin = at + 13;
                let (select, bytes) =
                    place(ground, begin, max, |code| table.emit(code, &hardening));
                let retpoline = hardening.mitigations().contains(Mitigations::RETPOLINE);
                assert_eq!(indirect_branches(&bytes), usize::from(!retpoline));
                let caller = at + 13 + bytes.len() as u64;
                ground.emit(caller, |code| {
                    mov_reg_reg(code, TARGET, Reg::Rdi).unwrap();
                    call(code, select).unwrap();
                    ret(code).unwrap();
                });
                ground.executable(|| {
                    for index in 0..40 {
                        // SAFETY: it calls a function that returns its number.
                        let found = unsafe {
                            let caller: unsafe extern "C" fn(u64) -> u64 =
                                mem::transmute(ground.at(caller) as usize);
                            caller(index)
                        };
                        assert_eq!(found, u64::from(FIRST) + index, "{hardening:?}");
                    }
                });
            }
        }
        set_gs_base(0);
    });
}

#[test]
fn a_list_out_of_order_is_refused() {
    for (programs, position, index) in [
        (vec![(1, 0), (1, 0)], 1, 1),
        (vec![(1, 0), (2, 0), (0, 0)], 2, 0),
        (vec![(5, 0), (4, 0), (3, 0)], 1, 4),
    ] {
        let mut bytes = [0; 512];
        let mut code = CodeBuffer::new(&mut bytes, 0);
        let error = Dispatcher::Search(&programs).emit(&mut code, &Hardening::NONE).unwrap_err();
        assert_eq!(error, EmitError::Order { position, index });
        assert_eq!(code.position(), 0);
    }
}

#[test]
fn rows_of_a_call_table_are_as_close_as_they_can_be() {
    let origins = [Origin::new(0x40_1000), Origin::new(0x40_2000)];
    let table = CallTable { origins: &origins, endbr64: false };
    let (bytes, select) = emitted(0x40_0000, |code| table.emit(code, &Hardening::NONE));
    assert_eq!(select, 0x40_0010);
    let expected = [
        0xe8, 0xfb, 0x0f, 0x00, 0x00, // call 0x401000
        0xc3, // ret
        0xcc, 0xcc, // int3
        0xe8, 0xf3, 0x1f, 0x00, 0x00, // call 0x402000
        0xc3, // ret
        0xcc, 0xcc, // int3
        0x4c, 0x8d, 0x15, 0xe9, 0xff, 0xff, 0xff, // lea -0x17(%rip), %r10
        0x4f, 0x8d, 0x1c, 0xda, // lea (%r10,%r11,8), %r11
        0x41, 0xff, 0xe3, // jmp *%r11
    ];
    assert_eq!(bytes, expected);
}
