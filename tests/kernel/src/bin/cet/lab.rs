//! Emitting functions, their callers, and images, to run them once.

use core::convert::Infallible;
use core::fmt::{self, Display};

use fentry::addr::Entry;
use fentry::emit::x86_64::{Check, Preamble, TARGET};
use fentry::emit::{EmitError, HardeningError};
use fentry::encode::x86_64::{
    NOP5, Reg, add_reg, call, call_reg, endbr64, int3, mov_reg_reg, nop, ret,
};
use fentry::encode::{CodeBuffer, EncodeError};
use fentry::layout::{EntryLayout, LandingPad, LayoutError, LayoutSpec, SlotKind};
use fentry::metadata::SlotState;
use fentry::patch::PatchError;
use machine::paging::{self, Range};

/// Why a case could not be made.
pub enum Failure {
    Emit(EmitError),
    Layout(LayoutError),
    Hardening(HardeningError),
    Patch(PatchError<Infallible, Infallible>),
    /// The memory for emitted code is used up.
    Room,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emit(error) => error.fmt(f),
            Self::Layout(error) => error.fmt(f),
            Self::Hardening(error) => error.fmt(f),
            Self::Patch(error) => error.fmt(f),
            Self::Room => f.write_str("no room for emitted code; make more in kernel.ld"),
        }
    }
}

impl From<HardeningError> for Failure {
    fn from(error: HardeningError) -> Self {
        Self::Hardening(error)
    }
}

impl From<EmitError> for Failure {
    fn from(error: EmitError) -> Self {
        Self::Emit(error)
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::Emit(error.into())
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

/// Bytes that are emitted at once, at the most.
const PIECE: usize = 4096;

/// Memory for emitted code, which is used from its start for each case.
pub struct Lab {
    next: u64,
}

/// A function that was emitted: it returns the sum of its two arguments.
pub struct Function {
    /// All of it, preamble and padding included.
    pub range: Range,
    /// Where what stands at and before its entry is.
    pub layout: EntryLayout,
    pub entry: u64,
}

impl Function {
    pub fn site(&self) -> u64 {
        self.layout.site(Entry::new(self.entry)).get()
    }
}

/// What a function to be emitted looks like.
#[derive(Clone, Copy)]
pub struct Shape {
    pub preamble: Preamble,
    /// Bytes from the slot to the entry, where there is a slot.
    pub slot: Option<u16>,
}

impl Lab {
    /// Empty memory.
    pub fn new() -> Self {
        let images = paging::images();
        // SAFETY: nothing executes what was emitted for the last case.
        unsafe {
            paging::alias(images.start).write_bytes(0xcc, (images.end - images.start) as usize)
        };
        Self { next: images.start }
    }

    /// Emits what `write` writes, at a multiple of 64 less `before`.
    pub fn emit<R>(
        &mut self,
        before: u16,
        write: impl FnOnce(&mut CodeBuffer<'_>) -> Result<R, EmitError>,
    ) -> Result<R, Failure> {
        let before = u64::from(before);
        let start = (self.next + before).next_multiple_of(64) - before;
        let mut bytes = [0; PIECE];
        let mut code = CodeBuffer::new(&mut bytes, start);
        let result = write(&mut code)?;
        self.next = code.here();
        if self.next > paging::images().end {
            return Err(Failure::Room);
        }
        patch(start, code.written());
        Ok(result)
    }

    /// Emits a function with room for a patch site.
    pub fn function(&mut self, shape: Shape, index: u32) -> Result<Function, Failure> {
        let Shape { preamble, slot } = shape;
        let padding = preamble.before_entry().max(slot.unwrap_or(0));
        let at_entry = preamble.size() - preamble.before_entry();
        let spec = LayoutSpec {
            padding,
            slot: slot.map(|slot| (SlotKind::MovEax, slot)),
            landing_pad: LandingPad::None,
            site: at_entry,
            site_len: 5,
            origin: at_entry + 5,
        };
        let layout = EntryLayout::new(spec)?;
        let function = self.emit(padding, |code| {
            let start = code.here();
            for _ in preamble.before_entry()..padding {
                nop(code, 1)?;
            }
            let entry = preamble.emit(code)?;
            code.bytes(&NOP5)?;
            mov_reg_reg(code, Reg::Rax, Reg::Rdi)?;
            add_reg(code, Reg::Rax, Reg::Rsi)?;
            ret(code)?;
            Ok(Function { range: start..code.here(), layout, entry })
        })?;
        if let Some(slot) = layout.slot(Entry::new(function.entry)) {
            patch(slot.get(), &SlotState::bytes(SlotKind::MovEax, index));
        }
        Ok(function)
    }

    /// Emits code that calls what is in `r11`, behind `check`.
    pub fn caller(&mut self, check: Check) -> Result<Range, Failure> {
        self.emit(0, |code| {
            let start = code.here();
            endbr64(code)?;
            check.emit(code)?;
            call_reg(code, TARGET)?;
            ret(code)?;
            Ok(start..code.here())
        })
    }

    /// Emits code that calls `target` directly.
    pub fn direct_caller(&mut self, target: u64) -> Result<Range, Failure> {
        self.emit(0, |code| {
            let start = code.here();
            endbr64(code)?;
            call(code, target)?;
            ret(code)?;
            int3(code)?;
            Ok(start..code.here())
        })
    }
}

/// Writes bytes of emitted code.
pub fn patch(address: u64, bytes: &[u8]) {
    // SAFETY: inside the images, which nothing executes meanwhile.
    unsafe { paging::alias(address).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}
