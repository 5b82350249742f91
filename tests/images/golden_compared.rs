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
            enter +320, exit +64
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
            +100 mov rcx, fs:[0xffffffffffffffc0]
            +109 mov rsp, [rbp - 8]
            +113 lea r11, [rbp - 0xb0]
            +120 mov rbp, [rsp + 0x10]
            +125 mov [rcx], r11
            +128 add rsp, 0x18
            +132 pop r11
            +134 jmp r11
            +137 int3
            +138 cmp rsp, 0xffffffffffffffff
            +142 pop r10
            +144 pop rax
            +145 ret
            +146 int3
            +147 inc qword ptr [rax + 0x18]
            +151 jmp 0x5000008a
            +156 mov [r10 - 8], rsp
            +160 mov [r10], rbp
            +163 cmp r10, [rax]
            +166 je 0x5000017a
            +172 dec qword ptr [rax + 0x20]
            +176 jmp 0x5000015a
            +181 push r11
            +183 mov r11, rax
            +186 mov rax, r10
            +189 sub r10, 0xb0
            +196 cmpxchg [r11], r10
            +200 mov rax, r11
            +203 pop r11
            +205 jne 0x5000015a
            +211 inc qword ptr [rax + 0x20]
            +215 jmp 0x5000015a
            +220 jne 0x500000b5
            +226 lea rax, [0x50000040]
            +233 cmp rax, [rsp + 0x18]
            +238 mov rax, fs:[0xffffffffffffffc0]
            +247 jne 0x500000b5
            +253 jmp 0x50000163
            +258 int3
            +259 int3
            +260 int3
            +261 int3
            +262 int3
            +263 int3
            +264 int3
            +265 int3
            +266 int3
            +267 int3
            +268 int3
            +269 int3
            +270 int3
            +271 int3
            +272 int3
            +273 int3
            +274 int3
            +275 int3
            +276 int3
            +277 int3
            +278 int3
            +279 int3
            +280 int3
            +281 int3
            +282 int3
            +283 int3
            +284 int3
            +285 int3
            +286 int3
            +287 int3
            +288 int3
            +289 int3
            +290 int3
            +291 int3
            +292 int3
            +293 int3
            +294 int3
            +295 int3
            +296 int3
            +297 int3
            +298 int3
            +299 int3
            +300 jmp 0x5000008a
            +305 jmp 0x500000dc
            +310 jmp 0x50000093
            +315 jmp 0x5000009c
            +320 push rax
            +321 push r10
            +323 mov r11, [rsp + 0x10]
            +328 mov r11d, [r11 - 0x14]
            +332 mov rax, fs:[0xffffffffffffffc0]
            +341 test rax, rax
            +344 je short 0x5000012c
            +346 mov r10, [rax]
            +349 cmp rsp, [r10 - 8]
            +353 jae short 0x50000131
            +355 cmp r10, [rax + 8]
            +359 jae short 0x50000136
            +361 add r10, 0xb0
            +368 mov [r10 - 8], rsp
            +372 mov [r10], rbp
            +375 mov [rax], r10
            +378 cmp rsp, [r10 - 8]
            +382 jne short 0x5000013b
            +384 mov rbp, r10
            +387 mov [rbp - 0x60], rdi
            +391 mov [rbp - 0x58], rsi
            +395 mov [rbp - 0x50], rdx
            +399 mov [rbp - 0x48], rcx
            +403 mov [rbp - 0x40], r8
            +407 mov [rbp - 0x38], r9
            +411 mov r10, 0x300000000
            +421 add r10, r11
            +424 mov [rbp - 0x20], r10
            +428 mov r10, [rsp + 0x10]
            +433 lea r10, [r10 - 5]
            +437 mov [rbp - 0x18], r10
            +441 mov r10, [rsp + 0x18]
            +446 mov [rbp + 8], r10
            +450 lea r11, [0x50000040]
            +457 mov [rsp + 0x18], r11
            +462 test rsp, rsp
            +465 mov rbp, [rbp]
            +469 pop r10
            +471 pop rax
            +472 ret
            +473 int3
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
            +232 mov [rsp - 8], rsp
            +237 and rsp, 0xfffffffffffffff0
            +241 sub rsp, 8
            +245 mov r11, [rbp + 0x18]
            +249 push r11
            +251 mov rdi, [rbp - 0x58]
            +255 mov rsi, [rbp - 0x50]
            +259 mov rdx, [rbp - 0x48]
            +263 mov rcx, [rbp - 0x40]
            +267 mov r8, [rbp - 0x38]
            +271 mov r9, [rbp - 0x30]
            +275 mov rax, [rbp - 0x28]
            +279 mov r10, [rbp - 0x20]
            +283 call 0x4fff0005
            +288 mov [rbx + 0x30], rax
            +292 mov [rbx + 0x38], rdx
            +296 and rsp, 0xfffffffffffffff0
            +300 sub rsp, 0x80
            +307 movups [rsp], xmm0
            +311 movups [rsp + 0x10], xmm1
            +316 mov [rbx + 0x50], rsp
            +320 mov eax, [rbx + 0x40]
            +323 mov r11, 0x7e1000000100
            +333 mov rsi, [r11 + rax*8]
            +337 lea rdi, [rbx]
            +340 call 0x50002100
            +345 mov eax, [rbx + 0x40]
            +348 mov r11, 0x7e1000000000
            +358 mov rsi, [r11 + rax*8]
            +362 lea rdi, [rbx]
            +365 call 0x50002000
            +370 movups xmm0, [rsp]
            +374 movups xmm1, [rsp + 0x10]
            +379 mov [rsp - 8], rsp
            +384 mov rax, [rbx + 0x30]
            +388 mov rdx, [rbx + 0x38]
            +392 mov rbx, [rbp - 0x60]
            +396 mov rsp, rbp
            +399 pop rbp
            +400 add rsp, 8
            +404 ret
            +405 int3
        "#]],
    );
}
