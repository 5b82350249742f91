//! Byte for byte what the sources of Linux say, in the comments above the templates in
//! arch/x86/kernel/alternative.c and in the patches that changed them, and what clang emits.

use fentry::emit::x86_64::{Arity, Bhi, Check, Generation, Preamble, bhi_stub};

use crate::{emitted, fineibt, kcfi};

const HASH: u32 = 0x1234_5678;
const AT: u64 = 0x40_0000;
/// 0x100 behind the place where the calls of stubs end.
const STUB: u64 = AT + 0x10 + 0x100;

/// The bytes of a preamble, those before the entry and those at it.
fn check_preamble(preamble: &Preamble, before: &[u8], at_entry: &[u8]) {
    let (bytes, entry) = emitted(AT, |code| preamble.emit(code));
    assert_eq!(bytes, [before, at_entry].concat(), "{preamble:x?}");
    assert_eq!(entry, AT + before.len() as u64, "{preamble:x?}");
    assert_eq!(usize::from(preamble.before_entry()), before.len());
    assert_eq!(usize::from(preamble.size()), bytes.len());
}

#[test]
fn fineibt_original() {
    check_preamble(
        &fineibt(HASH, Generation::Original, Bhi::None),
        &[
            0xf3, 0x0f, 0x1e, 0xfa, // endbr64
            0x41, 0x81, 0xea, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %r10d
            0x74, 0x03, // je foo
            0x0f, 0x0b, // ud2
            0x90, // nop
        ],
        &[0x66, 0x0f, 0x1f, 0x00],
    );
}

#[test]
fn fineibt_short() {
    check_preamble(
        &fineibt(HASH, Generation::Short, Bhi::None),
        &[
            0xf3, 0x0f, 0x1e, 0xfa, // endbr64
            0x41, 0x81, 0xea, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %r10d
            0x75, 0xf9, // jne to the EA
            0x0f, 0x1f, 0x00, // nopl (%rax)
        ],
        &[0x66, 0x0f, 0x1f, 0x00],
    );
}

#[test]
fn fineibt_udb() {
    check_preamble(
        &fineibt(HASH, Generation::Udb, Bhi::None),
        &[
            0xf3, 0x0f, 0x1e, 0xfa, // endbr64
            0x2d, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %eax
            0x2e, 0x0f, 0x85, 0x03, 0x00, 0x00, 0x00, // jne,pn to the D6
        ],
        &[0x0f, 0x1f, 0x40, 0xd6], // nopl -42(%rax)
    );
}

#[test]
fn fineibt_with_the_first_argument_guarded() {
    for generation in [Generation::Original, Generation::Short] {
        check_preamble(
            &fineibt(HASH, generation, Bhi::FirstArgument),
            &[
                0xf3, 0x0f, 0x1e, 0xfa, // endbr64
                0x41, 0x81, 0xea, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %r10d
                0x49, 0x0f, 0x45, 0xfa, // cmovne %r10, %rdi
                0x75, // jne to the EA: its displacement is at the entry
            ],
            &[0xf5, 0x0f, 0x1f, 0x00], // a direct call finds cmc; nopl (%rax)
        );
    }
    check_preamble(
        &fineibt(HASH, Generation::Udb, Bhi::FirstArgument),
        &[
            0xf3, 0x0f, 0x1e, 0xfa, // endbr64
            0x2d, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %eax
            0x48, 0x0f, 0x45, 0xf8, // cmovne %rax, %rdi
            0x2e, 0x75, 0x03, // jne,pn to the D6
        ],
        &[0x0f, 0x1f, 0x40, 0xd6],
    );
}

#[test]
fn fineibt_with_a_stub() {
    for generation in [Generation::Original, Generation::Short] {
        check_preamble(
            &fineibt(HASH, generation, Bhi::Stub(STUB)),
            &[
                0xf3, 0x0f, 0x1e, 0xfa, // endbr64
                0x41, 0x81, 0xea, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %r10d
                0xe8, 0x00, 0x01, 0x00, 0x00, // call __bhi_args[arity]
            ],
            &[0x66, 0x0f, 0x1f, 0x00],
        );
    }
    check_preamble(
        &fineibt(HASH, Generation::Udb, Bhi::Stub(STUB)),
        &[
            0xf3, 0x0f, 0x1e, 0xfa, // endbr64
            0x2d, 0x78, 0x56, 0x34, 0x12, // subl $0x12345678, %eax
            0x2e, 0x2e, 0xe8, 0x00, 0x01, 0x00, 0x00, // cs cs call __bhi_args[arity]
        ],
        &[0x0f, 0x1f, 0x40, 0xd6],
    );
}

#[test]
fn stubs() {
    let stub = |generation, arguments| {
        let arity = Arity::new(arguments).unwrap();
        emitted(AT, |code| bhi_stub(code, generation, arity)).0
    };
    assert_eq!(stub(Generation::Udb, 0), [0x75, 0x02, 0xc3, 0xcc, 0x0f, 0x0b]);
    assert_eq!(
        stub(Generation::Short, 2),
        [
            0x75, 0x0a, // jne trap
            0x49, 0x0f, 0x45, 0xfa, // cmovne %r10, %rdi
            0x49, 0x0f, 0x45, 0xf2, // cmovne %r10, %rsi
            0xc3, 0xcc, 0x0f, 0x0b,
        ]
    );
    assert_eq!(
        stub(Generation::Udb, 7),
        [
            0x75, 0x1e, // jne trap
            0x48, 0x0f, 0x45, 0xf8, // cmovne %rax, %rdi
            0x48, 0x0f, 0x45, 0xf0, // cmovne %rax, %rsi
            0x48, 0x0f, 0x45, 0xd0, // cmovne %rax, %rdx
            0x48, 0x0f, 0x45, 0xc8, // cmovne %rax, %rcx
            0x4c, 0x0f, 0x45, 0xc0, // cmovne %rax, %r8
            0x4c, 0x0f, 0x45, 0xc8, // cmovne %rax, %r9
            0x48, 0x0f, 0x45, 0xe0, // cmovne %rax, %rsp
            0xc3, 0xcc, 0x0f, 0x0b,
        ]
    );
    assert_eq!(Arity::new(8), None);
}

#[test]
fn kcfi_preambles() {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    check_preamble(&kcfi(HASH, None, 0, false), &[0xb8, 0x78, 0x56, 0x34, 0x12], &[]);
    check_preamble(
        &kcfi(HASH, None, 11, true),
        &[
            0xb8, 0x78, 0x56, 0x34, 0x12, // movl $0x12345678, %eax
            0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
        ],
        &ENDBR64,
    );
    // eax 0, ecx 1, edx 2, ebx 3, esp 4, ebp 5, esi 6, edi 7: LLVM, "KCFI arity".
    for (arguments, opcode) in (0..8).zip(0xb8..) {
        check_preamble(
            &kcfi(HASH, Arity::new(arguments), 0, true),
            &[opcode, 0x78, 0x56, 0x34, 0x12],
            &ENDBR64,
        );
    }
    check_preamble(&Preamble::Endbr64, &[], &ENDBR64);
    check_preamble(&Preamble::None, &[], &[]);
}

fn check_caller(check: &Check, expected: &[u8]) {
    let (bytes, ()) = emitted(AT, |code| check.emit(code));
    assert_eq!(bytes, expected, "{check:x?}");
    assert!(bytes.len() <= Check::MAX_SIZE);
}

#[test]
fn kcfi_checks() {
    // -0x12345678 is 0xedcba988.
    check_caller(
        &Check::Kcfi { hash: HASH, padding: 11 },
        &[
            0x41, 0xba, 0x88, 0xa9, 0xcb, 0xed, // movl $-0x12345678, %r10d
            0x45, 0x03, 0x53, 0xf1, // addl -15(%r11), %r10d
            0x74, 0x02, // je +2
            0x0f, 0x0b, // ud2
        ],
    );
    check_caller(
        &Check::Kcfi { hash: HASH, padding: 0 },
        &[
            0x41, 0xba, 0x88, 0xa9, 0xcb, 0xed, // movl $-0x12345678, %r10d
            0x45, 0x03, 0x53, 0xfc, // addl -4(%r11), %r10d
            0x74, 0x02, 0x0f, 0x0b,
        ],
    );
    check_caller(
        &Check::Kcfi { hash: HASH, padding: 255 },
        &[
            0x41, 0xba, 0x88, 0xa9, 0xcb, 0xed, // movl $-0x12345678, %r10d
            0x45, 0x03, 0x93, 0xfd, 0xfe, 0xff, 0xff, // addl -259(%r11), %r10d
            0x74, 0x02, 0x0f, 0x0b,
        ],
    );
}

#[test]
fn fineibt_callers() {
    let caller = |generation, paranoid| Check::FineIbt { hash: HASH, generation, paranoid };
    check_caller(
        &caller(Generation::Original, false),
        &[
            0x41, 0xba, 0x78, 0x56, 0x34, 0x12, // movl $0x12345678, %r10d
            0x49, 0x83, 0xeb, 0x10, // subq $0x10, %r11
            0x0f, 0x1f, 0x40, 0x00, // nop4
        ],
    );
    check_caller(
        &caller(Generation::Short, false),
        &[
            0x41, 0xba, 0x78, 0x56, 0x34, 0x12, // movl $0x12345678, %r10d
            0x4d, 0x8d, 0x5b, 0xf0, // leaq -0x10(%r11), %r11
            0x0f, 0x1f, 0x40, 0x00, // nop4
        ],
    );
    check_caller(
        &caller(Generation::Udb, false),
        &[
            0xb8, 0x78, 0x56, 0x34, 0x12, // movl $0x12345678, %eax
            0x4d, 0x8d, 0x5b, 0xf0, // leaq -0x10(%r11), %r11
            0x0f, 0x1f, 0x44, 0x00, 0x00, // nop5
        ],
    );
    check_caller(
        &caller(Generation::Short, true),
        &[
            0x41, 0xba, 0x78, 0x56, 0x34, 0x12, // movl $0x12345678, %r10d
            0x45, 0x3b, 0x53, 0xf7, // cmpl -9(%r11), %r10d
            0x4d, 0x8d, 0x5b, 0xf0, // leaq -0x10(%r11), %r11
            0x75, 0xfd, // jne to the F0
        ],
    );
    check_caller(
        &caller(Generation::Udb, true),
        &[
            0xb8, 0x78, 0x56, 0x34, 0x12, // movl $0x12345678, %eax
            0x41, 0x3b, 0x43, 0xf5, // cmpl -11(%r11), %eax
            0x2e, 0x4d, 0x8d, 0x5b, 0xf0, // cs leaq -0x10(%r11), %r11
            0x75, 0xfd, // jne to the F0
        ],
    );
}
