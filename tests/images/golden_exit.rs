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
            +5   jbe 0x50000000
            +11  mov r8, rax
            +14  mov rax, rbp
            +17  sub rbp, 0xb0
            +24  cmpxchg [rcx], rbp
            +28  mov rax, r8
            +31  jne 0x50000029
            +37  inc qword ptr [rcx + 0x20]
            +41  mov rbp, [rcx]
            +44  cmp rsp, [rbp - 8]
            +48  jne 0x50000001
            +54  jmp 0x5000005f
            +59  int3
            +60  int3
            +61  int3
            +62  int3
            +63  int3
            +64  sub rsp, 0x20
            +68  mov [rsp + 0x10], rbp
            +73  mov rcx, fs:[0xffffffffffffffc0]
            +82  mov rbp, [rcx]
            +85  cmp rsp, [rbp - 8]
            +89  jne 0x50000001
            +95  mov r11, [rbp + 8]
            +99  mov [rsp + 0x18], r11
            +104 mov [rbp - 0x30], rax
            +108 mov [rbp - 0x28], rdx
            +112 and rsp, 0xfffffffffffffff0
            +116 mov eax, [rbp - 0x20]
            +119 mov r11, 0x7e1000000000
            +129 mov rsi, [r11 + rax*8]
            +133 lea rdi, [rbp - 0x60]
            +137 call 0x50002000
            +142 mov [rsp - 8], rsp
            +147 mov rax, [rbp - 0x30]
            +151 mov rdx, [rbp - 0x28]
            +155 mov rcx, fs:[0xffffffffffffffc0]
            +164 mov rsp, [rbp - 8]
            +168 lea r11, [rbp - 0xb0]
            +175 mov rbp, [rsp + 0x10]
            +180 mov [rcx], r11
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
            +207 mov [r10 - 8], rsp
            +211 mov [r10], rbp
            +214 cmp r10, [rax]
            +217 je 0x500001bd
            +223 dec qword ptr [rax + 0x20]
            +227 jmp 0x50000195
            +232 push r11
            +234 mov r11, rax
            +237 mov rax, r10
            +240 sub r10, 0xb0
            +247 cmpxchg [r11], r10
            +251 mov rax, r11
            +254 pop r11
            +256 jne 0x50000195
            +262 inc qword ptr [rax + 0x20]
            +266 jmp 0x50000195
            +271 jne 0x500000e8
            +277 mov rax, [rsp + 0x18]
            +282 sub rax, 0xb
            +286 cmp rax, [r10 - 0x28]
            +290 mov rax, fs:[0xffffffffffffffc0]
            +299 jne 0x500000e8
            +305 jmp 0x500001a2
            +310 push rbp
            +311 mov rbp, rsp
            +314 push r11
            +316 push rdi
            +317 push rsi
            +318 push rdx
            +319 push rcx
            +320 push r8
            +322 push r9
            +324 and rsp, 0xfffffffffffffff0
            +328 call 0x50003000
            +333 mov [rsp - 8], rsp
            +338 lea rsp, [rbp - 0x38]
            +342 pop r9
            +344 pop r8
            +346 pop rcx
            +347 pop rdx
            +348 pop rsi
            +349 pop rdi
            +350 pop r11
            +352 pop rbp
            +353 test rax, rax
            +356 je 0x500000bd
            +362 jmp 0x50000195
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
            +384 push rax
            +385 push r10
            +387 mov rax, fs:[0xffffffffffffffc0]
            +396 test rax, rax
            +399 je 0x50000136
            +405 mov r10, [rax]
            +408 cmp rsp, [r10 - 8]
            +412 jae 0x5000010f
            +418 cmp r10, [rax + 8]
            +422 jae 0x500000c6
            +428 add r10, 0xb0
            +435 mov [r10 - 8], rsp
            +439 mov [r10], rbp
            +442 mov [rax], r10
            +445 cmp rsp, [r10 - 8]
            +449 jne 0x500000cf
            +455 mov rbp, r10
            +458 mov [rbp - 0x60], rdi
            +462 mov [rbp - 0x58], rsi
            +466 mov [rbp - 0x50], rdx
            +470 mov [rbp - 0x48], rcx
            +474 mov [rbp - 0x40], r8
            +478 mov [rbp - 0x38], r9
            +482 mov r10, [rsp + 0x10]
            +487 mov [rbp - 0x28], r10
            +491 mov r10, 0x100000000
            +501 add r10, r11
            +504 mov [rbp - 0x20], r10
            +508 mov r10, 0x7d0000000000
            +518 mov r10, [r10 + r11*8]
            +522 mov [rbp - 0x18], r10
            +526 mov r10, [rsp + 0x18]
            +531 mov [rbp + 8], r10
            +535 and rsp, 0xfffffffffffffff0
            +539 mov eax, [rbp - 0x20]
            +542 mov r11, 0x7e0000000000
            +552 add rax, rax
            +555 mov rsi, [r11 + rax*8]
            +559 lea rdi, [rbp - 0x60]
            +563 call 0x50001000
            +568 mov rdi, [rbp - 0x60]
            +572 mov rsi, [rbp - 0x58]
            +576 mov rdx, [rbp - 0x50]
            +580 mov rcx, [rbp - 0x48]
            +584 mov r8, [rbp - 0x40]
            +588 mov r9, [rbp - 0x38]
            +592 mov rsp, [rbp - 8]
            +596 test rsp, rsp
            +599 mov rbp, [rbp]
            +603 pop r10
            +605 pop rax
            +606 ret
            +607 int3
        "#]],
    );
}
