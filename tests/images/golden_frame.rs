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
            +5   mov rsp, rbx
            +8   mov [rbx + 0x30], rax
            +12  mov [rbx + 0x38], rdx
            +16  and rsp, 0xfffffffffffffff0
            +20  mov eax, [rbx + 0x40]
            +23  mov r11, 0x7e1000000000
            +33  mov rsi, [r11 + rax*8]
            +37  lea rdi, [rbx]
            +40  call 0x50002000
            +45  mov [rsp - 8], rsp
            +50  mov rax, [rbx + 0x30]
            +54  mov rdx, [rbx + 0x38]
            +58  lea rsp, [rbx + 0xb0]
            +65  pop rbx
            +66  pop rbp
            +67  ret
            +68  int3
            +69  mov [rsp - 8], rsp
            +74  lea rsp, [rbx - 0x18]
            +78  mov r11, [rbx + 0x60]
            +82  push r11
            +84  mov rbx, [rbp - 8]
            +88  xor edx, edx
            +90  ret
            +91  int3
            +92  int3
            +93  int3
            +94  int3
            +95  int3
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
            +229 lea r10, [rbp - 0x10]
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
            +308 jne 0x50000045
            +314 mov rdi, [rbx]
            +317 mov rsi, [rbx + 8]
            +321 mov rdx, [rbx + 0x10]
            +325 mov rcx, [rbx + 0x18]
            +329 mov r8, [rbx + 0x20]
            +333 mov r9, [rbx + 0x28]
            +337 lea rsp, [rbx - 8]
            +341 mov r11, [rbp + 0x18]
            +345 push r11
            +347 mov r11, [rbp + 0x10]
            +351 push r11
            +353 mov r11, [rbx + 0x60]
            +357 push r11
            +359 mov rax, [rbx + 0x30]
            +363 mov r10, [rbx + 0x38]
            +367 mov rbx, [rbp - 8]
            +371 test rsp, rsp
            +374 ret
            +375 int3
        "#]],
    );
}
