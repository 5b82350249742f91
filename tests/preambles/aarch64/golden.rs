//! Entry bodies as listings, by a decoder that knows nothing of the encoder.

use expect_test::{Expect, expect};
use fentry::emit::aarch64::{Check, EntryBody, Hardening, THUNK_SIZE, Vectors, entry_thunk};
use fentry::emit::{CookiePlace, EmitError, IndexFrom, Mitigations, ProgramCall, Stride};
use fentry::encode::CodeBuffer;
use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::InstDecoder;

use crate::emitted;

const IMAGE: u64 = 0x5000_0000;
const NEAR: u64 = 0x5000_1000;
const FAR: u64 = 0x7000_0000_2000;

fn check(emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<(), EmitError>, expected: Expect) {
    let (bytes, ()) = emitted(IMAGE, emit);
    let mut text = String::new();
    for (position, word) in bytes.chunks(4).enumerate() {
        let instruction = InstDecoder::default().decode(&mut U8Reader::new(word)).unwrap();
        text += &format!("+{:<4}{instruction}\n", 4 * position);
    }
    expected.assert_eq(&text);
}

fn call(target: u64, stride: Stride, data: Option<u64>) -> ProgramCall {
    ProgramCall { target, data, cookie: CookiePlace { column: 0x7e00_0000, stride }, session: None }
}

#[test]
fn a_near_program_and_a_far_one() {
    let calls = [call(NEAR, Stride::Eight, None), call(FAR, Stride::Sixteen, Some(7))];
    let body = EntryBody {
        index: IndexFrom::Slot { return_to_index: 16 },
        return_to_entry: 12,
        vectors: Vectors::Untouched,
        calls: &calls,
        hardening: Hardening::NONE,
    };
    check(
        |code| body.emit(code),
        expect![[r#"
        +0   ldur w17, [x30, #-0x10]
        +4   sub x10, x30, #0xc
        +8   mov x11, sp
        +12  stp x29, x9, [sp, #-0x10]!
        +16  mov x29, sp
        +20  stp x29, x30, [sp, #-0x10]!
        +24  mov x29, sp
        +28  sub sp, sp, #0x70
        +32  stp x0, x1, [sp]
        +36  stp x2, x3, [sp, #0x10]
        +40  stp x4, x5, [sp, #0x20]
        +44  stp x6, x7, [sp, #0x30]
        +48  stp x8, x15, [sp, #0x40]
        +52  stp x18, x17, [sp, #0x50]
        +56  stp x10, x11, [sp, #0x60]
        +60  mov x9, #0x7e000000
        +64  ldur x10, [x29, #-0x18]
        +68  ldr x1, [x9, x10, lsl #3]
        +72  sub x0, x29, #0x70
        +76  bl $+0xfb4
        +80  mov x9, #0x7e000000
        +84  ldur x10, [x29, #-0x18]
        +88  add x9, x9, x10, lsl #4
        +92  ldr x1, [x9]
        +96  mov x2, #0x7
        +100 sub x0, x29, #0x70
        +104 mov x16, #0x2000
        +108 movk x16, #0x7000, lsl #32
        +112 blr x16
        +116 ldp x0, x1, [sp]
        +120 ldp x2, x3, [sp, #0x10]
        +124 ldp x4, x5, [sp, #0x20]
        +128 ldp x6, x7, [sp, #0x30]
        +132 ldp x8, x15, [sp, #0x40]
        +136 ldr x18, [sp, #0x50]
        +140 add sp, sp, #0x70
        +144 ldp x29, x17, [sp], #0x10
        +148 ldp x29, x30, [sp], #0x10
        +152 ret x17
    "#]],
    );
}

#[test]
fn everything_there_is() {
    let check_of = Check::Kcfi { hash: 0x1234_5678, nops: 2 };
    let set = Mitigations::SLS | Mitigations::CFI | Mitigations::SIGNED_RETURNS;
    let body = EntryBody {
        index: IndexFrom::Thunk,
        return_to_entry: 12,
        vectors: Vectors::Arguments,
        calls: &[call(FAR, Stride::Eight, None)],
        hardening: Hardening::new(set, check_of).unwrap(),
    };
    check(
        |code| body.emit(code),
        expect![[r#"
        +0   sub x10, x30, #0xc
        +4   mov x11, sp
        +8   paciasp
        +12  mov x12, x30
        +16  mov x30, x9
        +20  paciasp
        +24  mov x9, x30
        +28  mov x30, x12
        +32  stp x29, x9, [sp, #-0x10]!
        +36  mov x29, sp
        +40  stp x29, x30, [sp, #-0x10]!
        +44  mov x29, sp
        +48  sub sp, sp, #0x70
        +52  stp x0, x1, [sp]
        +56  stp x2, x3, [sp, #0x10]
        +60  stp x4, x5, [sp, #0x20]
        +64  stp x6, x7, [sp, #0x30]
        +68  stp x8, x15, [sp, #0x40]
        +72  stp x18, x17, [sp, #0x50]
        +76  stp x10, x11, [sp, #0x60]
        +80  sub sp, sp, #0x80
        +84  stp q0, q1, [sp]
        +88  stp q2, q3, [sp, #0x20]
        +92  stp q4, q5, [sp, #0x40]
        +96  stp q6, q7, [sp, #0x60]
        +100 mov x9, #0x7e000000
        +104 ldur x10, [x29, #-0x18]
        +108 ldr x1, [x9, x10, lsl #3]
        +112 sub x0, x29, #0x70
        +116 mov x16, #0x2000
        +120 movk x16, #0x7000, lsl #32
        +124 ldur w9, [x16, #-0xc]
        +128 movk w17, #0x5678
        +132 movk w17, #0x1234, lsl #16
        +136 cmp w9, w17
        +140 b.eq $+0x8
        +144 brk #0x8230
        +148 blr x16
        +152 ldp q0, q1, [sp]
        +156 ldp q2, q3, [sp, #0x20]
        +160 ldp q4, q5, [sp, #0x40]
        +164 ldp q6, q7, [sp, #0x60]
        +168 add sp, sp, #0x80
        +172 ldp x0, x1, [sp]
        +176 ldp x2, x3, [sp, #0x10]
        +180 ldp x4, x5, [sp, #0x20]
        +184 ldp x6, x7, [sp, #0x30]
        +188 ldp x8, x15, [sp, #0x40]
        +192 ldr x18, [sp, #0x50]
        +196 add sp, sp, #0x70
        +200 ldp x29, x17, [sp], #0x10
        +204 ldp x29, x30, [sp], #0x10
        +208 autiasp
        +212 mov x9, x30
        +216 mov x30, x17
        +220 autiasp
        +224 mov x17, x30
        +228 mov x30, x9
        +232 ret x17
        +236 dsb sy
        +240 isb
    "#]],
    );
}

#[test]
fn the_thunk() {
    assert_eq!(THUNK_SIZE, 32);
    check(
        |code| entry_thunk(code, 0x0123_4567),
        expect![[r#"
        +0   mov x17, #0x4567
        +4   movk x17, #0x123, lsl #16
        +8   nop
        +12  mov x10, x30
        +16  mov x30, x9
        +20  ret x10
        +24  udf #0x0
        +28  udf #0x0
    "#]],
    );
}
