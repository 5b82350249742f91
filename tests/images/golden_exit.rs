//! Images with exit programs as listings. What stands before a body seldom runs; a body begins
//! where its offset is named.

use expect_test::{Expect, expect};
use fentry::addr::Origin;
use fentry::emit::x86_64::{
    Bodies, EXIT_THUNK_SIZE, Kept, MakeSideStack, SideStackBodies, SideStackPlace, exit_thunk,
};
use fentry::emit::{CookiePlace, Stride, Vectors};
use fentry::encode::CodeBuffer;

use crate::golden::listing;
use crate::{in_column, in_records};

pub const IMAGE: u64 = 0x5000_0000;
pub const ENTRY_PROGRAM: u64 = 0x5000_1000;
pub const EXIT_PROGRAM: u64 = 0x5000_2000;
const MAKE: u64 = 0x5000_3000;
pub const RECORDS: u64 = 0x7e00_0000_0000;
pub const LANE_1: u64 = 0x7e10_0000_0000;
pub const FUNCTIONS: u64 = 0x7d00_0000_0000;
pub const SIDE_STACK: SideStackPlace = SideStackPlace {
    thread_offset: -0x40,
    make: Some(MakeSideStack { target: MAKE, vectors: Vectors::Untouched }),
};

/// The listing of what `emit` emits, behind what it returns.
pub fn check<T>(
    emit: impl FnOnce(&mut CodeBuffer<'_>) -> T,
    starts: impl Fn(T) -> String,
    expected: Expect,
) {
    let mut bytes = [0; 2048];
    let mut code = CodeBuffer::new(&mut bytes, IMAGE);
    let starts = starts(emit(&mut code));
    expected.assert_eq(&format!("{starts}\n{}", listing(code.written(), IMAGE)));
}

pub fn starts(bodies: Bodies) -> String {
    format!("enter +{}, exit +{}", bodies.enter - IMAGE, bodies.exit - IMAGE)
}

#[test]
fn the_exit_thunk() {
    let bodies = Bodies { enter: 0x5000_1000, exit: 0x5000_2000, kept: Kept::OnSideStack };
    let mut bytes = [0; EXIT_THUNK_SIZE];
    let mut code = CodeBuffer::new(&mut bytes, IMAGE);
    exit_thunk(&mut code, 0x0123_4567, bodies, Origin::new(0x4fff_0005)).unwrap();
    expect![[r#"
        +0   mov r11d, 0x1234567
        +6   call 0x50001000
        +11  jb short 0x5000001b
        +13  pop r11
        +15  je short 0x50000016
        +17  call 0x4fff0005
        +22  jmp 0x50002000
        +27  jmp 0x4fff0005
    "#]]
    .assert_eq(&listing(&bytes, IMAGE));
}

#[test]
fn side_stack_one_program_each() {
    let bodies = SideStackBodies {
        functions: CookiePlace { column: FUNCTIONS, stride: Stride::Eight },
        side_stack: SIDE_STACK,
        vectors: Vectors::Untouched,
        entries: &[in_records(ENTRY_PROGRAM, RECORDS)],
        modify: &[],
        exits: &[in_column(EXIT_PROGRAM, LANE_1)],
    };
    check(
        |code| bodies.emit(code).unwrap(),
        starts,
        expect![[r#"
            enter +384, exit +64
            +0   int3
            +1   cmp rbp, [rcx + 0x10]
            +5   jb 0x50000000
            +11  mov r8, rax
            +14  lea rax, [rbp + 0xb0]
            +21  cmpxchg [rcx], rbp
            +25  mov rax, r8
            +28  jne 0x50000026
            +34  inc qword ptr [rcx + 0x20]
            +38  mov rbp, [rcx]
            +41  sub rbp, 0xb0
            +48  cmp rsp, [rbp - 8]
            +52  jne 0x50000001
            +58  jmp 0x50000066
            +63  int3
            +64  sub rsp, 0x20
            +68  mov [rsp + 0x10], rbp
            +73  mov rcx, fs:[0xffffffffffffffc0]
            +82  mov rbp, [rcx]
            +85  sub rbp, 0xb0
            +92  cmp rsp, [rbp - 8]
            +96  jne 0x50000001
            +102 mov r11, [rbp + 8]
            +106 mov [rsp + 0x18], r11
            +111 mov [rbp - 0x30], rax
            +115 mov [rbp - 0x28], rdx
            +119 and rsp, 0xfffffffffffffff0
            +123 mov eax, [rbp - 0x20]
            +126 mov r11, 0x7e1000000000
            +136 mov rsi, [r11 + rax*8]
            +140 lea rdi, [rbp - 0x60]
            +144 call 0x50002000
            +149 mov [rsp - 8], rsp
            +154 mov rax, [rbp - 0x30]
            +158 mov rdx, [rbp - 0x28]
            +162 mov rcx, fs:[0xffffffffffffffc0]
            +171 mov rsp, [rbp - 8]
            +175 mov [rcx], rbp
            +178 mov rbp, [rsp + 0x10]
            +183 add rsp, 0x18
            +187 ret
            +188 int3
            +189 cmp rsp, 0xffffffffffffffff
            +193 pop r10
            +195 pop rax
            +196 ret
            +197 int3
            +198 inc qword ptr [rax + 0x18]
            +202 jmp 0x500000bd
            +207 mov [r10 - 0xb8], rsp
            +214 mov [r10 - 0xb0], rbp
            +221 cmp r10, [rax]
            +224 je 0x500001c0
            +230 dec qword ptr [rax + 0x20]
            +234 jmp 0x50000195
            +239 push r11
            +241 mov r11, rax
            +244 mov rax, r10
            +247 sub r10, 0xb0
            +254 cmpxchg [r11], r10
            +258 mov rax, r11
            +261 pop r11
            +263 jne 0x50000195
            +269 inc qword ptr [rax + 0x20]
            +273 jmp 0x50000195
            +278 jne 0x500000ef
            +284 mov rax, [rsp + 0x18]
            +289 sub rax, 0xb
            +293 cmp rax, [r10 - 0xd8]
            +300 mov rax, fs:[0xffffffffffffffc0]
            +309 jne 0x500000ef
            +315 jmp 0x500001a5
            +320 push rbp
            +321 mov rbp, rsp
            +324 push r11
            +326 push rdi
            +327 push rsi
            +328 push rdx
            +329 push rcx
            +330 push r8
            +332 push r9
            +334 and rsp, 0xfffffffffffffff0
            +338 call 0x50003000
            +343 mov [rsp - 8], rsp
            +348 lea rsp, [rbp - 0x38]
            +352 pop r9
            +354 pop r8
            +356 pop rcx
            +357 pop rdx
            +358 pop rsi
            +359 pop rdi
            +360 pop r11
            +362 pop rbp
            +363 test rax, rax
            +366 je 0x500000bd
            +372 jmp 0x50000195
            +377 int3
            +378 int3
            +379 int3
            +380 int3
            +381 int3
            +382 int3
            +383 int3
            +384 push rax
            +385 push r10
            +387 mov rax, fs:[0xffffffffffffffc0]
            +396 test rax, rax
            +399 je 0x50000140
            +405 mov r10, [rax]
            +408 cmp rsp, [r10 - 0xb8]
            +415 jae 0x50000116
            +421 cmp r10, [rax + 8]
            +425 jae 0x500000c6
            +431 mov [r10 - 8], rsp
            +435 mov [r10], rbp
            +438 add r10, 0xb0
            +445 mov [rax], r10
            +448 cmp rsp, [r10 - 0xb8]
            +455 jne 0x500000cf
            +461 lea rbp, [r10 - 0xb0]
            +468 mov [rbp - 0x60], rdi
            +472 mov [rbp - 0x58], rsi
            +476 mov [rbp - 0x50], rdx
            +480 mov [rbp - 0x48], rcx
            +484 mov [rbp - 0x40], r8
            +488 mov [rbp - 0x38], r9
            +492 mov r10, [rsp + 0x10]
            +497 mov [rbp - 0x28], r10
            +501 mov r10, 0x100000000
            +511 add r10, r11
            +514 mov [rbp - 0x20], r10
            +518 mov r10, 0x7d0000000000
            +528 mov r10, [r10 + r11*8]
            +532 mov [rbp - 0x18], r10
            +536 mov r10, [rsp + 0x18]
            +541 mov [rbp + 8], r10
            +545 and rsp, 0xfffffffffffffff0
            +549 mov eax, [rbp - 0x20]
            +552 mov r11, 0x7e0000000000
            +562 add rax, rax
            +565 mov rsi, [r11 + rax*8]
            +569 lea rdi, [rbp - 0x60]
            +573 call 0x50001000
            +578 mov rdi, [rbp - 0x60]
            +582 mov rsi, [rbp - 0x58]
            +586 mov rdx, [rbp - 0x50]
            +590 mov rcx, [rbp - 0x48]
            +594 mov r8, [rbp - 0x40]
            +598 mov r9, [rbp - 0x38]
            +602 mov rsp, [rbp - 8]
            +606 test rsp, rsp
            +609 mov rbp, [rbp]
            +613 pop r10
            +615 pop rax
            +616 ret
            +617 int3
        "#]],
    );
}
