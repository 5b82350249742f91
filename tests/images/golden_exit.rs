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
            +1   int3
            +2   int3
            +3   int3
            +4   int3
            +5   int3
            +6   cmp rbp, [rcx + 0x10]
            +10  jbe 0x50000005
            +16  mov r8, rax
            +19  mov rax, rbp
            +22  sub rbp, 0xb0
            +29  cmpxchg [rcx], rbp
            +33  mov rax, r8
            +36  jne 0x5000002e
            +42  inc qword ptr [rcx + 0x20]
            +46  mov rbp, [rcx]
            +49  cmp rsp, [rbp - 8]
            +53  jne 0x50000006
            +59  jmp 0x5000005b
            +64  sub rsp, 0x20
            +68  mov [rsp + 0x10], rbp
            +73  mov rcx, fs:[0xffffffffffffffc0]
            +82  mov rbp, [rcx]
            +85  cmp rsp, [rbp - 8]
            +89  jne short 0x50000006
            +91  mov r11, [rbp + 8]
            +95  mov [rsp + 0x18], r11
            +100 mov [rbp - 0x30], rax
            +104 mov [rbp - 0x28], rdx
            +108 and rsp, 0xfffffffffffffff0
            +112 mov eax, [rbp - 0x20]
            +115 mov r11, 0x7e1000000000
            +125 mov rsi, [r11 + rax*8]
            +129 lea rdi, [rbp - 0x60]
            +133 call 0x50002000
            +138 mov [rsp - 8], rsp
            +143 mov rax, [rbp - 0x30]
            +147 mov rdx, [rbp - 0x28]
            +151 mov rcx, fs:[0xffffffffffffffc0]
            +160 mov rsp, [rbp - 8]
            +164 lea r11, [rbp - 0xb0]
            +171 mov rbp, [rsp + 0x10]
            +176 mov [rcx], r11
            +179 add rsp, 0x18
            +183 ret
            +184 int3
            +185 cmp rsp, 0xffffffffffffffff
            +189 pop r10
            +191 pop rax
            +192 ret
            +193 int3
            +194 inc qword ptr [rax + 0x18]
            +198 jmp 0x500000b9
            +203 mov [r10 - 8], rsp
            +207 mov [r10], rbp
            +210 cmp r10, [rax]
            +213 je 0x500001b1
            +219 dec qword ptr [rax + 0x20]
            +223 jmp 0x50000191
            +228 push r11
            +230 mov r11, rax
            +233 mov rax, r10
            +236 sub r10, 0xb0
            +243 cmpxchg [r11], r10
            +247 mov rax, r11
            +250 pop r11
            +252 jne 0x50000191
            +258 inc qword ptr [rax + 0x20]
            +262 jmp 0x50000191
            +267 jne 0x500000e4
            +273 mov rax, [rsp + 0x18]
            +278 sub rax, 0xb
            +282 cmp rax, [r10 - 0x28]
            +286 mov rax, fs:[0xffffffffffffffc0]
            +295 jne 0x500000e4
            +301 jmp 0x5000019a
            +306 push rbp
            +307 mov rbp, rsp
            +310 push r11
            +312 push rdi
            +313 push rsi
            +314 push rdx
            +315 push rcx
            +316 push r8
            +318 push r9
            +320 and rsp, 0xfffffffffffffff0
            +324 call 0x50003000
            +329 mov [rsp - 8], rsp
            +334 lea rsp, [rbp - 0x38]
            +338 pop r9
            +340 pop r8
            +342 pop rcx
            +343 pop rdx
            +344 pop rsi
            +345 pop rdi
            +346 pop r11
            +348 pop rbp
            +349 test rax, rax
            +352 je 0x500000b9
            +358 jmp 0x50000191
            +363 int3
            +364 jmp 0x50000132
            +369 jmp 0x5000010b
            +374 jmp 0x500000c2
            +379 jmp 0x500000cb
            +384 push rax
            +385 push r10
            +387 mov rax, fs:[0xffffffffffffffc0]
            +396 test rax, rax
            +399 je short 0x5000016c
            +401 mov r10, [rax]
            +404 cmp rsp, [r10 - 8]
            +408 jae short 0x50000171
            +410 cmp r10, [rax + 8]
            +414 jae short 0x50000176
            +416 add r10, 0xb0
            +423 mov [r10 - 8], rsp
            +427 mov [r10], rbp
            +430 mov [rax], r10
            +433 cmp rsp, [r10 - 8]
            +437 jne short 0x5000017b
            +439 mov rbp, r10
            +442 nop [rax + rax]
            +448 mov [rbp - 0x60], rdi
            +452 mov [rbp - 0x58], rsi
            +456 mov [rbp - 0x50], rdx
            +460 mov [rbp - 0x48], rcx
            +464 mov [rbp - 0x40], r8
            +468 mov [rbp - 0x38], r9
            +472 mov r10, [rsp + 0x10]
            +477 mov [rbp - 0x28], r10
            +481 mov r10, 0x100000000
            +491 add r10, r11
            +494 mov [rbp - 0x20], r10
            +498 mov r10, 0x7d0000000000
            +508 mov r10, [r10 + r11*8]
            +512 mov [rbp - 0x18], r10
            +516 mov r10, [rsp + 0x18]
            +521 mov [rbp + 8], r10
            +525 and rsp, 0xfffffffffffffff0
            +529 mov eax, [rbp - 0x20]
            +532 mov r11, 0x7e0000000000
            +542 add rax, rax
            +545 mov rsi, [r11 + rax*8]
            +549 lea rdi, [rbp - 0x60]
            +553 call 0x50001000
            +558 mov rdi, [rbp - 0x60]
            +562 mov rsi, [rbp - 0x58]
            +566 mov rdx, [rbp - 0x50]
            +570 mov rcx, [rbp - 0x48]
            +574 mov r8, [rbp - 0x40]
            +578 mov r9, [rbp - 0x38]
            +582 mov rsp, [rbp - 8]
            +586 test rsp, rsp
            +589 mov rbp, [rbp]
            +593 pop r10
            +595 pop rax
            +596 ret
            +597 int3
        "#]],
    );
}
