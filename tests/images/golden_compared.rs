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
            +110 mov rcx, fs:[0xffffffffffffffc0]
            +119 mov r11, 0xffffffffffffffff
            +126 mov [rbx + 0x58], r11
            +130 mov [rcx], rbx
            +133 mov rsp, rbp
            +136 pop rbp
            +137 pop rbx
            +138 pop r11
            +140 jmp r11
            +143 int3
            +144 cmp rsp, 0xffffffffffffffff
            +148 pop r10
            +150 pop rbx
            +151 pop rax
            +152 pop rbp
            +153 ret
            +154 int3
            +155 inc qword ptr [rax + 0x18]
            +159 jmp 0x50000090
            +164 mov r10, rax
            +167 sub rbx, 0xb0
            +174 mov rax, 0xffffffffffffffff
            +181 mov [rbx + 0x58], rax
            +185 lea rax, [rbx + 0xb0]
            +192 cmpxchg [r10], rbx
            +196 mov rax, r10
            +199 jne 0x50000162
            +205 inc qword ptr [rax + 0x20]
            +209 jmp 0x50000162
            +214 mov r10, [rbx - 0x58]
            +218 test r10, r10
            +221 je 0x50000178
            +227 cmp rbp, [rbx - 0x58]
            +231 jne 0x500000a4
            +237 lea r10, [0x50000040]
            +244 cmp r10, [rbp + 0x10]
            +248 jne 0x500000a4
            +254 jmp 0x50000178
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
            +300 int3
            +301 int3
            +302 int3
            +303 int3
            +304 int3
            +305 int3
            +306 int3
            +307 int3
            +308 int3
            +309 int3
            +310 int3
            +311 int3
            +312 int3
            +313 int3
            +314 int3
            +315 int3
            +316 int3
            +317 int3
            +318 int3
            +319 int3
            +320 push rbp
            +321 mov rbp, rsp
            +324 push rax
            +325 push rbx
            +326 push r10
            +328 mov r11, [rbp + 8]
            +332 mov r11d, [r11 - 0x14]
            +336 mov rax, fs:[0xffffffffffffffc0]
            +345 test rax, rax
            +348 je 0x50000090
            +354 mov rbx, [rax]
            +357 cmp rbp, [rbx - 0x58]
            +361 jae 0x500000d6
            +367 cmp rbx, [rax]
            +370 jne 0x50000162
            +376 cmp rbx, [rax + 8]
            +380 jae 0x5000009b
            +386 lea r10, [rbx + 0xb0]
            +393 mov [rax], r10
            +396 mov [rbx + 0x58], rbp
            +400 mov [rbx], rdi
            +403 mov [rbx + 8], rsi
            +407 mov [rbx + 0x10], rdx
            +411 mov [rbx + 0x18], rcx
            +415 mov [rbx + 0x20], r8
            +419 mov [rbx + 0x28], r9
            +423 mov [rbx + 0x40], r11
            +427 mov eax, 3
            +432 mov [rbx + 0x44], eax
            +435 mov r10, [rbp + 0x10]
            +439 mov [rbx + 0x68], r10
            +443 mov r10, [rbp + 8]
            +447 lea r10, [r10 - 5]
            +451 mov [rbx + 0x48], r10
            +455 lea r11, [0x50000040]
            +462 mov [rbp + 0x10], r11
            +466 test rsp, rsp
            +469 pop r10
            +471 pop rbx
            +472 pop rax
            +473 pop rbp
            +474 ret
            +475 int3
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
            +96  mov eax, 2
            +101 mov [rbx + 0x44], eax
            +104 and rsp, 0xfffffffffffffff0
            +108 sub rsp, 0x80
            +115 movups [rsp], xmm0
            +119 movups [rsp + 0x10], xmm1
            +124 movups [rsp + 0x20], xmm2
            +129 movups [rsp + 0x30], xmm3
            +134 movups [rsp + 0x40], xmm4
            +139 movups [rsp + 0x50], xmm5
            +144 movups [rsp + 0x60], xmm6
            +149 movups [rsp + 0x70], xmm7
            +154 mov [rbp - 8], rsp
            +158 mov r11d, 2
            +164 mov [rbp - 0x14], r11d
            +168 mov eax, [rbp - 0x18]
            +171 mov r11, 0x7e0000000000
            +181 add rax, rax
            +184 mov rsi, [r11 + rax*8]
            +188 lea rdi, [rbp - 0x58]
            +192 call 0x50001000
            +197 movups xmm0, [rsp]
            +201 movups xmm1, [rsp + 0x10]
            +206 movups xmm2, [rsp + 0x20]
            +211 movups xmm3, [rsp + 0x30]
            +216 movups xmm4, [rsp + 0x40]
            +221 movups xmm5, [rsp + 0x50]
            +226 movups xmm6, [rsp + 0x60]
            +231 movups xmm7, [rsp + 0x70]
            +236 xor eax, eax
            +238 mov [rsp - 8], rax
            +243 and rsp, 0xfffffffffffffff0
            +247 sub rsp, 8
            +251 mov r11, [rbp + 0x18]
            +255 push r11
            +257 mov rdi, [rbp - 0x58]
            +261 mov rsi, [rbp - 0x50]
            +265 mov rdx, [rbp - 0x48]
            +269 mov rcx, [rbp - 0x40]
            +273 mov r8, [rbp - 0x38]
            +277 mov r9, [rbp - 0x30]
            +281 mov rax, [rbp - 0x28]
            +285 mov r10, [rbp - 0x20]
            +289 call 0x4fff0005
            +294 mov [rbx + 0x30], rax
            +298 mov [rbx + 0x38], rdx
            +302 and rsp, 0xfffffffffffffff0
            +306 sub rsp, 0x20
            +310 movups [rsp], xmm0
            +314 movups [rsp + 0x10], xmm1
            +319 mov [rbx + 0x50], rsp
            +323 mov eax, [rbx + 0x40]
            +326 mov r11, 0x7e1000000100
            +336 mov rsi, [r11 + rax*8]
            +340 lea rdi, [rbx]
            +343 call 0x50002100
            +348 mov eax, [rbx + 0x40]
            +351 mov r11, 0x7e1000000000
            +361 mov rsi, [r11 + rax*8]
            +365 lea rdi, [rbx]
            +368 call 0x50002000
            +373 movups xmm0, [rsp]
            +377 movups xmm1, [rsp + 0x10]
            +382 xor eax, eax
            +384 mov [rsp - 8], rax
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
