//! Images with exit programs as listings. What stands before a body seldom runs; a body begins
//! where its offset is named.

use expect_test::{Expect, expect};
use fentry::addr::Origin;
use fentry::emit::Vectors;
use fentry::emit::x86_64::{
    Bodies, EXIT_THUNK_SIZE, MakeSideStack, SideStackBodies, SideStackPlace, exit_thunk,
};
use fentry::encode::CodeBuffer;

use crate::golden::listing;
use crate::{in_column, in_records};

pub const IMAGE: u64 = 0x5000_0000;
pub const ENTRY_PROGRAM: u64 = 0x5000_1000;
pub const EXIT_PROGRAM: u64 = 0x5000_2000;
const MAKE: u64 = 0x5000_3000;
pub const RECORDS: u64 = 0x7e00_0000_0000;
pub const LANE_1: u64 = 0x7e10_0000_0000;
const FUNCTIONS: u64 = 0x7d00_0000_0000;
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
    let bodies = Bodies { enter: 0x5000_1000, exit: 0x5000_2000 };
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
        functions: FUNCTIONS,
        side_stack: SIDE_STACK,
        vectors: Vectors::Untouched,
        entries: &[in_records(ENTRY_PROGRAM, RECORDS)],
        exits: &[in_column(EXIT_PROGRAM, LANE_1)],
    };
    check(
        |code| bodies.emit(code).unwrap(),
        starts,
        expect![[r#"
            enter +384, exit +64
            +0   int3
            +1   cmp rbx, [rcx + 0x10]
            +5   jb 0x50000000
            +11  mov r10, 0xffffffffffffffff
            +18  mov [rbx + 0x60], r10
            +22  mov [rcx], rbx
            +25  inc qword ptr [rcx + 0x20]
            +29  sub rbx, 0x70
            +33  cmp rbp, [rbx + 0x60]
            +37  jne 0x50000001
            +43  jmp 0x50000063
            +48  int3
            +49  int3
            +50  int3
            +51  int3
            +52  int3
            +53  int3
            +54  int3
            +55  int3
            +56  int3
            +57  int3
            +58  int3
            +59  int3
            +60  int3
            +61  int3
            +62  int3
            +63  int3
            +64  sub rsp, 8
            +68  push rbx
            +69  push rbp
            +70  mov rbp, rsp
            +73  mov rcx, fs:[0xffffffffffffffc0]
            +82  mov rbx, [rcx]
            +85  sub rbx, 0x70
            +89  cmp rbp, [rbx + 0x60]
            +93  jne 0x50000001
            +99  mov r11, [rbx + 0x58]
            +103 mov [rbp + 0x10], r11
            +107 mov [rbx + 0x30], rax
            +111 mov [rbx + 0x38], rdx
            +115 and rsp, 0xfffffffffffffff0
            +119 mov rax, [rbx + 0x40]
            +123 mov r11, 0x7e1000000000
            +133 mov rsi, [r11 + rax*8]
            +137 lea rdi, [rbx]
            +140 call 0x50002000
            +145 xor eax, eax
            +147 mov [rsp - 8], rax
            +152 mov rax, [rbx + 0x30]
            +156 mov rdx, [rbx + 0x38]
            +160 mov rcx, fs:[0xffffffffffffffc0]
            +169 mov r11, 0xffffffffffffffff
            +176 mov [rbx + 0x60], r11
            +180 mov [rcx], rbx
            +183 mov rsp, rbp
            +186 pop rbp
            +187 pop rbx
            +188 ret
            +189 int3
            +190 lea rsp, [rbp - 0x50]
            +194 pop rdi
            +195 pop rsi
            +196 pop rdx
            +197 pop rcx
            +198 pop r8
            +200 pop r9
            +202 pop rax
            +203 pop r10
            +205 add rsp, 0x10
            +209 pop rbp
            +210 cmp rsp, 0xffffffffffffffff
            +214 ret
            +215 int3
            +216 inc qword ptr [rax + 0x18]
            +220 jmp 0x500000be
            +225 mov r11, rax
            +228 sub r10, 0x70
            +232 mov rax, 0xffffffffffffffff
            +239 mov [r10 + 0x60], rax
            +243 lea rax, [r10 + 0x70]
            +247 cmpxchg [r11], r10
            +251 mov rax, r11
            +254 mov r11, [rbp - 0x10]
            +258 jne 0x500001a9
            +264 inc qword ptr [rax + 0x20]
            +268 jmp 0x500001a9
            +273 jne 0x500000e1
            +279 mov r11, [rbp + 0x10]
            +283 sub r11, 0xb
            +287 cmp r11, [r10 - 8]
            +291 jne 0x500000e1
            +297 mov r11, [rbp - 0x10]
            +301 jmp 0x500001bf
            +306 and rsp, 0xfffffffffffffff0
            +310 call 0x50003000
            +315 xor r11d, r11d
            +318 mov [rsp - 8], r11
            +323 mov r11, [rbp - 0x10]
            +327 lea rsp, [rbp - 0x50]
            +331 mov rdi, [rsp]
            +335 mov rsi, [rsp + 8]
            +340 mov rdx, [rsp + 0x10]
            +345 mov rcx, [rsp + 0x18]
            +350 mov r8, [rsp + 0x20]
            +355 mov r9, [rsp + 0x28]
            +360 test rax, rax
            +363 je 0x500000be
            +369 jmp 0x500001a9
            +374 int3
            +375 int3
            +376 int3
            +377 int3
            +378 int3
            +379 int3
            +380 int3
            +381 int3
            +382 int3
            +383 int3
            +384 push rbp
            +385 mov rbp, rsp
            +388 sub rsp, 0x10
            +392 push r10
            +394 push rax
            +395 push r9
            +397 push r8
            +399 push rcx
            +400 push rdx
            +401 push rsi
            +402 push rdi
            +403 mov [rbp - 0x10], r11
            +407 mov rax, fs:[0xffffffffffffffc0]
            +416 test rax, rax
            +419 je 0x50000132
            +425 mov r10, [rax]
            +428 cmp rbp, [r10 - 0x10]
            +432 jae 0x50000111
            +438 cmp r10, [rax]
            +441 jne 0x500001a9
            +447 cmp r10, [rax + 8]
            +451 jae 0x500000d8
            +457 lea r10, [r10 + 0x70]
            +461 mov [rax], r10
            +464 mov [r10 - 0x10], rbp
            +468 mov [r10 - 0x70], rdi
            +472 mov [r10 - 0x68], rsi
            +476 mov [r10 - 0x60], rdx
            +480 mov [r10 - 0x58], rcx
            +484 mov [r10 - 0x50], r8
            +488 mov [r10 - 0x48], r9
            +492 mov [r10 - 0x30], r11
            +496 mov rax, r11
            +499 mov r11, [rbp + 0x10]
            +503 mov [r10 - 0x18], r11
            +507 mov r11, [rbp + 8]
            +511 mov [r10 - 8], r11
            +515 mov r11, 0x7d0000000000
            +525 mov r11, [r11 + rax*8]
            +529 mov [r10 - 0x28], r11
            +533 mov [rbp - 8], r11
            +537 xor r11d, r11d
            +540 mov [r10 - 0x20], r11
            +544 lea r10, [r10 - 0x20]
            +548 push r10
            +550 and rsp, 0xfffffffffffffff0
            +554 mov rcx, [rbp - 0x58]
            +558 mov r11, 0x7e0000000000
            +568 add rax, rax
            +571 mov rsi, [r11 + rax*8]
            +575 lea rdi, [rbp - 0x50]
            +579 call 0x50001000
            +584 xor eax, eax
            +586 mov [rsp - 8], rax
            +591 lea rsp, [rbp - 0x50]
            +595 pop rdi
            +596 pop rsi
            +597 pop rdx
            +598 pop rcx
            +599 pop r8
            +601 pop r9
            +603 pop rax
            +604 pop r10
            +606 add rsp, 0x10
            +610 pop rbp
            +611 ret
            +612 int3
        "#]],
    );
}
