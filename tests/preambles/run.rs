//! Runs preambles and their callers on this machine: with the right hash a call arrives with all
//! its arguments, and with a wrong one the processor traps where it was meant to. Without CET
//! the landing pads are nops.

use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};
use core::{mem, ptr};
use std::sync::{Mutex, Once, PoisonError};

use fentry::emit::Mitigations;
use fentry::emit::x86_64::{
    Arity, Bhi, CallDepth, Check, FINEIBT_PREFIX, Generation, Hardening, Preamble, Symbols, TARGET,
    bhi_stub,
};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{
    Mem, Reg, add_imm, add_reg, call, mov_imm32, mov_imm64, mov_reg_reg, mov_store64, pop, push,
    ret, sub_imm,
};
use fentry::layout::LandingPad;

use crate::{GENERATIONS, checked, fineibt, kcfi};

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
static ARGUMENTS: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
const ARGUMENT_REGISTERS: [c_int; 6] =
    [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_RCX, libc::REG_R8, libc::REG_R9];
/// The statics are one for the process.
static TURN: Mutex<()> = Mutex::new(());

/// What comes of all arguments, each once.
const SUM: u64 = 654_321;

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
struct Ground(*mut u8);

const SIZE: usize = 0x2000;
const CALLER: u64 = 0;
const CALLEE: u64 = 0x200;
const STUB: u64 = 0x600;
const THUNKS: [u64; 2] = [0x700, 0x740];
/// In the second page, which is not executable.
const COUNT: u64 = 0x1000;

impl Ground {
    fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(base.cast())
    }

    fn at(&self, offset: u64) -> u64 {
        self.0 as u64 + offset
    }

    /// Emits in the first page; returns the offset behind it.
    fn emit(&self, offset: u64, emit: impl FnOnce(&mut CodeBuffer<'_>)) -> u64 {
        let mut bytes = [0; 512];
        let mut code = CodeBuffer::new(&mut bytes, self.at(offset));
        emit(&mut code);
        let start = usize::try_from(offset).expect("a small number");
        assert!(start + code.position() <= 0x1000);
        // SAFETY: inside the first page, which is writable until `seal`.
        unsafe {
            let place = self.0.add(start);
            ptr::copy_nonoverlapping(code.written().as_ptr(), place, code.position());
        }
        offset + code.position() as u64
    }

    /// A function of six arguments behind `preamble`, its entry 64-byte aligned.
    fn callee(&self, preamble: &Preamble, direct: bool) -> u64 {
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
    fn caller(&self, hardening: &Hardening, entry: u64) {
        self.emit(CALLER, |code| {
            sub_imm(code, Reg::Rsp, 8).unwrap();
            mov_imm64(code, TARGET, entry).unwrap();
            hardening.emit_indirect_call(code).unwrap();
            add_imm(code, Reg::Rsp, 8).unwrap();
            hardening.emit_return(code).unwrap();
        });
    }

    /// Thunks that go on at the machine's, wherever those are.
    fn thunks(&self) -> [u64; 2] {
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

    /// Runs the caller: what it returns, or the address that trapped.
    fn run(&self) -> Result<u64, u64> {
        // SAFETY: the first page of the mapping.
        let result =
            unsafe { libc::mprotect(self.0.cast(), 0x1000, libc::PROT_READ | libc::PROT_EXEC) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        TRAPPED.store(0, Ordering::Relaxed);
        // SAFETY: a function that the tests emitted; it keeps to the C ABI or traps.
        let returned = unsafe { fentry_test_guarded(self.at(CALLER)) };
        // SAFETY: as above.
        let result =
            unsafe { libc::mprotect(self.0.cast(), 0x1000, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
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

fn with_ground(test: impl FnOnce(&Ground)) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    catch_traps();
    test(&Ground::new());
}

const HASH: u32 = 0x8765_4321;
/// Hashes that are not the right one, near it and far from it.
const WRONG: [u32; 5] = [HASH + 1, HASH - 1, HASH ^ 1 << 31, 0, !HASH];

#[test]
fn kcfi_lets_the_right_hash_pass() {
    with_ground(|ground| {
        for padding in [0, 3, 11, 27, 59, 200] {
            for landing_pad in [LandingPad::None, LandingPad::Endbr64] {
                for arity in [None, Arity::new(6), Some(Arity::STACK)] {
                    let preamble = kcfi(HASH, arity, padding, landing_pad);
                    let entry = ground.callee(&preamble, false);
                    ground.caller(&checked(preamble.check()), entry);
                    assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}");
                    for hash in WRONG {
                        let check = Check::Kcfi { hash, padding };
                        ground.caller(&checked(check), entry);
                        // The `ud2` of the caller, right before the call.
                        let long = if padding > 124 { 3 } else { 0 };
                        let ud2 = ground.at(CALLER) + 4 + 10 + 12 + long;
                        assert_eq!(ground.run(), Err(ud2), "{preamble:x?} {hash:#x}");
                    }
                }
            }
        }
    });
}

/// Where a FineIBT preamble traps, from its entry.
fn trap_of(generation: Generation, bhi: Bhi) -> i64 {
    match (generation, bhi) {
        (_, Bhi::Stub(_)) => unreachable!("stubs trap themselves"),
        (Generation::Original, Bhi::None) => -3,
        (Generation::Original | Generation::Short, _) => -10,
        (Generation::Udb, _) => 3,
    }
}

#[test]
fn fineibt_lets_the_right_hash_pass() {
    with_ground(|ground| {
        for generation in GENERATIONS {
            for bhi in [Bhi::None, Bhi::FirstArgument] {
                let preamble = fineibt(HASH, generation, bhi);
                let entry = ground.callee(&preamble, true);
                assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}, called directly");
                for paranoid in [false, true] {
                    let check = |hash| Check::FineIbt { hash, generation, paranoid };
                    ground.caller(&checked(check(HASH)), entry);
                    assert_eq!(ground.run(), Ok(SUM), "{preamble:x?} {paranoid}");
                    for hash in WRONG {
                        ground.caller(&checked(check(hash)), entry);
                        let found = ground.run();
                        let trap = if paranoid {
                            // The displacement of the caller's `lea`, behind 17 bytes.
                            ground.at(CALLER) + 4 + 10 + 13
                        } else {
                            entry.wrapping_add_signed(trap_of(generation, bhi))
                        };
                        assert_eq!(found, Err(trap), "{preamble:x?} {paranoid} {hash:#x}");
                        if !paranoid && bhi == Bhi::FirstArgument {
                            let difference = hash.wrapping_sub(HASH);
                            let first = ARGUMENTS[0].load(Ordering::Relaxed);
                            assert_eq!(first, u64::from(difference), "{preamble:x?} {hash:#x}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn stubs_take_the_arguments_away_before_they_trap() {
    with_ground(|ground| {
        for generation in GENERATIONS {
            for arguments in 0..8 {
                let arity = Arity::new(arguments).unwrap();
                let stub = ground.at(STUB);
                let end = ground.emit(STUB, |code| bhi_stub(code, generation, arity).unwrap());
                let preamble = fineibt(HASH, generation, Bhi::Stub(stub));
                let entry = ground.callee(&preamble, true);
                assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}, called directly");
                let check = |hash| Check::FineIbt { hash, generation, paranoid: false };
                ground.caller(&checked(check(HASH)), entry);
                assert_eq!(ground.run(), Ok(SUM), "{preamble:x?}");
                for hash in WRONG {
                    ground.caller(&checked(check(hash)), entry);
                    // The `ud2` that the stub ends with.
                    assert_eq!(ground.run(), Err(ground.at(end) - 2), "{preamble:x?} {hash:#x}");
                }
            }
        }
    });
}

#[test]
fn a_paranoid_caller_wants_more_than_a_landing_pad() {
    with_ground(|ground| {
        for generation in [Generation::Short, Generation::Udb] {
            // Sixteen bytes before the entry is something else that may be branched to.
            let entry = ground.callee(&Preamble::Endbr64, false);
            ground.emit(CALLEE + 0x180 - u64::from(FINEIBT_PREFIX), |code| {
                Preamble::Endbr64.emit(code).unwrap();
                mov_imm32(code, Reg::Rax, 5).unwrap();
                ret(code).unwrap();
            });
            let check = |paranoid| Check::FineIbt { hash: HASH, generation, paranoid };
            ground.caller(&checked(check(false)), entry);
            assert_eq!(ground.run(), Ok(5), "{generation:?}");
            ground.caller(&checked(check(true)), entry);
            assert_eq!(ground.run(), Err(ground.at(CALLER) + 4 + 10 + 13), "{generation:?}");
        }
    });
}

/// `arch_prctl(ARCH_SET_GS)`: the base of `gs`, which nobody else uses in a 64-bit process.
fn set_gs_base(base: u64) {
    const ARCH_SET_GS: c_int = 0x1001;
    // SAFETY: changes the base of a segment that no code of this process uses.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_call_arrives_under_every_set_of_mitigations() {
    with_ground(|ground| {
        let [indirect_thunk, return_thunk] = ground.thunks();
        let count = ground.at(COUNT) as *mut i64;
        for generation in GENERATIONS {
            let preamble = fineibt(HASH, generation, Bhi::None);
            let entry = ground.callee(&preamble, false);
            for bits in 0..Mitigations::SIGNED_RETURNS.bits() {
                let set = Mitigations::from_bits_retain(bits);
                for depth in [CallDepth::RipRelative(ground.at(0x800)), CallDepth::Absolute(-64)] {
                    let symbols = Symbols {
                        indirect_thunk: Some(indirect_thunk),
                        return_thunk: Some(return_thunk),
                        call_depth: Some(depth),
                        check: preamble.check(),
                    };
                    let Ok(hardening) = Hardening::new(set, symbols) else { continue };
                    // Without a check the call goes to the entry, as a direct one does.
                    ground.caller(&hardening, entry);
                    set_gs_base(match depth {
                        CallDepth::RipRelative(variable) => count as u64 - variable,
                        CallDepth::Absolute(offset) => {
                            (count as u64).wrapping_add_signed(-i64::from(offset))
                        }
                    });
                    // SAFETY: a word of the mapping's second page.
                    unsafe { count.write(i64::MIN) };
                    assert_eq!(ground.run(), Ok(SUM), "{set:?} {depth:x?} {generation:?}");
                    let expected = if set.contains(Mitigations::CALL_DEPTH) {
                        i64::MIN >> 5
                    } else {
                        i64::MIN
                    };
                    // SAFETY: as above.
                    assert_eq!(unsafe { count.read() }, expected, "{set:?} {depth:x?}");
                }
            }
        }
        set_gs_base(0);
    });
}
