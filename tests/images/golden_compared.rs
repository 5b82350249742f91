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
            +1   cmp rbp, [rcx + 0x10]
            +5   jbe 0x50000000
            +11  mov r8, rax
            +14  mov rax, rbp
            +17  sub rbp, 0xb0
            +24  cmpxchg [rcx], rbp
            +28  mov rax, r8
            +31  jne 0x50000029
            +37  inc qword ptr [rcx + 0x20]
            +41  mov rbp, [rcx]
            +44  cmp rsp, [rbp - 8]
            +48  jne 0x50000001
            +54  jmp 0x5000005f
            +59  int3
            +60  int3
            +61  int3
            +62  int3
            +63  int3
            +64  sub rsp, 0x20
            +68  mov [rsp + 0x10], rbp
            +73  mov rcx, fs:[0xffffffffffffffc0]
            +82  mov rbp, [rcx]
            +85  cmp rsp, [rbp - 8]
            +89  jne 0x50000001
            +95  mov r11, [rbp + 8]
            +99  mov [rsp + 0x18], r11
            +104 mov rcx, fs:[0xffffffffffffffc0]
            +113 mov rsp, [rbp - 8]
            +117 lea r11, [rbp - 0xb0]
            +124 mov rbp, [rsp + 0x10]
            +129 mov [rcx], r11
            +132 add rsp, 0x18
            +136 pop r11
            +138 jmp r11
            +141 int3
            +142 cmp rsp, 0xffffffffffffffff
            +146 pop r10
            +148 pop rax
            +149 ret
            +150 int3
            +151 inc qword ptr [rax + 0x18]
            +155 jmp 0x5000008e
            +160 mov [r10 - 8], rsp
            +164 mov [r10], rbp
            +167 cmp r10, [rax]
            +170 je 0x50000186
            +176 dec qword ptr [rax + 0x20]
            +180 jmp 0x5000015e
            +185 push r11
            +187 mov r11, rax
            +190 mov rax, r10
            +193 sub r10, 0xb0
            +200 cmpxchg [r11], r10
            +204 mov rax, r11
            +207 pop r11
            +209 jne 0x5000015e
            +215 inc qword ptr [rax + 0x20]
            +219 jmp 0x5000015e
            +224 jne 0x500000b9
            +230 lea rax, [0x50000040]
            +237 cmp rax, [rsp + 0x18]
            +242 mov rax, fs:[0xffffffffffffffc0]
            +251 jne 0x500000b9
            +257 jmp 0x5000016b
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
            +320 push rax
            +321 push r10
            +323 mov r11, [rsp + 0x10]
            +328 mov r11d, [r11 - 0x14]
            +332 mov rax, fs:[0xffffffffffffffc0]
            +341 test rax, rax
            +344 je 0x5000008e
            +350 mov r10, [rax]
            +353 cmp rsp, [r10 - 8]
            +357 jae 0x500000e0
            +363 cmp r10, [rax + 8]
            +367 jae 0x50000097
            +373 add r10, 0xb0
            +380 mov [r10 - 8], rsp
            +384 mov [r10], rbp
            +387 mov [rax], r10
            +390 cmp rsp, [r10 - 8]
            +394 jne 0x500000a0
            +400 mov rbp, r10
            +403 mov [rbp - 0x60], rdi
            +407 mov [rbp - 0x58], rsi
            +411 mov [rbp - 0x50], rdx
            +415 mov [rbp - 0x48], rcx
            +419 mov [rbp - 0x40], r8
            +423 mov [rbp - 0x38], r9
            +427 mov r10, 0x300000000
            +437 add r10, r11
            +440 mov [rbp - 0x20], r10
            +444 mov r10, [rsp + 0x10]
            +449 lea r10, [r10 - 5]
            +453 mov [rbp - 0x18], r10
            +457 mov r10, [rsp + 0x18]
            +462 mov [rbp + 8], r10
            +466 lea r11, [0x50000040]
            +473 mov [rsp + 0x18], r11
            +478 test rsp, rsp
            +481 mov rbp, [rbp]
            +485 pop r10
            +487 pop rax
            +488 ret
            +489 int3
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
