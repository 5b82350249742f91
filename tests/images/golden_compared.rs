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
            enter +272, exit +48
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
            +103 mov rax, [rbx + 0x30]
            +107 mov rdx, [rbx + 0x38]
            +111 mov rcx, fs:[0xffffffffffffffc0]
            +120 mov r11, 0xffffffffffffffff
            +127 mov [rbx + 0x60], r11
            +131 mov [rcx], rbx
            +134 lea rsp, [rbp - 8]
            +138 pop rbx
            +139 pop rbp
            +140 pop r11
            +142 jmp r11
            +145 int3
            +146 lea rsp, [rbp - 0x50]
            +150 pop rdi
            +151 pop rsi
            +152 pop rdx
            +153 pop rcx
            +154 pop r8
            +156 pop r9
            +158 pop rax
            +159 pop r10
            +161 add rsp, 0x10
            +165 pop rbp
            +166 cmp rsp, 0xffffffffffffffff
            +170 ret
            +171 int3
            +172 inc qword ptr [rax + 0x18]
            +176 jmp 0x50000092
            +181 mov r11, rax
            +184 sub r10, 0x70
            +188 mov rax, 0xffffffffffffffff
            +195 mov [r10 + 0x60], rax
            +199 lea rax, [r10 + 0x70]
            +203 cmpxchg [r11], r10
            +207 mov rax, r11
            +210 jne 0x50000141
            +216 inc qword ptr [rax + 0x20]
            +220 jmp 0x50000141
            +225 jne 0x500000b5
            +231 mov r11, [rbp + 0x10]
            +235 push r11
            +237 lea r11, [0x50000030]
            +244 cmp r11, [rsp]
            +248 lea rsp, [rbp - 0x50]
            +252 jne 0x500000b5
            +258 jmp 0x5000015b
            +263 int3
            +264 int3
            +265 int3
            +266 int3
            +267 int3
            +268 int3
            +269 int3
            +270 int3
            +271 int3
            +272 push rbp
            +273 mov rbp, rsp
            +276 sub rsp, 0x10
            +280 push r10
            +282 push rax
            +283 push r9
            +285 push r8
            +287 push rcx
            +288 push rdx
            +289 push rsi
            +290 push rdi
            +291 mov r11, [rbp + 8]
            +295 mov r11d, [r11 - 0x14]
            +299 mov [rbp - 0x10], r11
            +303 mov rax, fs:[0xffffffffffffffc0]
            +312 test rax, rax
            +315 je 0x50000092
            +321 mov r10, [rax]
            +324 lea r11, [rbp + 0x10]
            +328 cmp r11, [r10 - 0x10]
            +332 jae 0x500000e1
            +338 cmp r10, [rax]
            +341 jne 0x50000141
            +347 cmp r10, [rax + 8]
            +351 jae 0x500000ac
            +357 lea r11, [r10 + 0x70]
            +361 mov [rax], r11
            +364 lea r11, [rbp + 0x10]
            +368 mov [r10 + 0x60], r11
            +372 mov [r10], rdi
            +375 mov [r10 + 8], rsi
            +379 mov [r10 + 0x10], rdx
            +383 mov [r10 + 0x18], rcx
            +387 mov [r10 + 0x20], r8
            +391 mov [r10 + 0x28], r9
            +395 mov r11, [rbp + 0x10]
            +399 mov [r10 + 0x58], r11
            +403 mov rax, [rbp - 0x10]
            +407 mov [r10 + 0x40], rax
            +411 mov r11, [rbp + 8]
            +415 lea r11, [r11 - 5]
            +419 mov [r10 + 0x48], r11
            +423 mov [rbp - 8], r11
            +427 xor r11d, r11d
            +430 mov [r10 + 0x50], r11
            +434 lea r11, [0x50000030]
            +441 mov [rbp + 0x10], r11
            +445 lea rsp, [rbp - 0x50]
            +449 pop rdi
            +450 pop rsi
            +451 pop rdx
            +452 pop rcx
            +453 pop r8
            +455 pop r9
            +457 pop rax
            +458 pop r10
            +460 add rsp, 0x10
            +464 pop rbp
            +465 ret
            +466 int3
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
        +4   sub rsp, 0x10
        +8   push r10
        +10  push rax
        +11  push r9
        +13  push r8
        +15  push rcx
        +16  push rdx
        +17  push rsi
        +18  push rdi
        +19  push rbx
        +20  sub rsp, 0x70
        +24  lea rbx, [rbp - 0xc8]
        +31  mov [rbx], rdi
        +34  mov [rbx + 8], rsi
        +38  mov [rbx + 0x10], rdx
        +42  mov [rbx + 0x18], rcx
        +46  mov [rbx + 0x20], r8
        +50  mov [rbx + 0x28], r9
        +54  mov eax, 7
        +59  mov [rbp - 0x10], rax
        +63  mov [rbx + 0x40], rax
        +67  mov r11, 0x4fff0000
        +77  mov [rbp - 8], r11
        +81  mov [rbx + 0x48], r11
        +85  mov r11, [rbp + 0x10]
        +89  mov [rbx + 0x58], r11
        +93  xor r11d, r11d
        +96  mov [rbx + 0x50], r11
        +100 and rsp, 0xfffffffffffffff0
        +104 sub rsp, 0x80
        +111 movups [rsp], xmm0
        +115 movups [rsp + 0x10], xmm1
        +120 movups [rsp + 0x20], xmm2
        +125 movups [rsp + 0x30], xmm3
        +130 movups [rsp + 0x40], xmm4
        +135 movups [rsp + 0x50], xmm5
        +140 movups [rsp + 0x60], xmm6
        +145 movups [rsp + 0x70], xmm7
        +150 mov rax, [rbp - 0x10]
        +154 lea rcx, [rbx + 0x50]
        +158 mov r11, 0x7e0000000000
        +168 add rax, rax
        +171 mov rsi, [r11 + rax*8]
        +175 lea rdi, [rbp - 0x50]
        +179 call 0x50001000
        +184 movups xmm0, [rsp]
        +188 movups xmm1, [rsp + 0x10]
        +193 movups xmm2, [rsp + 0x20]
        +198 movups xmm3, [rsp + 0x30]
        +203 movups xmm4, [rsp + 0x40]
        +208 movups xmm5, [rsp + 0x50]
        +213 movups xmm6, [rsp + 0x60]
        +218 movups xmm7, [rsp + 0x70]
        +223 xor eax, eax
        +225 mov [rsp - 8], rax
        +230 and rsp, 0xfffffffffffffff0
        +234 sub rsp, 8
        +238 mov r11, [rbp + 0x18]
        +242 push r11
        +244 mov rdi, [rbp - 0x50]
        +248 mov rsi, [rbp - 0x48]
        +252 mov rdx, [rbp - 0x40]
        +256 mov rcx, [rbp - 0x38]
        +260 mov r8, [rbp - 0x30]
        +264 mov r9, [rbp - 0x28]
        +268 mov rax, [rbp - 0x20]
        +272 mov r10, [rbp - 0x18]
        +276 call 0x4fff0005
        +281 mov [rbx + 0x30], rax
        +285 mov [rbx + 0x38], rdx
        +289 and rsp, 0xfffffffffffffff0
        +293 sub rsp, 0x20
        +297 movups [rsp], xmm0
        +301 movups [rsp + 0x10], xmm1
        +306 mov rax, [rbx + 0x40]
        +310 mov r11, 0x7e1000000100
        +320 mov rsi, [r11 + rax*8]
        +324 lea rdi, [rbx]
        +327 call 0x50002100
        +332 mov rax, [rbx + 0x40]
        +336 mov r11, 0x7e1000000000
        +346 mov rsi, [r11 + rax*8]
        +350 lea rdi, [rbx]
        +353 call 0x50002000
        +358 movups xmm0, [rsp]
        +362 movups xmm1, [rsp + 0x10]
        +367 xor eax, eax
        +369 mov [rsp - 8], rax
        +374 mov rax, [rbx + 0x30]
        +378 mov rdx, [rbx + 0x38]
        +382 mov rbx, [rbp - 0x58]
        +386 mov rsp, rbp
        +389 pop rbp
        +390 add rsp, 8
        +394 ret
        +395 int3
    "#]],
    );
}
