//! The frame form as listings.

use expect_test::expect;
use fentry::addr::Origin;
use fentry::emit::x86_64::{Bodies, EXIT_THUNK_SIZE, FrameBodies, Kept, exit_thunk};
use fentry::emit::{CookiePlace, Stride, Vectors};
use fentry::encode::CodeBuffer;

use crate::golden::listing;
use crate::golden_exit::{
    ENTRY_PROGRAM, EXIT_PROGRAM, FUNCTIONS, IMAGE, LANE_1, RECORDS, check, starts,
};
use crate::{in_column, in_records};

const MODIFYING_PROGRAM: u64 = 0x5000_2800;

#[test]
fn the_exit_thunk_of_the_frame_form() {
    let bodies = Bodies { enter: 0x5000_1000, exit: 0x5000_2000, kept: Kept::OnStack };
    let mut bytes = [0; EXIT_THUNK_SIZE];
    let mut code = CodeBuffer::new(&mut bytes, IMAGE);
    exit_thunk(&mut code, 7, bodies, Origin::new(0x4fff_0005)).unwrap();
    expect![[r#"
        +0   mov r11d, 7
        +6   call 0x50001000
        +11  jb short 0x5000001b
        +13  xchg ax, ax
        +15  je short 0x50000016
        +17  call 0x4fff0005
        +22  jmp 0x50002000
        +27  jmp 0x4fff0005
    "#]]
    .assert_eq(&listing(&bytes, IMAGE));
}

#[test]
fn frame_one_program_each_and_two_stack_arguments() {
    let bodies = FrameBodies {
        functions: CookiePlace { column: FUNCTIONS, stride: Stride::Sixteen },
        stack_arguments: 2,
        vectors: Vectors::Untouched,
        entries: &[in_records(ENTRY_PROGRAM, RECORDS)],
        modify: &[in_records(MODIFYING_PROGRAM, RECORDS)],
        exits: &[in_column(EXIT_PROGRAM, LANE_1)],
    };
    check(
        |code| bodies.emit(code).unwrap(),
        starts,
        expect![[r#"
        enter +128, exit +0
        +0   lea rbx, [rsp + 0x18]
        +5   mov [rbx + 0x30], rax
        +9   mov [rbx + 0x38], rdx
        +13  and rsp, 0xfffffffffffffff0
        +17  mov eax, [rbx + 0x40]
        +20  mov r11, 0x7e1000000000
        +30  mov rsi, [r11 + rax*8]
        +34  lea rdi, [rbx]
        +37  call 0x50002000
        +42  mov qword ptr [rsp - 8], 0
        +51  mov rax, [rbx + 0x30]
        +55  mov rdx, [rbx + 0x38]
        +59  lea rsp, [rbx + 0xb0]
        +66  pop rbx
        +67  pop rbp
        +68  ret
        +69  int3
        +70  mov qword ptr [rsp - 8], 0
        +79  lea rsp, [rbx - 0x18]
        +83  mov r11, [rbx + 0x60]
        +87  push r11
        +89  mov rbx, [rbp - 8]
        +93  xor edx, edx
        +95  ret
        +96  int3
        +97  int3
        +98  int3
        +99  int3
        +100 int3
        +101 int3
        +102 int3
        +103 int3
        +104 int3
        +105 int3
        +106 int3
        +107 int3
        +108 int3
        +109 int3
        +110 int3
        +111 int3
        +112 int3
        +113 int3
        +114 int3
        +115 int3
        +116 int3
        +117 int3
        +118 int3
        +119 int3
        +120 int3
        +121 int3
        +122 int3
        +123 int3
        +124 int3
        +125 int3
        +126 int3
        +127 int3
        +128 push rbx
        +129 mov rbx, [rsp + 8]
        +134 mov [rsp + 8], rbp
        +139 lea rbp, [rsp + 8]
        +144 lea rsp, [rsp - 0xb0]
        +152 mov [rsp + 0x60], rbx
        +157 mov rbx, rsp
        +160 mov [rbx], rdi
        +163 mov [rbx + 8], rsi
        +167 mov [rbx + 0x10], rdx
        +171 mov [rbx + 0x18], rcx
        +175 mov [rbx + 0x20], r8
        +179 mov [rbx + 0x28], r9
        +183 mov [rbx + 0x30], rax
        +187 mov [rbx + 0x38], r10
        +191 mov [rbx + 0x40], r11
        +195 mov dword ptr [rbx + 0x44], 1
        +202 mov r10, 0x7d0000000000
        +212 add r11, r11
        +215 mov r10, [r10 + r11*8]
        +219 mov [rbx + 0x48], r10
        +223 mov r10, [rbp + 8]
        +227 mov [rbx + 0x68], r10
        +231 lea r10, [rbp - 8]
        +235 mov [rbx + 0x58], r10
        +239 and rsp, 0xfffffffffffffff0
        +243 mov eax, [rbx + 0x40]
        +246 mov r11, 0x7e0000000000
        +256 add rax, rax
        +259 mov rsi, [r11 + rax*8]
        +263 lea rdi, [rbx]
        +266 call 0x50001000
        +271 mov eax, [rbx + 0x40]
        +274 mov r11, 0x7e0000000000
        +284 add rax, rax
        +287 mov rsi, [r11 + rax*8]
        +291 lea rdi, [rbx]
        +294 call 0x50002800
        +299 test rax, rax
        +302 jne 0x50000046
        +308 mov qword ptr [rsp - 8], 0
        +317 mov rdi, [rbx]
        +320 mov rsi, [rbx + 8]
        +324 mov rdx, [rbx + 0x10]
        +328 mov rcx, [rbx + 0x18]
        +332 mov r8, [rbx + 0x20]
        +336 mov r9, [rbx + 0x28]
        +340 lea rsp, [rbx - 8]
        +344 mov r11, [rbp + 0x18]
        +348 push r11
        +350 mov r11, [rbp + 0x10]
        +354 push r11
        +356 mov r11, [rbx + 0x60]
        +360 push r11
        +362 mov rax, [rbx + 0x30]
        +366 mov r10, [rbx + 0x38]
        +370 mov rbx, [rbp - 8]
        +374 test rsp, rsp
        +377 ret
        +378 int3
    "#]],
    );
}
