//! The programs, what they get, and what emitted code finds for the function that is hooked.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};

use fentry::emit::x86_64::{SideStack, SideStackPlace};
use fentry::emit::{Context, CookiePlace, ExitContext, ProgramCall, Stride};
use machine::cpu::{FS_BASE, write_msr};

/// The index of the functions here, and the cookie that their programs get with it.
pub const INDEX: u32 = 5;
pub const COOKIE: u64 = 700_000;

/// Cookies by index; all but one are never to be read.
static COOKIES: [AtomicU64; 8] = [const { AtomicU64::new(u64::MAX / 2) }; 8];
/// Entries by index, for images that find the function there.
static ENTRIES: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Frames of the side stack.
const DEPTH: u32 = 8;

/// The processor's own data: a pointer to its side stack, which is behind it.
#[repr(C, align(16))]
struct Own {
    side_stack: UnsafeCell<*mut SideStack>,
    frames: UnsafeCell<[u128; SideStack::size_for(DEPTH) / 16]>,
}

// SAFETY: there is one processor.
unsafe impl Sync for Own {}

static OWN: Own = Own {
    side_stack: UnsafeCell::new(ptr::null_mut()),
    frames: UnsafeCell::new([0; SideStack::size_for(DEPTH) / 16]),
};

/// Adds the cookie to the first argument.
extern "C" fn at_entry(context: &mut Context, cookie: u64) {
    let [first, ..] = context.args_mut();
    *first = first.wrapping_add(cookie);
}

/// Adds the cookie to what is returned.
extern "C" fn at_exit(context: &mut ExitContext, cookie: u64) {
    let [low, high] = context.returned();
    context.set_returned([low.wrapping_add(cookie), high]);
}

/// Returns in the place of the function: one more than the cookie.
pub extern "C" fn instead(_: &mut Context, cookie: u64) -> u64 {
    cookie + 1
}

/// Runs instead of the function.
pub extern "C" fn double(argument: u64) -> u64 {
    2 * argument
}

/// A call of the program at `target`.
pub fn program(target: u64) -> ProgramCall {
    let cookie = CookiePlace { column: COOKIES.as_ptr() as u64, stride: Stride::Eight };
    ProgramCall { target, data: None, cookie, session: None }
}

/// Those that run at the entry.
pub fn entry_program() -> [ProgramCall; 1] {
    [program(at_entry as extern "C" fn(_, _) as usize as u64)]
}

/// Those that run at the exit.
pub fn exit_program() -> [ProgramCall; 1] {
    [program(at_exit as extern "C" fn(_, _) as usize as u64)]
}

/// How emitted code finds the side stack.
pub const SIDE_STACK: SideStackPlace = SideStackPlace { thread_offset: 0, make: None };

/// Where emitted code finds the entry of the function that is hooked.
pub fn entry_place() -> CookiePlace {
    CookiePlace { column: ENTRIES.as_ptr() as u64, stride: Stride::Eight }
}

/// Makes what emitted code finds for the function at `entry`, as if nothing had run yet.
pub fn begin(entry: u64) {
    let index = INDEX as usize;
    if let (Some(its_entry), Some(cookie)) = (ENTRIES.get(index), COOKIES.get(index)) {
        its_entry.store(entry, Ordering::Relaxed);
        cookie.store(COOKIE, Ordering::Relaxed);
    }
    let memory = NonNull::from(&OWN.frames).cast();
    // SAFETY: the memory is what `size_for` says; only emitted code uses it, and none runs now.
    // Compiled code does not use `fs`.
    unsafe {
        let side_stack = SideStack::init(memory, SideStack::size_for(DEPTH));
        OWN.side_stack.get().write(side_stack.map_or(ptr::null_mut(), NonNull::as_ptr));
        write_msr(FS_BASE, &raw const OWN as u64);
    }
}
