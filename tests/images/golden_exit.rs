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
            +1   cmp rbx, [rcx + 0x10]
            +5   jb 0x50000000
            +11  mov qword ptr [rbx + 0x58], 0xffffffffffffffff
            +19  mov [rcx], rbx
            +22  inc qword ptr [rcx + 0x20]
            +26  sub rbx, 0xb0
            +33  cmp rbp, [rbx + 0x58]
            +37  jne 0x50000001
            +43  jmp 0x50000066
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
            +85  sub rbx, 0xb0
            +92  cmp rbp, [rbx + 0x58]
            +96  jne 0x50000001
            +102 mov r11, [rbx + 0x68]
            +106 mov [rbp + 0x10], r11
            +110 mov [rbx + 0x30], rax
            +114 mov [rbx + 0x38], rdx
            +118 and rsp, 0xfffffffffffffff0
            +122 mov eax, [rbx + 0x40]
            +125 mov r11, 0x7e1000000000
            +135 mov rsi, [r11 + rax*8]
            +139 lea rdi, [rbx]
            +142 call 0x50002000
            +147 mov qword ptr [rsp - 8], 0
            +156 mov rax, [rbx + 0x30]
            +160 mov rdx, [rbx + 0x38]
            +164 mov rcx, fs:[0xffffffffffffffc0]
            +173 mov qword ptr [rbx + 0x58], 0xffffffffffffffff
            +181 mov [rcx], rbx
            +184 mov rsp, rbp
            +187 pop rbp
            +188 pop rbx
            +189 ret
            +190 int3
            +191 cmp rsp, 0xffffffffffffffff
            +195 pop r10
            +197 pop rbx
            +198 pop rax
            +199 pop rbp
            +200 ret
            +201 int3
            +202 inc qword ptr [rax + 0x18]
            +206 jmp 0x500000bf
            +211 mov r10, rax
            +214 sub rbx, 0xb0
            +221 mov qword ptr [rbx + 0x58], 0xffffffffffffffff
            +229 lea rax, [rbx + 0xb0]
            +236 cmpxchg [r10], rbx
            +240 mov rax, r10
            +243 jne 0x5000019a
            +249 inc qword ptr [rax + 0x20]
            +253 jmp 0x5000019a
            +258 mov r10, [rbx - 0x58]
            +262 test r10, r10
            +265 je 0x500001b0
            +271 cmp rbp, [rbx - 0x58]
            +275 jne 0x500000d3
            +281 mov r10, [rbp + 0x10]
            +285 sub r10, 0xb
            +289 cmp r10, [rbx - 0x50]
            +293 jne 0x500000d3
            +299 jmp 0x500001b0
            +304 push r11
            +306 push rdi
            +307 push rsi
            +308 push rdx
            +309 push rcx
            +310 push r8
            +312 push r9
            +314 and rsp, 0xfffffffffffffff0
            +318 call 0x50003000
            +323 mov qword ptr [rsp - 8], 0
            +332 lea rsp, [rbp - 0x50]
            +336 pop r9
            +338 pop r8
            +340 pop rcx
            +341 pop rdx
            +342 pop rsi
            +343 pop rdi
            +344 pop r11
            +346 test rax, rax
            +349 je 0x500000bf
            +355 jmp 0x5000019a
            +360 int3
            +361 int3
            +362 int3
            +363 int3
            +364 int3
            +365 int3
            +366 int3
            +367 int3
            +368 int3
            +369 int3
            +370 int3
            +371 int3
            +372 int3
            +373 int3
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
            +388 push rax
            +389 push rbx
            +390 push r10
            +392 mov rax, fs:[0xffffffffffffffc0]
            +401 test rax, rax
            +404 je 0x50000130
            +410 mov rbx, [rax]
            +413 cmp rbp, [rbx - 0x58]
            +417 jae 0x50000102
            +423 cmp rbx, [rax]
            +426 jne 0x5000019a
            +432 cmp rbx, [rax + 8]
            +436 jae 0x500000ca
            +442 lea r10, [rbx + 0xb0]
            +449 mov [rax], r10
            +452 mov [rbx], rdi
            +455 mov [rbx + 8], rsi
            +459 mov [rbx + 0x10], rdx
            +463 mov [rbx + 0x18], rcx
            +467 mov [rbx + 0x20], r8
            +471 mov [rbx + 0x28], r9
            +475 mov r10, 0x100000000
            +485 add r10, r11
            +488 mov [rbx + 0x40], r10
            +492 mov r10, 0x7d0000000000
            +502 mov r10, [r10 + r11*8]
            +506 mov [rbx + 0x48], r10
            +510 mov [rbx + 0x58], rbp
            +514 mov r10, [rbp + 8]
            +518 mov [rbx + 0x60], r10
            +522 mov r10, [rbp + 0x10]
            +526 mov [rbx + 0x68], r10
            +530 and rsp, 0xfffffffffffffff0
            +534 mov eax, [rbx + 0x40]
            +537 mov r11, 0x7e0000000000
            +547 add rax, rax
            +550 mov rsi, [r11 + rax*8]
            +554 lea rdi, [rbx]
            +557 call 0x50001000
            +562 mov qword ptr [rsp - 8], 0
            +571 mov rdi, [rbx]
            +574 mov rsi, [rbx + 8]
            +578 mov rdx, [rbx + 0x10]
            +582 mov rcx, [rbx + 0x18]
            +586 mov r8, [rbx + 0x20]
            +590 mov r9, [rbx + 0x28]
            +594 lea rsp, [rbp - 0x18]
            +598 test rsp, rsp
            +601 pop r10
            +603 pop rbx
            +604 pop rax
            +605 pop rbp
            +606 ret
            +607 int3
        "#]],
    );
}
