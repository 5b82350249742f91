//! Images as listings: offsets from the image's start, then instructions.

use expect_test::{Expect, expect};
use fentry::emit::x86_64::{EntryBody, THUNK_JUMP, THUNK_SIZE, entry_thunk};
use fentry::emit::{ProgramCall, Vectors};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::jmp_bytes;
use fentry::layout::x86_64::{IBT, PLAIN, PLAIN_UNPADDED};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use crate::{body, emit, in_column, in_records};

/// Where the images here are emitted for.
const IMAGE: u64 = 0x5000_0000;
/// Programs within a direct call's reach.
const NEAR: [u64; 3] = [0x5000_1000, 0x5000_1100, 0x4fff_ff00];
/// A program that a direct call does not reach.
const FAR: u64 = 0x7f00_0000_1000;
/// Where the records stand.
const RECORDS: u64 = 0x7e00_0000_0000;
/// Where the cookies of lane 1 stand.
const LANE_1: u64 = 0x7e10_0000_0000;

pub fn listing(bytes: &[u8], address: u64) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_space_after_operand_separator(true);
    options.set_space_between_memory_add_operators(true);
    options.set_branch_leading_zeros(false);
    let mut text = String::new();
    for instruction in &mut Decoder::with_ip(64, bytes, address, DecoderOptions::NONE) {
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        text += &format!("+{:<4}{line}\n", instruction.ip() - address);
    }
    text
}

fn check(body: &EntryBody<'_>, expected: Expect) {
    expected.assert_eq(&listing(&emit(body, IMAGE), IMAGE));
}

/// The part of an image that the registers are saved around: vectors and programs.
fn check_middle(vectors: Vectors, calls: &[ProgramCall], expected: Expect) {
    let all = listing(&emit(&body(&PLAIN, vectors, calls), IMAGE), IMAGE);
    let middle = all
        .split_inclusive('\n')
        .skip_while(|line| !line.contains("and rsp"))
        .skip(1)
        .take_while(|line| !line.contains("lea rsp"));
    expected.assert_eq(&middle.collect::<String>());
}

#[test]
fn one_program_index_in_the_slot() {
    let calls = [in_records(NEAR[0], RECORDS)];
    check(
        &body(&PLAIN, Vectors::Untouched, &calls),
        expect![[r#"
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
            +19  mov r11, [rbp + 8]
            +23  mov eax, [r11 - 0x14]
            +27  mov [rbp - 0x18], rax
            +31  lea r11, [r11 - 5]
            +35  mov [rbp - 0x10], r11
            +39  and rsp, 0xfffffffffffffff0
            +43  mov r11, 0x7e0000000000
            +53  add rax, rax
            +56  mov rsi, [r11 + rax*8]
            +60  lea rdi, [rbp - 0x58]
            +64  call 0x50001000
            +69  mov [rsp - 8], rsp
            +74  lea rsp, [rbp - 0x58]
            +78  pop rdi
            +79  pop rsi
            +80  pop rdx
            +81  pop rcx
            +82  pop r8
            +84  pop r9
            +86  pop rax
            +87  pop r10
            +89  add rsp, 0x18
            +93  pop rbp
            +94  ret
            +95  int3
        "#]],
    );
}

/// The return address is 9 bytes behind the entry, and the index 15 before it.
#[test]
fn with_a_landing_pad_only_the_distances_differ() {
    let plain = emit(&body(&PLAIN, Vectors::Untouched, &[]), IMAGE);
    let ibt = emit(&body(&IBT, Vectors::Untouched, &[]), IMAGE);
    let plain = listing(&plain, IMAGE);
    let ibt = listing(&ibt, IMAGE);
    let differ = plain.lines().zip(ibt.lines()).filter(|(plain, ibt)| plain != ibt);
    let differ: String = differ.map(|(plain, ibt)| format!("-{plain}\n+{ibt}\n")).collect();
    expect![[r#"
        -+23  mov eax, [r11 - 0x14]
        ++23  mov eax, [r11 - 0x18]
        -+31  lea r11, [r11 - 5]
        ++31  lea r11, [r11 - 9]
    "#]]
    .assert_eq(&differ);
}

#[test]
fn one_program_index_from_a_thunk() {
    let calls = [in_records(NEAR[0], RECORDS)];
    check(
        &body(&PLAIN_UNPADDED, Vectors::Untouched, &calls),
        expect![[r#"
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
            +19  mov rax, r11
            +22  mov r11, [rbp + 8]
            +26  mov [rbp - 0x18], rax
            +30  lea r11, [r11 - 5]
            +34  mov [rbp - 0x10], r11
            +38  and rsp, 0xfffffffffffffff0
            +42  mov r11, 0x7e0000000000
            +52  add rax, rax
            +55  mov rsi, [r11 + rax*8]
            +59  lea rdi, [rbp - 0x58]
            +63  call 0x50001000
            +68  mov [rsp - 8], rsp
            +73  lea rsp, [rbp - 0x58]
            +77  pop rdi
            +78  pop rsi
            +79  pop rdx
            +80  pop rcx
            +81  pop r8
            +83  pop r9
            +85  pop rax
            +86  pop r10
            +88  add rsp, 0x18
            +92  pop rbp
            +93  ret
            +94  int3
        "#]],
    );
}

/// Lane 0 is in the records, 16 bytes apart; the other lanes have a column each, 8 bytes apart.
#[test]
fn cookies_of_lanes_0_and_1() {
    check_middle(
        Vectors::Untouched,
        &[in_records(NEAR[0], RECORDS)],
        expect![[r#"
            +43  mov r11, 0x7e0000000000
            +53  add rax, rax
            +56  mov rsi, [r11 + rax*8]
            +60  lea rdi, [rbp - 0x58]
            +64  call 0x50001000
            +69  mov [rsp - 8], rsp
        "#]],
    );
    check_middle(
        Vectors::Untouched,
        &[in_column(NEAR[0], LANE_1)],
        expect![[r#"
            +43  mov r11, 0x7e1000000000
            +53  mov rsi, [r11 + rax*8]
            +57  lea rdi, [rbp - 0x58]
            +61  call 0x50001000
            +66  mov [rsp - 8], rsp
        "#]],
    );
}

#[test]
fn three_programs_and_their_data() {
    let small = ProgramCall { data: Some(0xffff_ffff), ..in_column(NEAR[1], LANE_1) };
    let large = ProgramCall { data: Some(0x1_0000_0000), ..in_column(NEAR[2], LANE_1 + 0x100) };
    check_middle(
        Vectors::Untouched,
        &[in_records(NEAR[0], RECORDS), small, large],
        expect![[r#"
            +43  mov r11, 0x7e0000000000
            +53  add rax, rax
            +56  mov rsi, [r11 + rax*8]
            +60  lea rdi, [rbp - 0x58]
            +64  call 0x50001000
            +69  mov eax, [rbp - 0x18]
            +72  mov r11, 0x7e1000000000
            +82  mov rsi, [r11 + rax*8]
            +86  lea rdi, [rbp - 0x58]
            +90  mov edx, 0xffffffff
            +95  call 0x50001100
            +100 mov eax, [rbp - 0x18]
            +103 mov r11, 0x7e1000000100
            +113 mov rsi, [r11 + rax*8]
            +117 lea rdi, [rbp - 0x58]
            +121 mov rdx, 0x100000000
            +131 call 0x4fffff00
            +136 mov [rsp - 8], rsp
        "#]],
    );
}

#[test]
fn a_program_out_of_reach_is_called_through_a_register() {
    check_middle(
        Vectors::Untouched,
        &[in_column(FAR, LANE_1)],
        expect![[r#"
            +43  mov r11, 0x7e1000000000
            +53  mov rsi, [r11 + rax*8]
            +57  lea rdi, [rbp - 0x58]
            +61  mov r11, 0x7f0000001000
            +71  call r11
            +74  mov [rsp - 8], rsp
        "#]],
    );
}

#[test]
fn vectors_as_the_level_says() {
    check_middle(
        Vectors::Untouched,
        &[],
        expect![[r#"
            +43  mov [rsp - 8], rsp
        "#]],
    );
    check_middle(
        Vectors::Xmm,
        &[],
        expect![[r#"
            +43  sub rsp, 0x80
            +50  movups [rsp], xmm0
            +54  movups [rsp + 0x10], xmm1
            +59  movups [rsp + 0x20], xmm2
            +64  movups [rsp + 0x30], xmm3
            +69  movups [rsp + 0x40], xmm4
            +74  movups [rsp + 0x50], xmm5
            +79  movups [rsp + 0x60], xmm6
            +84  movups [rsp + 0x70], xmm7
            +89  mov [rbp - 8], rsp
            +93  mov dword ptr [rbp - 0x14], 2
            +100 movups xmm0, [rsp]
            +104 movups xmm1, [rsp + 0x10]
            +109 movups xmm2, [rsp + 0x20]
            +114 movups xmm3, [rsp + 0x30]
            +119 movups xmm4, [rsp + 0x40]
            +124 movups xmm5, [rsp + 0x50]
            +129 movups xmm6, [rsp + 0x60]
            +134 movups xmm7, [rsp + 0x70]
            +139 mov [rsp - 8], rsp
        "#]],
    );
    check_middle(
        Vectors::Ymm,
        &[],
        expect![[r#"
            +43  sub rsp, 0x100
            +50  vmovups [rsp], ymm0
            +55  vmovups [rsp + 0x20], ymm1
            +61  vmovups [rsp + 0x40], ymm2
            +67  vmovups [rsp + 0x60], ymm3
            +73  vmovups [rsp + 0x80], ymm4
            +82  vmovups [rsp + 0xa0], ymm5
            +91  vmovups [rsp + 0xc0], ymm6
            +100 vmovups [rsp + 0xe0], ymm7
            +109 vzeroupper
            +112 mov [rbp - 8], rsp
            +116 mov dword ptr [rbp - 0x14], 4
            +123 vmovups ymm0, [rsp]
            +128 vmovups ymm1, [rsp + 0x20]
            +134 vmovups ymm2, [rsp + 0x40]
            +140 vmovups ymm3, [rsp + 0x60]
            +146 vmovups ymm4, [rsp + 0x80]
            +155 vmovups ymm5, [rsp + 0xa0]
            +164 vmovups ymm6, [rsp + 0xc0]
            +173 vmovups ymm7, [rsp + 0xe0]
            +182 mov [rsp - 8], rsp
        "#]],
    );
    check_middle(
        Vectors::Zmm,
        &[],
        expect![[r#"
            +43  sub rsp, 0x200
            +50  vmovups [rsp], zmm0
            +57  vmovups [rsp + 0x40], zmm1
            +65  vmovups [rsp + 0x80], zmm2
            +73  vmovups [rsp + 0xc0], zmm3
            +81  vmovups [rsp + 0x100], zmm4
            +89  vmovups [rsp + 0x140], zmm5
            +97  vmovups [rsp + 0x180], zmm6
            +105 vmovups [rsp + 0x1c0], zmm7
            +113 vzeroupper
            +116 mov [rbp - 8], rsp
            +120 mov dword ptr [rbp - 0x14], 6
            +127 vmovups zmm0, [rsp]
            +134 vmovups zmm1, [rsp + 0x40]
            +142 vmovups zmm2, [rsp + 0x80]
            +150 vmovups zmm3, [rsp + 0xc0]
            +158 vmovups zmm4, [rsp + 0x100]
            +166 vmovups zmm5, [rsp + 0x140]
            +174 vmovups zmm6, [rsp + 0x180]
            +182 vmovups zmm7, [rsp + 0x1c0]
            +190 mov [rsp - 8], rsp
        "#]],
    );
}

#[test]
fn the_entry_thunk_with_nothing_attached_and_with_a_body() {
    let mut bytes = [0; THUNK_SIZE];
    entry_thunk(&mut CodeBuffer::new(&mut bytes, IMAGE), 0x0123_4567).unwrap();
    expect![[r#"
        +0   mov r11d, 0x1234567
        +6   nop [rax + rax]
        +11  ret
        +12  int3
        +13  int3
        +14  int3
        +15  int3
    "#]]
    .assert_eq(&listing(&bytes, IMAGE));
    let jump = jmp_bytes(IMAGE + THUNK_JUMP as u64, NEAR[0]).unwrap();
    bytes[THUNK_JUMP..][..jump.len()].copy_from_slice(&jump);
    expect![[r#"
        +0   mov r11d, 0x1234567
        +6   jmp 0x50001000
        +11  ret
        +12  int3
        +13  int3
        +14  int3
        +15  int3
    "#]]
    .assert_eq(&listing(&bytes, IMAGE));
}
