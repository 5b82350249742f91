//! Programs in assembly, which do exactly what they say: a compiler would save registers
//! that it is not asked to, or leave alone those it has no use for.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::emit::{Context, ExitContext};

/// Runs of any of the clobbering programs.
static RUNS: AtomicU64 = AtomicU64::new(0);
/// The low four bits of `rsp` before the call of a program, all runs together.
static MISALIGNED: AtomicU64 = AtomicU64::new(0);
/// The direction flag at a program's entry, all runs together.
static DIRECTION: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .macro observe
    lock inc qword ptr [rip + {runs}]
    lea rax, [rsp + 8]
    and eax, 15
    lock or qword ptr [rip + {misaligned}], rax
    pushfq
    pop rax
    and eax, 0x400
    lock or qword ptr [rip + {direction}], rax
    .endm

    .macro clobber_integers
    mov rax, 0xa5a5a5a5a5a5a5a5
    .irp register, rcx, rdx, rsi, rdi, r8, r9, r10, r11
    lea \register, [rax + 1]
    .endr
    .endm

    .globl fentry_test_empty
    fentry_test_empty:
    ret

    .globl fentry_test_clobber_sse
    fentry_test_clobber_sse:
    observe
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    pcmpeqd xmm\n, xmm\n
    .endr
    clobber_integers
    ret

    .globl fentry_test_clobber_avx
    fentry_test_clobber_avx:
    observe
    vxorps xmm0, xmm0, xmm0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vcmptrueps ymm\n, ymm0, ymm0
    .endr
    clobber_integers
    ret

    .globl fentry_test_clobber_avx512
    fentry_test_clobber_avx512:
    observe
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vpternlogd zmm\n, zmm\n, zmm\n, 255
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vpternlogd zmm\n, zmm\n, zmm\n, 255
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kxnorw k\n, k\n, k\n
    .endr
    clobber_integers
    ret

    # call_misaligned(function, first, second): calls with rsp 8 off what the psABI says.
    .globl fentry_test_call_misaligned
    fentry_test_call_misaligned:
    mov rax, rdi
    mov rdi, rsi
    mov rsi, rdx
    sub rsp, 16
    call rax
    add rsp, 16
    ret

    # call_keeping(function): calls with known values in all registers that a callee must
    # keep; returns a bit for each that changed: rbx 1, rbp 2, r12 4, r13 8, r14 16, r15 32.
    .globl fentry_test_call_keeping
    fentry_test_call_keeping:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov rbx, 0x1111111111111111
    .irp register, rbp, r12, r13, r14, r15
    lea \register, [rbx + 5]
    .endr
    call rdi
    xor eax, eax
    mov rcx, 0x1111111111111111
    mov edx, 1
    cmp rbx, rcx
    je 2f
    or eax, edx
    2:
    add rcx, 5
    .irp register, rbp, r12, r13, r14, r15
    add edx, edx
    cmp \register, rcx
    je 2f
    or eax, edx
    2:
    .endr
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    "#,
    runs = sym RUNS,
    misaligned = sym MISALIGNED,
    direction = sym DIRECTION,
);

// SAFETY: the functions above have these types. The programs change only registers that the
// psABI lets a callee change, and the three statics.
unsafe extern "C" {
    /// Does nothing at all.
    #[link_name = "fentry_test_empty"]
    pub safe fn empty(context: &mut Context, cookie: u64);
    /// Overwrites every caller-saved register of a CPU with SSE.
    #[link_name = "fentry_test_clobber_sse"]
    pub safe fn clobber_sse(context: &mut Context, cookie: u64);
    /// The same with AVX: whole `ymm` registers.
    #[link_name = "fentry_test_clobber_avx"]
    safe fn clobber_avx(context: &mut Context, cookie: u64);
    /// The same with AVX-512: 32 whole `zmm` registers and the mask registers.
    #[link_name = "fentry_test_clobber_avx512"]
    safe fn clobber_avx512(context: &mut Context, cookie: u64);
    /// Calls `function(first, second)` with a stack that is aligned to 8 bytes only.
    ///
    /// # Safety
    /// The function bears that; it has been compiled to need no alignment.
    #[link_name = "fentry_test_call_misaligned"]
    pub unsafe fn call_misaligned(function: usize, first: u64, second: u64) -> u64;
    /// Calls `function()`; returns a bit for each callee-saved register that it changed.
    ///
    /// # Safety
    /// There is a function without arguments at that address.
    #[link_name = "fentry_test_call_keeping"]
    pub unsafe fn call_keeping(function: usize) -> u64;
}

/// The type of a program in C or assembly.
pub type Function = extern "C" fn(&mut Context, u64);

/// The program that overwrites all caller-saved registers that this CPU has.
pub fn clobber() -> Function {
    if std::arch::is_x86_feature_detected!("avx512f") {
        clobber_avx512
    } else if std::arch::is_x86_feature_detected!("avx") {
        clobber_avx
    } else {
        clobber_sse
    }
}

/// [`clobber`], for exits.
pub fn clobber_at_exit(_: &mut ExitContext, _: u64) {
    // SAFETY: the program looks at neither argument, so that it does not need them.
    let program: extern "C" fn() = unsafe { core::mem::transmute(clobber()) };
    program();
}

/// How often a clobbering program ran since this was asked last; asserts that each time it
/// found the stack aligned to 16 bytes at its call, and the direction flag clear.
pub fn take_runs() -> u64 {
    assert_eq!(MISALIGNED.swap(0, Ordering::Relaxed), 0, "low bits of rsp at a program's call");
    assert_eq!(DIRECTION.swap(0, Ordering::Relaxed), 0, "the direction flag in a program");
    RUNS.swap(0, Ordering::Relaxed)
}
