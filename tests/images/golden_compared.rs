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
            +18  mov [rbx + 0x60], r10
            +22  mov [rcx], rbx
            +25  inc qword ptr [rcx + 0x20]
            +29  sub rbx, 0x70
            +33  cmp rbp, [rbx + 0x60]
            +37  jne 0x50000001
            +43  jmp 0x50000063
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
            +85  sub rbx, 0x70
            +89  cmp rbp, [rbx + 0x60]
            +93  jne 0x50000001
            +99  mov r11, [rbx + 0x58]
            +103 mov [rbp + 0x10], r11
            +107 mov [rbx + 0x30], rax
            +111 mov [rbx + 0x38], rdx
            +115 mov rax, [rbx + 0x30]
            +119 mov rdx, [rbx + 0x38]
            +123 mov rcx, fs:[0xffffffffffffffc0]
            +132 mov r11, 0xffffffffffffffff
            +139 mov [rbx + 0x60], r11
            +143 mov [rcx], rbx
            +146 mov rsp, rbp
            +149 pop rbp
            +150 pop rbx
            +151 pop r11
            +153 jmp r11
            +156 int3
            +157 lea rsp, [rbp - 0x50]
            +161 pop rdi
            +162 pop rsi
            +163 pop rdx
            +164 pop rcx
            +165 pop r8
            +167 pop r9
            +169 pop rax
            +170 pop r10
            +172 add rsp, 0x10
            +176 pop rbp
            +177 cmp rsp, 0xffffffffffffffff
            +181 ret
            +182 int3
            +183 inc qword ptr [rax + 0x18]
            +187 jmp 0x5000009d
            +192 mov r11, rax
            +195 sub r10, 0x70
            +199 mov rax, 0xffffffffffffffff
            +206 mov [r10 + 0x60], rax
            +210 lea rax, [r10 + 0x70]
            +214 cmpxchg [r11], r10
            +218 mov rax, r11
            +221 mov r11, [rbp - 0x10]
            +225 jne 0x50000171
            +231 inc qword ptr [rax + 0x20]
            +235 jmp 0x50000171
            +240 jne 0x500000c0
            +246 mov r11, [rbp + 0x10]
            +250 push r11
            +252 lea r11, [0x50000040]
            +259 cmp r11, [rsp]
            +263 lea rsp, [rbp - 0x50]
            +267 jne 0x500000c0
            +273 mov r11, [rbp - 0x10]
            +277 jmp 0x50000187
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
            +324 sub rsp, 0x10
            +328 push r10
            +330 push rax
            +331 push r9
            +333 push r8
            +335 push rcx
            +336 push rdx
            +337 push rsi
            +338 push rdi
            +339 mov r11, [rbp + 8]
            +343 mov r11d, [r11 - 0x14]
            +347 mov [rbp - 0x10], r11
            +351 mov rax, fs:[0xffffffffffffffc0]
            +360 test rax, rax
            +363 je 0x5000009d
            +369 mov r10, [rax]
            +372 cmp rbp, [r10 - 0x10]
            +376 jae 0x500000f0
            +382 cmp r10, [rax]
            +385 jne 0x50000171
            +391 cmp r10, [rax + 8]
            +395 jae 0x500000b7
            +401 lea r10, [r10 + 0x70]
            +405 mov [rax], r10
            +408 mov [r10 - 0x10], rbp
            +412 mov [r10 - 0x70], rdi
            +416 mov [r10 - 0x68], rsi
            +420 mov [r10 - 0x60], rdx
            +424 mov [r10 - 0x58], rcx
            +428 mov [r10 - 0x50], r8
            +432 mov [r10 - 0x48], r9
            +436 mov [r10 - 0x30], r11
            +440 mov rax, r11
            +443 mov r11, [rbp + 0x10]
            +447 mov [r10 - 0x18], r11
            +451 mov r11, [rbp + 8]
            +455 lea r11, [r11 - 5]
            +459 mov [r10 - 0x28], r11
            +463 mov [rbp - 8], r11
            +467 xor r11d, r11d
            +470 mov [r10 - 0x20], r11
            +474 lea r11, [0x50000040]
            +481 mov [rbp + 0x10], r11
            +485 lea rsp, [rbp - 0x50]
            +489 pop rdi
            +490 pop rsi
            +491 pop rdx
            +492 pop rcx
            +493 pop r8
            +495 pop r9
            +497 pop rax
            +498 pop r10
            +500 add rsp, 0x10
            +504 pop rbp
            +505 ret
            +506 int3
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
