//! Images with exit programs as listings. What stands before a body seldom runs; a body begins
//! where its offset is named.

use expect_test::{Expect, expect};
use fentry::addr::Origin;
use fentry::emit::x86_64::{
    Bodies, EXIT_THUNK_SIZE, MakeSideStack, SideStackBodies, SideStackPlace, exit_thunk,
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
            +11  mov r10, 0xffffffffffffffff
            +18  mov [rbx + 0x58], r10
            +22  mov [rcx], rbx
            +25  inc qword ptr [rcx + 0x20]
            +29  sub rbx, 0xb0
            +36  cmp rbp, [rbx + 0x58]
            +40  jne 0x50000001
            +46  jmp 0x50000066
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
            +147 xor eax, eax
            +149 mov [rsp - 8], rax
            +154 mov rax, [rbx + 0x30]
            +158 mov rdx, [rbx + 0x38]
            +162 mov rcx, fs:[0xffffffffffffffc0]
            +171 mov r11, 0xffffffffffffffff
            +178 mov [rbx + 0x58], r11
            +182 mov [rcx], rbx
            +185 mov rsp, rbp
            +188 pop rbp
            +189 pop rbx
            +190 ret
            +191 int3
            +192 cmp rsp, 0xffffffffffffffff
            +196 pop r10
            +198 pop rbx
            +199 pop rax
            +200 pop rbp
            +201 ret
            +202 int3
            +203 inc qword ptr [rax + 0x18]
            +207 jmp 0x500000c0
            +212 mov r10, rax
            +215 sub rbx, 0xb0
            +222 mov rax, 0xffffffffffffffff
            +229 mov [rbx + 0x58], rax
            +233 lea rax, [rbx + 0xb0]
            +240 cmpxchg [r10], rbx
            +244 mov rax, r10
            +247 jne 0x5000019a
            +253 inc qword ptr [rax + 0x20]
            +257 jmp 0x5000019a
            +262 mov r10, [rbx - 0x58]
            +266 test r10, r10
            +269 je 0x500001b0
            +275 cmp rbp, [rbx - 0x58]
            +279 jne 0x500000d4
            +285 mov r10, [rbp + 0x10]
            +289 sub r10, 0xb
            +293 cmp r10, [rbx - 0x50]
            +297 jne 0x500000d4
            +303 jmp 0x500001b0
            +308 push r11
            +310 push rdi
            +311 push rsi
            +312 push rdx
            +313 push rcx
            +314 push r8
            +316 push r9
            +318 and rsp, 0xfffffffffffffff0
            +322 call 0x50003000
            +327 xor r11d, r11d
            +330 mov [rsp - 8], r11
            +335 lea rsp, [rbp - 0x50]
            +339 pop r9
            +341 pop r8
            +343 pop rcx
            +344 pop rdx
            +345 pop rsi
            +346 pop rdi
            +347 pop r11
            +349 test rax, rax
            +352 je 0x500000c0
            +358 jmp 0x5000019a
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
            +404 je 0x50000134
            +410 mov rbx, [rax]
            +413 cmp rbp, [rbx - 0x58]
            +417 jae 0x50000106
            +423 cmp rbx, [rax]
            +426 jne 0x5000019a
            +432 cmp rbx, [rax + 8]
            +436 jae 0x500000cb
            +442 lea r10, [rbx + 0xb0]
            +449 mov [rax], r10
            +452 mov [rbx + 0x58], rbp
            +456 mov [rbx], rdi
            +459 mov [rbx + 8], rsi
            +463 mov [rbx + 0x10], rdx
            +467 mov [rbx + 0x18], rcx
            +471 mov [rbx + 0x20], r8
            +475 mov [rbx + 0x28], r9
            +479 mov [rbx + 0x40], r11
            +483 mov eax, 1
            +488 mov [rbx + 0x44], eax
            +491 mov r10, [rbp + 0x10]
            +495 mov [rbx + 0x68], r10
            +499 mov r10, [rbp + 8]
            +503 mov [rbx + 0x60], r10
            +507 mov r10, 0x7d0000000000
            +517 mov r10, [r10 + r11*8]
            +521 mov [rbx + 0x48], r10
            +525 and rsp, 0xfffffffffffffff0
            +529 mov eax, [rbx + 0x40]
            +532 mov r11, 0x7e0000000000
            +542 add rax, rax
            +545 mov rsi, [r11 + rax*8]
            +549 lea rdi, [rbx]
            +552 call 0x50001000
            +557 xor eax, eax
            +559 mov [rsp - 8], rax
            +564 mov rdi, [rbx]
            +567 mov rsi, [rbx + 8]
            +571 mov rdx, [rbx + 0x10]
            +575 mov rcx, [rbx + 0x18]
            +579 mov r8, [rbx + 0x20]
            +583 mov r9, [rbx + 0x28]
            +587 lea rsp, [rbp - 0x18]
            +591 test rsp, rsp
            +594 pop r10
            +596 pop rbx
            +597 pop rax
            +598 pop rbp
            +599 ret
            +600 int3
        "#]],
    );
}
