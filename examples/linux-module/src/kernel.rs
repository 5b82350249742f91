//! What the C part of the module does for this one: `module/kernel.c`.

use core::fmt;
use core::panic::PanicInfo;

/// What the kernel answered: a negative error number, as `include/uapi/asm-generic/errno*.h`
/// has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel's error {}", self.0)
    }
}

impl Errno {
    /// `EBUSY`: what is asked for is in use.
    pub const BUSY: Self = Self(-16);
    /// `ENOMEM`: no memory.
    pub const NO_MEMORY: Self = Self(-12);
    /// `EINVAL`: what is asked for makes no sense.
    pub const INVALID: Self = Self(-22);

    /// `Ok` where the kernel said 0.
    ///
    /// # Errors
    /// What else it said.
    pub const fn check(answer: i32) -> Result<(), Self> {
        match answer {
            0 => Ok(()),
            error => Err(Self(error)),
        }
    }
}

/// A patch site, and the address that it leads to, [marked](JUMP) if by a jump.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Way {
    /// The site.
    pub site: u64,
    /// The address.
    pub target: u64,
}

/// The mark of an address that a site jumps to, and does not call. Emitted code is aligned.
pub const JUMP: u64 = 1;

/// How sites change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Change {
    /// They lead somewhere, and led nowhere.
    Lead,
    /// They lead nowhere any more.
    Release,
    /// They lead elsewhere.
    Redirect,
}

unsafe extern "C" {
    /// Copies bytes out of kernel memory, wherever that is; an error if it is nowhere.
    pub fn fentry_kernel_read(address: u64, to: *mut u8, len: usize) -> i32;
    /// Writes to text through another mapping of its pages, which stays until
    /// [`fentry_kernel_write_end`] for the next write nearby.
    pub fn fentry_kernel_write(address: u64, from: *const u8, len: usize) -> i32;
    /// Unmaps what [`fentry_kernel_write`] has mapped.
    pub fn fentry_kernel_write_end();
    /// Has every core execute a serialising instruction.
    pub fn fentry_kernel_sync_cores();

    /// Executable memory near the kernel's text, whole pages of it, full of `int3`; 0 if there
    /// is none.
    pub fn fentry_kernel_images(bytes: usize) -> u64;
    /// Gives it back.
    pub fn fentry_kernel_images_free(address: u64);

    /// Address space for a table; null if there is none.
    pub fn fentry_kernel_reserve(bytes: usize) -> *mut u8;
    /// Puts zeroed pages there.
    pub fn fentry_kernel_commit(base: *mut u8, from: usize, to: usize) -> i32;
    /// Gives the address space and its pages back.
    pub fn fentry_kernel_release(base: *mut u8);

    /// Has ftrace change where `count` sites lead, all at once or not at all. The target of each
    /// is where it leads after that, or, if it is released, where it led before.
    pub fn fentry_kernel_lead(ways: *const Way, count: usize, change: Change) -> i32;
    /// Where ftrace leads `site` by itself, whoever asked it to; 0 for nowhere.
    pub fn fentry_kernel_led(site: u64) -> u64;

    /// Returns when every core has scheduled, and every task has been seen outside of emitted
    /// code, unless it sleeps there.
    pub fn fentry_kernel_quiesce();
    /// Sleeps for ten milliseconds.
    pub fn fentry_kernel_sleep();

    /// Zeroed memory; null if there is none.
    pub fn fentry_kernel_alloc(bytes: usize) -> *mut u8;
    /// Gives it back.
    pub fn fentry_kernel_free(memory: *mut u8);
    /// Prints a line to the kernel's log.
    pub fn fentry_kernel_log(text: *const u8, len: usize);
    /// Ends the kernel's run.
    fn fentry_kernel_panic() -> !;
}

/// No path of the core leads here, which the build checks by symbol; `core` wants it.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: it may be called anywhere.
    unsafe { fentry_kernel_panic() }
}

/// A line for the kernel's log, put together without an allocator. What is too long is cut.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; 200],
    len: usize,
}

impl Line {
    /// Logs what `message` displays.
    pub fn log(message: fmt::Arguments<'_>) {
        let mut line = Self { bytes: [0; 200], len: 0 };
        // A line that is full says so, and is logged as far as it came.
        let _ = fmt::write(&mut line, message);
        // SAFETY: `len` bytes are the line's.
        unsafe { fentry_kernel_log(line.bytes.as_ptr(), line.len) };
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            *self.bytes.get_mut(self.len).ok_or(fmt::Error)? = byte;
            self.len += 1;
        }
        Ok(())
    }
}
