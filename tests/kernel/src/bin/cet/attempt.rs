//! Running emitted code with control protection (CET) on, and learning how it ended.
//!
//! Protection is on for just as long as emitted code runs: compiled code has no landing pads.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use fentry::patch::Resume;
use machine::cpu;
use machine::paging::{self, PAGE, Rights};
use machine::traps::{BREAKPOINT, Interrupted};

use crate::patching::TRAPS;

/// `IA32_S_CET`, its bits for the shadow stack and for landing pads, and `IA32_PL0_SSP` (Intel
/// SDM volume 4, 2.1; volume 1, chapter 17).
const S_CET: u32 = 0x6a2;
const SHADOW_STACK: u32 = 1;
const LANDING_PADS: u32 = 1 << 2;
const PL0_SSP: u32 = 0x6a4;
/// CR4: control protection may be enabled.
const CR4_CET: u64 = 1 << 23;

global_asm!(
    include_str!("attempt.s"),
    s_cet = const S_CET,
    shadow_stack = const SHADOW_STACK,
);

unsafe extern "C" {
    fn attempt(protection: u32, code: u64, target: u64, arguments: *const [u64; 2]) -> u64;
    fn abandon() -> !;
}

/// What is protected while code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Indirect branches must arrive at a landing pad.
    pub landing_pads: bool,
    /// Returns must agree with a shadow stack.
    pub shadow_stack: bool,
}

impl Protection {
    pub const NONE: Self = Self { landing_pads: false, shadow_stack: false };
    pub const LANDING_PADS: Self = Self { landing_pads: true, shadow_stack: false };
    pub const SHADOW_STACK: Self = Self { landing_pads: false, shadow_stack: true };
    pub const BOTH: Self = Self { landing_pads: true, shadow_stack: true };

    const fn bits(self) -> u32 {
        let landing_pads = if self.landing_pads { LANDING_PADS } else { 0 };
        let shadow_stack = if self.shadow_stack { SHADOW_STACK } else { 0 };
        landing_pads | shadow_stack
    }
}

/// What the processor can: whether it tracks landing pads, and has shadow stacks.
pub fn supported() -> Protection {
    let features = cpu::cpuid(7, 0);
    Protection {
        landing_pads: features.edx & 1 << 20 != 0,
        shadow_stack: features.ecx & 1 << 7 != 0,
    }
}

/// How code ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this.
    Returned(u64),
    /// It trapped.
    Trapped {
        /// The exception.
        vector: u64,
        /// Its error code.
        error: u64,
        /// The instruction.
        at: u64,
        /// What was in `rdi`.
        first_argument: u64,
    },
}

/// Where an attempt is.
#[derive(Clone, Copy)]
enum Stage {
    /// There is none.
    Idle,
    /// Code runs.
    Running,
    /// It has trapped.
    Trapped(Outcome),
}

struct Current(UnsafeCell<Stage>);

// SAFETY: there is one processor, and its trap handler ends what it interrupts.
unsafe impl Sync for Current {}

static CURRENT: Current = Current(UnsafeCell::new(Stage::Idle));

/// The shadow stack, in a page that the processor alone can write.
#[repr(C, align(4096))]
struct ShadowStack(UnsafeCell<[u8; PAGE as usize]>);

// SAFETY: as above.
unsafe impl Sync for ShadowStack {}

static STACK: ShadowStack = ShadowStack(UnsafeCell::new([0; PAGE as usize]));

/// Where the shadow stack's token is: at its top.
fn token() -> u64 {
    STACK.0.get() as u64 + PAGE - 8
}

/// Allows what the processor can, and makes the shadow stack.
pub fn prepare(supported: Protection) {
    let cr4: u64;
    // SAFETY: the bit is there (the caller has asked), and nothing is enabled yet.
    unsafe {
        asm!("mov {}, cr4", out(reg) cr4, options(nostack));
        asm!("mov cr4, {}", in(reg) cr4 | CR4_CET, options(nostack));
    }
    if supported.shadow_stack {
        let stack = STACK.0.get() as u64;
        paging::protect(stack..stack + PAGE, Rights::ShadowStack);
        // SAFETY: the register exists where there are shadow stacks.
        unsafe { cpu::write_msr(PL0_SSP, token()) };
    }
}

/// Calls `code`, which begins with a landing pad, with `arguments`, with `target` in `r11`,
/// and with `protection`.
///
/// # Safety
/// The code keeps the rules of the psABI, or traps.
pub unsafe fn run(protection: Protection, code: u64, target: u64, arguments: [u64; 2]) -> Outcome {
    // SAFETY: the token says that the shadow stack is nobody's (Intel SDM volume 1, 17.2.3).
    unsafe { paging::alias(token()).cast::<u64>().write_volatile(token()) };
    // What was emitted since this processor last fetched from there.
    cpu::cpuid(0, 0);
    let stage = CURRENT.0.get();
    // SAFETY: nothing else uses the stage meanwhile but the trap handler; the rest is the
    // caller's contract.
    unsafe {
        stage.write_volatile(Stage::Running);
        let returned = attempt(protection.bits(), code, target, &raw const arguments);
        match stage.replace(Stage::Idle) {
            Stage::Trapped(outcome) => outcome,
            Stage::Idle | Stage::Running => Outcome::Returned(returned),
        }
    }
}

/// Every exception.
#[unsafe(no_mangle)]
extern "C" fn trap(interrupted: &mut Interrupted) {
    // SAFETY: what is interrupted does not go on.
    let stage = unsafe { &mut *CURRENT.0.get() };
    let Stage::Running = *stage else { interrupted.unexpected() };
    if interrupted.vector == BREAKPOINT && resumed(interrupted) {
        return;
    }
    let &mut Interrupted { vector, error, rip: at, .. } = interrupted;
    let first_argument = interrupted.first_argument();
    *stage = Stage::Trapped(Outcome::Trapped { vector, error, at, first_argument });
    // SAFETY: an attempt is in progress.
    unsafe { abandon() }
}

/// Goes on as the resolver says, if the breakpoint is a batch's.
fn resumed(interrupted: &mut Interrupted) -> bool {
    let site = interrupted.rip - 1;
    // SAFETY: an instruction was fetched from there, in emitted code.
    let reread = || unsafe { paging::alias(site).read_volatile() };
    match TRAPS.resolve(site, reread) {
        Resume::At(address) => interrupted.rip = address,
        Resume::Call { target, return_to } => {
            interrupted.push(return_to);
            interrupted.rip = target;
        }
        _ => return false,
    }
    true
}

/// Where emitted code is seen again, too far from the kernel for a direct call.
pub const fn far() -> paging::Range {
    const FAR: u64 = 0xffff_b000_0000_0000;
    FAR..FAR + PAGE
}
