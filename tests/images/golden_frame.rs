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
            +191 mov r10, 0x100000000
            +201 add r10, r11
            +204 mov [rbx + 0x40], r10
            +208 mov r10, 0x7d0000000000
            +218 add r11, r11
            +221 mov r10, [r10 + r11*8]
            +225 mov [rbx + 0x48], r10
            +229 lea r10, [rbp - 8]
            +233 mov [rbx + 0x58], r10
            +237 mov r10, [rbp + 8]
            +241 mov [rbx + 0x68], r10
            +245 and rsp, 0xfffffffffffffff0
            +249 mov eax, [rbx + 0x40]
            +252 mov r11, 0x7e0000000000
            +262 add rax, rax
            +265 mov rsi, [r11 + rax*8]
            +269 lea rdi, [rbx]
            +272 call 0x50001000
            +277 mov eax, [rbx + 0x40]
            +280 mov r11, 0x7e0000000000
            +290 add rax, rax
            +293 mov rsi, [r11 + rax*8]
            +297 lea rdi, [rbx]
            +300 call 0x50002800
            +305 test rax, rax
            +308 jne 0x50000046
            +314 mov qword ptr [rsp - 8], 0
            +323 mov rdi, [rbx]
            +326 mov rsi, [rbx + 8]
            +330 mov rdx, [rbx + 0x10]
            +334 mov rcx, [rbx + 0x18]
            +338 mov r8, [rbx + 0x20]
            +342 mov r9, [rbx + 0x28]
            +346 lea rsp, [rbx - 8]
            +350 mov r11, [rbp + 0x18]
            +354 push r11
            +356 mov r11, [rbp + 0x10]
            +360 push r11
            +362 mov r11, [rbx + 0x60]
            +366 push r11
            +368 mov rax, [rbx + 0x30]
            +372 mov r10, [rbx + 0x38]
            +376 mov rbx, [rbp - 8]
            +380 test rsp, rsp
            +383 ret
            +384 int3
        "#]],
    );
}
