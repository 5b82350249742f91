//! The thunk alone, between bodies that only say which way to go.

use core::arch::global_asm;

use fentry::addr::Origin;
use fentry::emit::x86_64::{Bodies, Kept, exit_thunk};
use fentry::encode::x86_64::{Reg, jmp_reg, mov_imm64};

use crate::hooks::Ground;

global_asm!(
    // Leaves with the flags that its first argument asks for, and the caller in r8.
    ".globl fentry_test_thunk_enter",
    "fentry_test_thunk_enter:",
    "mov r8, [rsp + 8]",
    "mov r9, r11",
    "mov r11, rsp",
    "cmp edi, 1",
    "ja 2f",
    "je 1f",
    "test rsp, rsp",
    "ret",
    "1: stc",
    "ret",
    "2: xor eax, eax",
    "ret",
    // The origin: what it is, the index, and the last digit of where its stack arguments are.
    ".globl fentry_test_thunk_origin",
    "fentry_test_thunk_origin:",
    "mov eax, 1000",
    "add rax, r9",
    "add rax, [rsp + 8]",
    "ret",
    ".globl fentry_test_thunk_exit",
    "fentry_test_thunk_exit:",
    "add rax, 5000",
    "push r8",
    "ret",
);

unsafe extern "C" {
    fn fentry_test_thunk_enter();
    fn fentry_test_thunk_origin();
    fn fentry_test_thunk_exit();
}

/// Seven arguments: the last one is on the stack.
type Thunk = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64) -> u64;

#[test]
fn a_thunk_goes_where_the_flags_say() {
    let ground = Ground::new(0, 0x1000);
    let functions: [unsafe extern "C" fn(); 3] =
        [fentry_test_thunk_enter, fentry_test_thunk_exit, fentry_test_thunk_origin];
    let mut stubs = (1..).map(|number| ground.0 + 0x40 * number);
    let [enter, exit, origin] = functions.map(|function| {
        let at = stubs.next().expect("there are many");
        ground.emit(at, |code| {
            mov_imm64(code, Reg::R10, function as usize as u64).unwrap();
            jmp_reg(code, Reg::R10).unwrap();
        });
        at
    });
    let bodies = Bodies { enter, exit, kept: Kept::OnSideStack };
    ground.emit(ground.0, |code| exit_thunk(code, 77, bodies, Origin::new(origin)).unwrap());
    // SAFETY: the thunk, and what it calls, return 64 bits to their caller.
    let thunk: Thunk = unsafe { core::mem::transmute(ground.0 as usize) };
    let call = |which| {
        // SAFETY: it takes any numbers.
        unsafe { thunk(which, 2, 3, 4, 5, 6, 20_000) }
    };
    assert_eq!(call(0), 5000 + 1000 + 77 + 20_000, "enter, origin, exit");
    assert_eq!(call(1), 1000 + 77 + 20_000, "unhooked: the origin alone");
    assert_eq!(call(2), 5000, "skipped: the exit with what enter has put into rax");
}
