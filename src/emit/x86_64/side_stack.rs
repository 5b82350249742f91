//! The side stack: where a thread keeps the return addresses of the hooked functions that it
//! is in.

use core::fmt;
use core::mem::offset_of;
use core::ptr::NonNull;

use super::call_frame::field;
use crate::emit::{ExitContext, SESSIONS, Vectors};
use crate::encode::x86_64::{Mem, Reg};
use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Bytes of one frame.
pub(super) const FRAME_SIZE: i32 = size_of::<ExitContext>() as i32;

/// Bytes from what a frame holds of its slot to the slot: the bodies compare their `rsp`,
/// between which and the slot there are three words.
pub(super) const SLOT_ABOVE: i32 = 24;

/// Bytes from a frame to its link, which stands for it: `rbp` points there while the bodies run
/// programs on it, as a frame pointer does, at the caller's `rbp` and its return address.
pub(super) const LINK: i32 = offset_of!(ExitContext, link) as i32;
/// The frame, where `rbp` points at its link.
pub(super) const FRAME: Mem = Mem::at(Reg::Rbp, -LINK);
/// What the frame holds of its slot.
pub(super) const FRAME_SLOT: Mem = field!(FRAME, slot);
static_assertions::const_assert_eq!(offset_of!(ExitContext, caller) as i32, LINK + 8);

/// The slot that the unused frame has: that of nobody who was left behind.
const ABOVE_ALL: u64 = u64::MAX;

/// One thread's side stack: this control block, and its frames behind it.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | address of the link, the word at 96, of the last frame in use; of the unused one if none is |
/// | 8 | 8 | that of the last frame that there is |
/// | 16 | 8 | that of the unused one |
/// | 24 | 8 | calls that ran unhooked because no frame was free |
/// | 32 | 8 | frames that were left without a return, and dropped |
/// | 40 | 8 | unused |
/// | 48 | 176 | the unused frame, which stands below the first |
/// | 224 | | the frames, 176 bytes each, an [`ExitContext`] each |
///
/// Emitted code of the thread that owns it changes it; any thread may read the counts.
///
/// # Signals
/// Emitted code may be interrupted anywhere by a handler that calls hooked functions on the
/// same stack. It leaves every frame that is in use as it was, and drops only frames that
/// were left behind: those whose slots are at or below its own. So a frame's slot is written
/// before the frame is taken, and looked at afterwards. If a handler has used the frame in
/// between, the slot is written again; if another has then dropped it, it is taken again.
///
/// # One stack
/// A frame whose slot is at or below that of a function being entered was left without a
/// return, by `longjmp` or an exception, and is dropped; so is one above the frame of a
/// function that returns. Both hold on one stack only: a thread that enters hooked
/// functions on several stacks in turn (`swapcontext`, a handler on an alternate signal
/// stack) must change the pointer to its side stack along with its stack.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct SideStack {
    last: AtomicU64,
    end: AtomicU64,
    before_first: AtomicU64,
    overflowed: AtomicU64,
    abandoned: AtomicU64,
    unused: u64,
    unused_frame: ExitContext,
}

/// Offsets of the control block's fields, for emitted code.
pub(super) mod control {
    use super::{SideStack, offset_of};

    pub const LAST: i32 = offset_of!(SideStack, last) as i32;
    pub const END: i32 = offset_of!(SideStack, end) as i32;
    pub const UNUSED: i32 = offset_of!(SideStack, before_first) as i32;
    pub const OVERFLOWED: i32 = offset_of!(SideStack, overflowed) as i32;
    pub const ABANDONED: i32 = offset_of!(SideStack, abandoned) as i32;
}

static_assertions::const_assert_eq!(size_of::<SideStack>(), 224);
static_assertions::const_assert_eq!(control::LAST, 0);
static_assertions::const_assert_eq!(control::END, 8);
static_assertions::const_assert_eq!(control::UNUSED, 16);
static_assertions::const_assert_eq!(control::OVERFLOWED, 24);
static_assertions::const_assert_eq!(control::ABANDONED, 32);
static_assertions::const_assert_eq!(offset_of!(SideStack, unused_frame), 48);

/// Why memory did not become a side stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SideStackError {
    /// It does not begin at a multiple of 16.
    Misaligned {
        /// Where it begins.
        address: u64,
    },
    /// It has no room for the control block and one frame.
    TooSmall {
        /// Bytes that it has.
        bytes: usize,
    },
}

impl fmt::Display for SideStackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Misaligned { address } => write!(
                f,
                "the memory for a side stack begins at {address:#x}, which is no multiple of \
                 16; pass memory that is aligned to 16 bytes"
            ),
            Self::TooSmall { bytes } => write!(
                f,
                "the memory for a side stack has {bytes} bytes, and one frame needs {}; ask \
                 SideStack::size_for how many bytes a depth needs",
                SideStack::size_for(1)
            ),
        }
    }
}

impl core::error::Error for SideStackError {}

impl SideStack {
    /// Bytes of a side stack for `depth` hooked functions that are active at once.
    #[must_use]
    pub const fn size_for(depth: u32) -> usize {
        size_of::<Self>() + depth as usize * size_of::<ExitContext>()
    }

    /// Makes an empty side stack of `bytes` bytes at `memory`, with as many frames as fit. They are
    /// not written to, so memory that is made on first use costs what is used.
    ///
    /// # Errors
    /// [`SideStackError`]; then nothing was written.
    ///
    /// # Safety
    /// The memory is valid for writes, and nobody else uses it from now on until the side stack is
    /// no thread's any more.
    pub unsafe fn init(memory: NonNull<u8>, bytes: usize) -> Result<NonNull<Self>, SideStackError> {
        let side_stack = memory.cast::<Self>();
        if !side_stack.is_aligned() {
            return Err(SideStackError::Misaligned { address: memory.as_ptr() as u64 });
        }
        let frames = bytes.saturating_sub(size_of::<Self>()) / size_of::<ExitContext>();
        if frames == 0 {
            return Err(SideStackError::TooSmall { bytes });
        }
        let unused = side_stack.as_ptr().expose_provenance() + offset_of!(Self, unused_frame);
        let link = |number| {
            let frame = unused.wrapping_add(number * size_of::<ExitContext>());
            AtomicU64::new(frame as u64 + LINK as u64)
        };
        // SAFETY: `size_of::<Self>()` bytes of the memory, aligned (checked above).
        unsafe {
            side_stack.write(Self {
                last: link(0),
                end: link(frames),
                before_first: link(0),
                overflowed: AtomicU64::new(0),
                abandoned: AtomicU64::new(0),
                unused: 0,
                unused_frame: UNUSED,
            });
        }
        Ok(side_stack)
    }

    /// Makes it empty, for another thread. Frames in use are counted as abandoned.
    ///
    /// # Safety
    /// The thread that it belonged to has ended.
    pub unsafe fn reset(&self) {
        self.abandoned.fetch_add(self.depth(), Relaxed);
        self.last.store(self.before_first.load(Relaxed), Relaxed);
    }

    /// Frames in use: hooked functions that the thread is in, and frames left behind that no
    /// later call has met yet.
    #[must_use]
    pub fn depth(&self) -> u64 {
        let bytes = self.last.load(Relaxed).saturating_sub(self.before_first.load(Relaxed));
        bytes / size_of::<ExitContext>() as u64
    }

    /// Calls that ran unhooked because every frame was in use.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }

    /// Frames that were dropped because their functions were left without a return: each is
    /// a call whose exit programs did not run.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        self.abandoned.load(Relaxed)
    }
}

const UNUSED: ExitContext = ExitContext {
    args: [0; 6],
    rax: 0,
    rdx: 0,
    index: 0,
    state: 0,
    function: 0,
    vectors: 0,
    slot: ABOVE_ALL,
    link: 0,
    caller: 0,
    sessions: [0; SESSIONS as usize],
};

/// How emitted code finds the running thread's side stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SideStackPlace {
    /// Bytes from the thread pointer (the base of `fs`) to a pointer to the thread's
    /// [`SideStack`], null where it has none.
    pub thread_offset: i32,
    /// What is called where it has none.
    pub make: Option<MakeSideStack>,
}

/// The function that is called when a thread without a side stack enters a hooked function.
///
/// It is an `extern "C" fn() -> *mut SideStack`. It makes a side stack, stores the pointer at
/// the thread's [`thread_offset`](SideStackPlace::thread_offset) and returns it; or it returns
/// null, and the call runs unhooked. It is called again for every hooked function that it
/// calls itself, while the pointer is null: for those it returns null at once. Calls that run
/// unhooked because of that are counted where it counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MakeSideStack {
    /// Its address.
    pub target: u64,
    /// What is saved around it.
    pub vectors: Vectors,
}
