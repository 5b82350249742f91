# Calls code with control protection on, and turns it off when it returns or traps.
#
# attempt(edi = protection, rsi = code, rdx = r11 for it, rcx = its two arguments) -> rax
.text
.global attempt
attempt:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov [rip + attempt_stack], rsp
    mov rbx, rsi
    mov r12, rdx
    mov rsi, [rcx + 8]
    mov r13, [rcx]
    mov eax, edi
    mov ebp, edi
    xor edx, edx
    mov ecx, {s_cet}
    wrmsr
    test ebp, {shadow_stack}
    jz 1f
    setssbsy
1:  mov rdi, r13
    mov r11, r12
    xor eax, eax
    xor r10d, r10d
    call rbx
attempt_end:
    mov rbx, rax
    xor eax, eax
    xor edx, edx
    mov ecx, {s_cet}
    wrmsr
    mov rax, rbx
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

# Ends the attempt from inside a trap: what it has left on the stacks is dropped.
.global abandon
abandon:
    mov rsp, [rip + attempt_stack]
    jmp attempt_end

.bss
.balign 8
attempt_stack:
    .quad 0
