# Every exception and interrupt: what is interrupted is saved, and `trap` gets a pointer to it.
# The landing pads are for a kernel with indirect branch tracking.

.macro ENTRY vector, error
.balign 16
9:  endbr64
    .if \error == 0
    push 0
    .endif
    push \vector
    jmp trap_common
.pushsection .rodata.trap_entries, "a"
    .quad 9b
.popsection
.endm

.section .rodata.trap_entries, "a"
.balign 8
.global trap_entries
trap_entries:

.text
# Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code (Intel SDM volume 3, 7.15).
.irp vector, 0, 1, 2, 3, 4, 5, 6, 7
    ENTRY \vector, 0
.endr
    ENTRY 8, 1
    ENTRY 9, 0
.irp vector, 10, 11, 12, 13, 14
    ENTRY \vector, 1
.endr
    ENTRY 15, 0
    ENTRY 16, 0
    ENTRY 17, 1
    ENTRY 18, 0
    ENTRY 19, 0
    ENTRY 20, 0
    ENTRY 21, 1
.irp vector, 22, 23, 24, 25, 26, 27, 28
    ENTRY \vector, 0
.endr
    ENTRY 29, 1
    ENTRY 30, 1
    ENTRY 31, 0
    ENTRY 32, 0

.balign 16
trap_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call trap
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
