//! The forms that exist for comparison, as listings.

use expect_test::expect;
use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::{CalledTrampoline, SideStackPlace, SwapBodies};
use fentry::emit::{IndexFrom, Vectors};

use crate::golden_exit::{
    ENTRY_PROGRAM, EXIT_PROGRAM, IMAGE, LANE_1, RECORDS, SIDE_STACK, check, starts,
};
use crate::{in_column, in_records};

#[test]
fn swap_without_programs() {
    let bodies = SwapBodies {
        index: IndexFrom::Slot { return_to_index: 20 },
        return_to_entry: 5,
        side_stack: SideStackPlace { make: None, ..SIDE_STACK },
        vectors: Vectors::Xmm,
        entries: &[],
        exits: &[],
    };
    check(
        |code| bodies.emit(code).unwrap(),
        starts,
        expect![[r#"
            enter +256, exit +64
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
            +110 mov rcx, fs:[0xffffffffffffffc0]
            +119 mov qword ptr [rbx + 0x58], 0xffffffffffffffff
            +127 mov [rcx], rbx
            +130 mov rsp, rbp
            +133 pop rbp
            +134 pop rbx
            +135 pop r11
            +137 jmp r11
            +140 int3
            +141 cmp rsp, 0xffffffffffffffff
            +145 pop r10
            +147 pop rbx
            +148 pop rax
            +149 pop rbp
            +150 ret
            +151 int3
            +152 inc qword ptr [rax + 0x18]
            +156 jmp 0x5000008d
            +161 mov r10, rax
            +164 sub rbx, 0xb0
            +171 mov qword ptr [rbx + 0x58], 0xffffffffffffffff
            +179 lea rax, [rbx + 0xb0]
            +186 cmpxchg [r10], rbx
            +190 mov rax, r10
            +193 jne 0x50000122
            +199 inc qword ptr [rax + 0x20]
            +203 jmp 0x50000122
            +208 mov r10, [rbx - 0x58]
            +212 test r10, r10
            +215 je 0x50000138
            +221 cmp rbp, [rbx - 0x58]
            +225 jne 0x500000a1
            +231 lea r10, [0x50000040]
            +238 cmp r10, [rbp + 0x10]
            +242 jne 0x500000a1
            +248 jmp 0x50000138
            +253 int3
            +254 int3
            +255 int3
            +256 push rbp
            +257 mov rbp, rsp
            +260 push rax
            +261 push rbx
            +262 push r10
            +264 mov r11, [rbp + 8]
            +268 mov r11d, [r11 - 0x14]
            +272 mov rax, fs:[0xffffffffffffffc0]
            +281 test rax, rax
            +284 je 0x5000008d
            +290 mov rbx, [rax]
            +293 cmp rbp, [rbx - 0x58]
            +297 jae 0x500000d0
            +303 cmp rbx, [rax]
            +306 jne 0x50000122
            +312 cmp rbx, [rax + 8]
            +316 jae 0x50000098
            +322 lea r10, [rbx + 0xb0]
            +329 mov [rax], r10
            +332 mov [rbx], rdi
            +335 mov [rbx + 8], rsi
            +339 mov [rbx + 0x10], rdx
            +343 mov [rbx + 0x18], rcx
            +347 mov [rbx + 0x20], r8
            +351 mov [rbx + 0x28], r9
            +355 mov r10, 0x300000000
            +365 add r10, r11
            +368 mov [rbx + 0x40], r10
            +372 mov r10, [rbp + 8]
            +376 lea r10, [r10 - 5]
            +380 mov [rbx + 0x48], r10
            +384 mov [rbx + 0x58], rbp
            +388 mov r10, [rbp + 0x10]
            +392 mov [rbx + 0x68], r10
            +396 lea r11, [0x50000040]
            +403 mov [rbp + 0x10], r11
            +407 test rsp, rsp
            +410 pop r10
            +412 pop rbx
            +413 pop rax
            +414 pop rbp
            +415 ret
            +416 int3
        "#]],
    );
}

#[test]
fn called_with_vectors_and_a_stack_argument() {
    let trampoline = CalledTrampoline {
        index: 7,
        function: Entry::new(0x4fff_0000),
        origin: Origin::new(0x4fff_0005),
        stack_arguments: 1,
        vectors: Vectors::Xmm,
        entries: &[in_records(ENTRY_PROGRAM, RECORDS)],
        exits: &[in_column(EXIT_PROGRAM, LANE_1), in_column(EXIT_PROGRAM + 0x100, LANE_1 + 0x100)],
    };
    let start = |start: u64| format!("trampoline +{}", start - IMAGE);
    check(
        |code| trampoline.emit(code).unwrap(),
        start,
        expect![[r#"
            trampoline +0
            +0   push rbp
            +1   mov rbp, rsp
            +4   sub rsp, 0x18
            +8   push r10
            +10  push rax
            +11  push r9
            +13  push r8
            +15  push rcx
            +16  push rdx
            +17  push rsi
            +18  push rdi
            +19  push rbx
            +20  sub rsp, 0xb0
            +27  lea rbx, [rbp - 0x110]
            +34  mov [rbx], rdi
            +37  mov [rbx + 8], rsi
            +41  mov [rbx + 0x10], rdx
            +45  mov [rbx + 0x18], rcx
            +49  mov [rbx + 0x20], r8
            +53  mov [rbx + 0x28], r9
            +57  mov eax, 7
            +62  mov [rbp - 0x18], rax
            +66  mov [rbx + 0x40], rax
            +70  mov r11, 0x4fff0000
            +80  mov [rbp - 0x10], r11
            +84  mov [rbx + 0x48], r11
            +88  mov r11, [rbp + 0x10]
            +92  mov [rbx + 0x68], r11
            +96  mov dword ptr [rbx + 0x44], 2
            +103 and rsp, 0xfffffffffffffff0
            +107 sub rsp, 0x80
            +114 movups [rsp], xmm0
            +118 movups [rsp + 0x10], xmm1
            +123 movups [rsp + 0x20], xmm2
            +128 movups [rsp + 0x30], xmm3
            +133 movups [rsp + 0x40], xmm4
            +138 movups [rsp + 0x50], xmm5
            +143 movups [rsp + 0x60], xmm6
            +148 movups [rsp + 0x70], xmm7
            +153 mov [rbp - 8], rsp
            +157 mov dword ptr [rbp - 0x14], 2
            +164 mov eax, [rbp - 0x18]
            +167 mov r11, 0x7e0000000000
            +177 add rax, rax
            +180 mov rsi, [r11 + rax*8]
            +184 lea rdi, [rbp - 0x58]
            +188 call 0x50001000
            +193 movups xmm0, [rsp]
            +197 movups xmm1, [rsp + 0x10]
            +202 movups xmm2, [rsp + 0x20]
            +207 movups xmm3, [rsp + 0x30]
            +212 movups xmm4, [rsp + 0x40]
            +217 movups xmm5, [rsp + 0x50]
            +222 movups xmm6, [rsp + 0x60]
            +227 movups xmm7, [rsp + 0x70]
            +232 mov qword ptr [rsp - 8], 0
            +241 and rsp, 0xfffffffffffffff0
            +245 sub rsp, 8
            +249 mov r11, [rbp + 0x18]
            +253 push r11
            +255 mov rdi, [rbp - 0x58]
            +259 mov rsi, [rbp - 0x50]
            +263 mov rdx, [rbp - 0x48]
            +267 mov rcx, [rbp - 0x40]
            +271 mov r8, [rbp - 0x38]
            +275 mov r9, [rbp - 0x30]
            +279 mov rax, [rbp - 0x28]
            +283 mov r10, [rbp - 0x20]
            +287 call 0x4fff0005
            +292 mov [rbx + 0x30], rax
            +296 mov [rbx + 0x38], rdx
            +300 and rsp, 0xfffffffffffffff0
            +304 sub rsp, 0x20
            +308 movups [rsp], xmm0
            +312 movups [rsp + 0x10], xmm1
            +317 mov [rbx + 0x50], rsp
            +321 mov eax, [rbx + 0x40]
            +324 mov r11, 0x7e1000000100
            +334 mov rsi, [r11 + rax*8]
            +338 lea rdi, [rbx]
            +341 call 0x50002100
            +346 mov eax, [rbx + 0x40]
            +349 mov r11, 0x7e1000000000
            +359 mov rsi, [r11 + rax*8]
            +363 lea rdi, [rbx]
            +366 call 0x50002000
            +371 movups xmm0, [rsp]
            +375 movups xmm1, [rsp + 0x10]
            +380 mov qword ptr [rsp - 8], 0
            +389 mov rax, [rbx + 0x30]
            +393 mov rdx, [rbx + 0x38]
            +397 mov rbx, [rbp - 0x60]
            +401 mov rsp, rbp
            +404 pop rbp
            +405 add rsp, 8
            +409 ret
            +410 int3
        "#]],
    );
}
