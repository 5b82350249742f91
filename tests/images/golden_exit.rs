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
            enter +352, exit +48
            +0   int3
            +1   cmp rbx, [rcx + 0x10]
            +5   jb 0x50000000
            +11  mov r10, 0xffffffffffffffff
            +18  mov [rbx + 0x60], r10
            +22  mov [rcx], rbx
            +25  inc qword ptr [rcx + 0x20]
            +29  sub rbx, 0x70
            +33  cmp r11, [rbx + 0x60]
            +37  jne 0x50000001
            +43  jmp 0x50000057
            +48  sub rsp, 8
            +52  push rbp
            +53  mov rbp, rsp
            +56  push rbx
            +57  mov rcx, fs:[0xffffffffffffffc0]
            +66  mov rbx, [rcx]
            +69  sub rbx, 0x70
            +73  lea r11, [rbp + 8]
            +77  cmp r11, [rbx + 0x60]
            +81  jne 0x50000001
            +87  mov r11, [rbx + 0x58]
            +91  mov [rbp + 8], r11
            +95  mov [rbx + 0x30], rax
            +99  mov [rbx + 0x38], rdx
            +103 and rsp, 0xfffffffffffffff0
            +107 mov rax, [rbx + 0x40]
            +111 mov r11, 0x7e1000000000
            +121 mov rsi, [r11 + rax*8]
            +125 lea rdi, [rbx]
            +128 call 0x50002000
            +133 xor eax, eax
            +135 mov [rsp - 8], rax
            +140 mov rax, [rbx + 0x30]
            +144 mov rdx, [rbx + 0x38]
            +148 mov rcx, fs:[0xffffffffffffffc0]
            +157 mov r11, 0xffffffffffffffff
            +164 mov [rbx + 0x60], r11
            +168 mov [rcx], rbx
            +171 lea rsp, [rbp - 8]
            +175 pop rbx
            +176 pop rbp
            +177 ret
            +178 int3
            +179 lea rsp, [rbp - 0x50]
            +183 pop rdi
            +184 pop rsi
            +185 pop rdx
            +186 pop rcx
            +187 pop r8
            +189 pop r9
            +191 pop rax
            +192 pop r10
            +194 add rsp, 0x10
            +198 pop rbp
            +199 cmp rsp, 0xffffffffffffffff
            +203 ret
            +204 int3
            +205 inc qword ptr [rax + 0x18]
            +209 jmp 0x500000b3
            +214 mov r11, rax
            +217 sub r10, 0x70
            +221 mov rax, 0xffffffffffffffff
            +228 mov [r10 + 0x60], rax
            +232 lea rax, [r10 + 0x70]
            +236 cmpxchg [r11], r10
            +240 mov rax, r11
            +243 jne 0x50000189
            +249 inc qword ptr [rax + 0x20]
            +253 jmp 0x50000189
            +258 jne 0x500000d6
            +264 mov r11, [rbp + 0x10]
            +268 sub r11, 0xb
            +272 cmp r11, [r10 - 8]
            +276 jne 0x500000d6
            +282 jmp 0x500001a3
            +287 and rsp, 0xfffffffffffffff0
            +291 call 0x50003000
            +296 xor r11d, r11d
            +299 mov [rsp - 8], r11
            +304 lea rsp, [rbp - 0x50]
            +308 mov rdi, [rsp]
            +312 mov rsi, [rsp + 8]
            +317 mov rdx, [rsp + 0x10]
            +322 mov rcx, [rsp + 0x18]
            +327 mov r8, [rsp + 0x20]
            +332 mov r9, [rsp + 0x28]
            +337 test rax, rax
            +340 je 0x500000b3
            +346 jmp 0x50000189
            +351 int3
            +352 push rbp
            +353 mov rbp, rsp
            +356 sub rsp, 0x10
            +360 push r10
            +362 push rax
            +363 push r9
            +365 push r8
            +367 push rcx
            +368 push rdx
            +369 push rsi
            +370 push rdi
            +371 mov [rbp - 0x10], r11
            +375 mov rax, fs:[0xffffffffffffffc0]
            +384 test rax, rax
            +387 je 0x5000011f
            +393 mov r10, [rax]
            +396 lea r11, [rbp + 0x10]
            +400 cmp r11, [r10 - 0x10]
            +404 jae 0x50000102
            +410 cmp r10, [rax]
            +413 jne 0x50000189
            +419 cmp r10, [rax + 8]
            +423 jae 0x500000cd
            +429 lea r11, [r10 + 0x70]
            +433 mov [rax], r11
            +436 lea r11, [rbp + 0x10]
            +440 mov [r10 + 0x60], r11
            +444 mov [r10], rdi
            +447 mov [r10 + 8], rsi
            +451 mov [r10 + 0x10], rdx
            +455 mov [r10 + 0x18], rcx
            +459 mov [r10 + 0x20], r8
            +463 mov [r10 + 0x28], r9
            +467 mov r11, [rbp + 0x10]
            +471 mov [r10 + 0x58], r11
            +475 mov rax, [rbp - 0x10]
            +479 mov [r10 + 0x40], rax
            +483 mov r11, [rbp + 8]
            +487 mov [r10 + 0x68], r11
            +491 mov r11, 0x7d0000000000
            +501 mov r11, [r11 + rax*8]
            +505 mov [r10 + 0x48], r11
            +509 mov [rbp - 8], r11
            +513 xor r11d, r11d
            +516 mov [r10 + 0x50], r11
            +520 lea r10, [r10 + 0x50]
            +524 push r10
            +526 and rsp, 0xfffffffffffffff0
            +530 mov rcx, [rbp - 0x58]
            +534 mov r11, 0x7e0000000000
            +544 add rax, rax
            +547 mov rsi, [r11 + rax*8]
            +551 lea rdi, [rbp - 0x50]
            +555 call 0x50001000
            +560 xor eax, eax
            +562 mov [rsp - 8], rax
            +567 lea rsp, [rbp - 0x50]
            +571 pop rdi
            +572 pop rsi
            +573 pop rdx
            +574 pop rcx
            +575 pop r8
            +577 pop r9
            +579 pop rax
            +580 pop r10
            +582 add rsp, 0x10
            +586 pop rbp
            +587 ret
            +588 int3
        "#]],
    );
}
