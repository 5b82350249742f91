//! Memory for emitted code, and calls of it that come back from a trap.

use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};
use core::{mem, ptr};
use std::sync::{Mutex, Once, PoisonError};

use fentry::emit::x86_64::{Hardening, Preamble, TARGET};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{
    Mem, Reg, add_imm, add_reg, call, mov_imm64, mov_reg_reg, mov_store64, pop, push, ret, sub_imm,
};

global_asm!(
    // guarded(function, saved): calls function(1, 20, 300, 4000, 50000, 600000), and comes
    // back from a trap in it with what `saved` then has in its second word.
    ".globl fentry_test_guarded",
    "fentry_test_guarded:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov [rip + {stack}], rsp",
    "mov rax, rdi",
    "mov edi, 1",
    "mov esi, 20",
    "mov edx, 300",
    "mov ecx, 4000",
    "mov r8d, 50000",
    "mov r9d, 600000",
    "call rax",
    ".globl fentry_test_escape",
    "fentry_test_escape:",
    "mov rsp, [rip + {stack}]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // What Linux calls __x86_indirect_thunk_r11 and __x86_return_thunk.
    ".globl fentry_test_retpoline",
    "fentry_test_retpoline:",
    "call 2f",
    "1: pause",
    "lfence",
    "jmp 1b",
    "2: mov [rsp], r11",
    "ret",
    "int3",
    ".globl fentry_test_return_thunk",
    "fentry_test_return_thunk:",
    "ret",
    "int3",
    stack = sym STACK,
);

unsafe extern "C" {
    fn fentry_test_guarded(function: u64) -> u64;
    fn fentry_test_escape();
    fn fentry_test_retpoline();
    fn fentry_test_return_thunk();
}

static STACK: AtomicU64 = AtomicU64::new(0);
/// Where the last trap was, and the argument registers at it.
static TRAPPED: AtomicU64 = AtomicU64::new(0);
pub static ARGUMENTS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
const ARGUMENT_REGISTERS: [c_int; 6] =
    [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_RCX, libc::REG_R8, libc::REG_R9];
/// The statics are one for the process.
static TURN: Mutex<()> = Mutex::new(());

/// What comes of all arguments, each once.
pub const SUM: u64 = 654_321;

extern "C" fn on_trap(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: what the kernel passes to a handler with `SA_SIGINFO`.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let get = |register: c_int| registers[register as usize].cast_unsigned();
    TRAPPED.store(get(libc::REG_RIP), Ordering::Relaxed);
    for (argument, register) in ARGUMENTS.iter().zip(ARGUMENT_REGISTERS) {
        argument.store(get(register), Ordering::Relaxed);
    }
    registers[libc::REG_RIP as usize] = fentry_test_escape as *const () as i64;
}

/// SIGILL comes to the handler, on a stack of its own: a stub may have moved `rsp`.
fn catch_traps() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: a handler of the type that `SA_SIGINFO` asks for; zeroes are no flags and an
        // empty mask.
        let result = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGILL, &action, ptr::null_mut())
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    });
    let stack = Box::leak(vec![0_u8; 1 << 16].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: memory that is never freed, for this thread's handlers.
    let result = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Code and a word of data, within each other's reach.
pub struct Ground(*mut u8);

/// Bytes of code, and the page behind them, which is not executable.
const TEXT: usize = 0x80000;
const SIZE: usize = TEXT + 0x1000;
pub const CALLER: u64 = 0;
pub const CALLEE: u64 = 0x200;
pub const STUB: u64 = 0x600;
const THUNKS: [u64; 2] = [0x700, 0x740];
/// Whatever a test wants.
pub const FREE: u64 = 0x1000;
/// A word of data.
pub const COUNT: u64 = TEXT as u64;

impl Ground {
    pub fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(base.cast())
    }

    pub fn at(&self, offset: u64) -> u64 {
        self.0 as u64 + offset
    }

    /// Emits among the code; returns the offset behind it.
    pub fn emit(&self, offset: u64, emit: impl FnOnce(&mut CodeBuffer<'_>)) -> u64 {
        let mut bytes = vec![0; TEXT];
        let mut code = CodeBuffer::new(&mut bytes, self.at(offset));
        emit(&mut code);
        let start = usize::try_from(offset).expect("a small number");
        assert!(start + code.position() <= TEXT);
        // SAFETY: inside the code, which is writable but in `executable`.
        unsafe {
            let place = self.0.add(start);
            ptr::copy_nonoverlapping(code.written().as_ptr(), place, code.position());
        }
        offset + code.position() as u64
    }

    /// A function of six arguments behind `preamble`, its entry 64-byte aligned.
    pub fn callee(&self, preamble: &Preamble, direct: bool) -> u64 {
        let mut entry = 0;
        let start = CALLEE + 0x180 - u64::from(preamble.before_entry());
        self.emit(start, |code| {
            entry = preamble.emit(code).unwrap();
            mov_reg_reg(code, Reg::Rax, Reg::Rdi).unwrap();
            for argument in [Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9] {
                add_reg(code, Reg::Rax, argument).unwrap();
            }
            ret(code).unwrap();
        });
        assert_eq!(entry, self.at(CALLEE + 0x180));
        if direct {
            self.emit(CALLER, |code| {
                call(code, entry).unwrap();
                ret(code).unwrap();
            });
        }
        entry
    }

    /// A function that calls `entry` indirectly.
    pub fn caller(&self, hardening: &Hardening, entry: u64) {
        self.emit(CALLER, |code| {
            sub_imm(code, Reg::Rsp, 8).unwrap();
            mov_imm64(code, TARGET, entry).unwrap();
            hardening.emit_indirect_call(code).unwrap();
            add_imm(code, Reg::Rsp, 8).unwrap();
            hardening.emit_return(code).unwrap();
        });
    }

    /// Thunks that go on at the machine's, wherever those are.
    pub fn thunks(&self) -> [u64; 2] {
        let functions: [unsafe extern "C" fn(); 2] =
            [fentry_test_retpoline, fentry_test_return_thunk];
        for (offset, function) in THUNKS.into_iter().zip(functions) {
            self.emit(offset, |code| {
                // Changes no register, and leaves the stack as it was.
                push(code, Reg::R10).unwrap();
                push(code, Reg::R10).unwrap();
                mov_imm64(code, Reg::R10, function as *const () as u64).unwrap();
                mov_store64(code, Mem::at(Reg::Rsp, 8), Reg::R10).unwrap();
                pop(code, Reg::R10).unwrap();
                ret(code).unwrap();
            });
        }
        THUNKS.map(|offset| self.at(offset))
    }

    fn protect(&self, access: c_int) {
        // SAFETY: the code of this mapping, which nobody runs at the moment.
        let result = unsafe { libc::mprotect(self.0.cast(), TEXT, libc::PROT_READ | access) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Calls `run` while the code can be executed.
    pub fn executable<T>(&self, run: impl FnOnce() -> T) -> T {
        self.protect(libc::PROT_EXEC);
        let result = run();
        self.protect(libc::PROT_WRITE);
        result
    }

    /// Runs the caller: what it returns, or the address that trapped.
    pub fn run(&self) -> Result<u64, u64> {
        TRAPPED.store(0, Ordering::Relaxed);
        // SAFETY: a function that the tests emitted; it keeps to the C ABI or traps.
        let returned = self.executable(|| unsafe { fentry_test_guarded(self.at(CALLER)) });
        match TRAPPED.load(Ordering::Relaxed) {
            0 => Ok(returned),
            trapped => Err(trapped),
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // SAFETY: this mapping's owner; nobody executes it any more.
        unsafe { libc::munmap(self.0.cast(), SIZE) };
    }
}

pub fn with_ground(test: impl FnOnce(&Ground)) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    catch_traps();
    test(&Ground::new());
}

/// `arch_prctl(ARCH_SET_GS)`: the base of `gs`, which nobody else uses in a 64-bit process.
pub fn set_gs_base(base: u64) {
    const ARCH_SET_GS: c_int = 0x1001;
    // SAFETY: changes the base of a segment that no code of this process uses.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
