//! Assembly that fills every register, and that looks at every register.
//!
//! ```text
//!  call() --all registers given--> function --call--> body --call--> observe
//!                                     |                               notes what it sees,
//!                                     v                               clobbers the rest
//!                                   origin: notes what the function got
//! ```

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;

use fentry::emit::Vectors;

/// What the function returns.
pub const RETURNED: u64 = 0x600d_600d;
/// What `observe` adds to each argument, if it is told to.
pub const CHANGE: u64 = 0x10_0001;

/// Registers, by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    pub general: [u64; 16],
    pub vectors: [[u64; 8]; 8],
    pub flags: u64,
    /// The words behind the return address.
    pub stack: [u64; 4],
}

/// What a program saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    pub context: [u64; 14],
    pub cookie: u64,
    pub data: u64,
    pub rsp: u64,
    pub flags: u64,
    /// Where the context is.
    pub address: u64,
    /// The frame pointer, and the two words there.
    pub rbp: u64,
    pub link: [u64; 2],
}

/// All that goes into a call, and comes out of it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct State {
    given: Registers,
    /// What the function got.
    pub at_origin: Registers,
    /// General registers after the function has returned; the callee-saved ones and `rsp`.
    pub after: [u64; 16],
    pub result: u64,
    /// Programs that ran, and what they saw.
    pub count: u64,
    pub seen: [Seen; 16],
    function: u64,
    stack: u64,
    /// 0 to 3: none, xmm, ymm, zmm: what is filled and looked at, and what `observe` clobbers.
    filled: u64,
    clobbered: u64,
    change: u64,
}

struct Shared(UnsafeCell<State>);

// SAFETY: used only by `call`, whose callers take turns.
unsafe impl Sync for Shared {}

static STATE: Shared = Shared(UnsafeCell::new(State {
    given: NO_REGISTERS,
    at_origin: NO_REGISTERS,
    after: [0; 16],
    result: 0,
    count: 0,
    seen: [Seen {
        context: [0; 14],
        cookie: 0,
        data: 0,
        rsp: 0,
        flags: 0,
        address: 0,
        rbp: 0,
        link: [0; 2],
    }; 16],
    function: 0,
    stack: 0,
    filled: 0,
    clobbered: 0,
    change: 0,
}));

const NO_REGISTERS: Registers =
    Registers { general: [0; 16], vectors: [[0; 8]; 8], flags: 0, stack: [0; 4] };

impl State {
    /// A state for a CPU with these registers, of which programs clobber those.
    pub fn new(filled: Vectors, clobbered: Vectors, change: bool) -> Self {
        let change = change.into();
        Self { filled: filled as u64, clobbered: clobbered as u64, change, ..Self::default() }
    }
}

/// Calls the function at `entry` with `given` in its registers and on its stack, which is
/// `shift` bytes from being aligned. Sets `given`'s `rsp` to what the function had.
///
/// # Safety
/// At `entry` is a function that goes on at [`origin`]. Callers take turns.
pub unsafe fn call(entry: u64, given: &mut Registers, shift: usize, state: State) -> State {
    let shared = STATE.0.get();
    // SAFETY: callers take turns, so nobody else has it; the assembly below keeps to the C ABI.
    unsafe {
        *shared = State { given: *given, function: entry, ..state };
        (*shared).result = fentry_test_enter(shift);
        given.general[4] = (*shared).given.general[4];
        *shared
    }
}

/// Where a hooked function goes on.
pub fn origin() -> u64 {
    fentry_test_origin as unsafe extern "C" fn() as usize as u64
}

/// A program that notes what it sees and clobbers all that it may.
pub fn observe() -> u64 {
    fentry_test_observe as unsafe extern "C" fn() as usize as u64
}

/// Where a hooked function returns to.
pub fn returns_to() -> u64 {
    fentry_test_returns as unsafe extern "C" fn() as usize as u64
}

unsafe extern "C" {
    fn fentry_test_enter(shift: usize) -> u64;
    fn fentry_test_returns();
    fn fentry_test_origin();
    fn fentry_test_observe();
}

/// Applies an instruction to each argument vector as wide as the word at `r11 + level` says.
macro_rules! vectors {
    ($level:literal, $xmm:literal, $ymm:literal, $zmm:literal) => {
        concat!(
            "mov r10, qword ptr [r11 + {",
            $level,
            "}]\n",
            "cmp r10, 2\n ja 4f\n je 3f\n cmp r10, 1\n je 2f\n jmp 5f\n",
            "2:\n .irp k, 0,1,2,3,4,5,6,7\n ",
            $xmm,
            "\n .endr\n jmp 5f\n",
            "3:\n .irp k, 0,1,2,3,4,5,6,7\n ",
            $ymm,
            "\n .endr\n jmp 5f\n",
            "4:\n .irp k, 0,1,2,3,4,5,6,7\n ",
            $zmm,
            "\n .endr\n",
            "5:\n",
        )
    };
}

global_asm!(
    ".globl fentry_test_enter",
    ".globl fentry_test_returns",
    "fentry_test_enter:",
    ".irp register, rbp,rbx,r12,r13,r14,r15",
    "push \\register",
    ".endr",
    "lea r11, [rip + {state}]",
    "mov [r11 + {stack}], rsp",
    // Six registers and a return address: 8 bytes more make it aligned.
    "sub rsp, 8",
    "sub rsp, rdi",
    ".irp k, 3,2,1,0",
    "push qword ptr [r11 + {given_stack} + 8 * \\k]",
    ".endr",
    "lea rax, [rsp - 8]",
    "mov [r11 + {given} + 8 * 4], rax",
    vectors!(
        "filled",
        "movups xmm\\k, [r11 + {given_vectors} + 64 * \\k]",
        "vmovups ymm\\k, [r11 + {given_vectors} + 64 * \\k]",
        "vmovups zmm\\k, [r11 + {given_vectors} + 64 * \\k]"
    ),
    "mov rax, [r11 + {given}]",
    "mov rcx, [r11 + {given} + 8 * 1]",
    "mov rdx, [r11 + {given} + 8 * 2]",
    "mov rbx, [r11 + {given} + 8 * 3]",
    "mov rbp, [r11 + {given} + 8 * 5]",
    "mov rsi, [r11 + {given} + 8 * 6]",
    "mov rdi, [r11 + {given} + 8 * 7]",
    ".irp k, 8,9,10,12,13,14,15,11",
    "mov r\\k, [r11 + {given} + 8 * \\k]",
    ".endr",
    "call qword ptr [rip + {state} + {function}]",
    "fentry_test_returns:",
    "lea r11, [rip + {state}]",
    "mov [r11 + {after} + 8 * 3], rbx",
    "mov [r11 + {after} + 8 * 4], rsp",
    "mov [r11 + {after} + 8 * 5], rbp",
    ".irp k, 12,13,14,15",
    "mov [r11 + {after} + 8 * \\k], r\\k",
    ".endr",
    "mov rsp, [r11 + {stack}]",
    ".irp register, r15,r14,r13,r12,rbx,rbp",
    "pop \\register",
    ".endr",
    "ret",
    state = sym STATE,
    stack = const offset_of!(State, stack),
    given = const offset_of!(State, given.general),
    given_vectors = const offset_of!(State, given.vectors),
    given_stack = const offset_of!(State, given.stack),
    filled = const offset_of!(State, filled),
    function = const offset_of!(State, function),
    after = const offset_of!(State, after),
);

global_asm!(
    ".globl fentry_test_origin",
    "fentry_test_origin:",
    "lea r11, [rip + {state}]",
    "mov [r11 + {got}], rax",
    "mov [r11 + {got} + 8 * 1], rcx",
    "mov [r11 + {got} + 8 * 2], rdx",
    "mov [r11 + {got} + 8 * 3], rbx",
    "mov [r11 + {got} + 8 * 4], rsp",
    "mov [r11 + {got} + 8 * 5], rbp",
    "mov [r11 + {got} + 8 * 6], rsi",
    "mov [r11 + {got} + 8 * 7], rdi",
    ".irp k, 8,9,10,11,12,13,14,15",
    "mov [r11 + {got} + 8 * \\k], r\\k",
    ".endr",
    "pushfq",
    "pop qword ptr [r11 + {flags}]",
    ".irp k, 0,1,2,3",
    "mov rax, [rsp + 8 + 8 * \\k]",
    "mov [r11 + {words} + 8 * \\k], rax",
    ".endr",
    vectors!(
        "filled",
        "movups [r11 + {vectors} + 64 * \\k], xmm\\k",
        "vmovups [r11 + {vectors} + 64 * \\k], ymm\\k",
        "vmovups [r11 + {vectors} + 64 * \\k], zmm\\k"
    ),
    "mov eax, {returned}",
    "ret",
    state = sym STATE,
    got = const offset_of!(State, at_origin.general),
    flags = const offset_of!(State, at_origin.flags),
    words = const offset_of!(State, at_origin.stack),
    vectors = const offset_of!(State, at_origin.vectors),
    filled = const offset_of!(State, filled),
    returned = const RETURNED,
);

global_asm!(
    ".globl fentry_test_observe",
    "fentry_test_observe:",
    "pushfq",
    "pop r8",
    "lea r11, [rip + {state}]",
    "imul rax, [r11 + {count}], {size}",
    "lea rax, [r11 + rax + {seen}]",
    "inc qword ptr [r11 + {count}]",
    ".irp k, 0,1,2,3,4,5,6,7,8,9,10,11,12,13",
    "mov rcx, [rdi + 8 * \\k]",
    "mov [rax + 8 * \\k], rcx",
    ".endr",
    "mov [rax + {cookie}], rsi",
    "mov [rax + {data}], rdx",
    "mov [rax + {rsp}], rsp",
    "mov [rax + {flags}], r8",
    "mov [rax + {address}], rdi",
    "mov [rax + {rbp}], rbp",
    ".irp k, 0,1",
    "mov rcx, [rbp + 8 * \\k]",
    "mov [rax + {link} + 8 * \\k], rcx",
    ".endr",
    "cmp qword ptr [r11 + {change}], 0",
    "je 6f",
    ".irp k, 0,1,2,3,4,5",
    "add qword ptr [rdi + 8 * \\k], {by}",
    ".endr",
    "6:",
    vectors!(
        "clobbered",
        "pcmpeqd xmm\\k, xmm\\k",
        "vcmpps ymm\\k, ymm\\k, ymm\\k, 15",
        "vpternlogd zmm\\k, zmm\\k, zmm\\k, 255"
    ),
    "mov rax, -1",
    // The red zone is the program's own.
    ".irp k, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
    "mov [rsp - 8 * \\k], rax",
    ".endr",
    ".irp register, rcx,rdx,rsi,rdi,r8,r9,r10,r11",
    "mov \\register, rax",
    ".endr",
    "ret",
    state = sym STATE,
    count = const offset_of!(State, count),
    seen = const offset_of!(State, seen),
    size = const size_of::<Seen>(),
    cookie = const offset_of!(Seen, cookie),
    data = const offset_of!(Seen, data),
    rsp = const offset_of!(Seen, rsp),
    flags = const offset_of!(Seen, flags),
    address = const offset_of!(Seen, address),
    rbp = const offset_of!(Seen, rbp),
    link = const offset_of!(Seen, link),
    change = const offset_of!(State, change),
    clobbered = const offset_of!(State, clobbered),
    by = const CHANGE,
);
