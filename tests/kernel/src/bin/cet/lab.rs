//! Emitting functions, their callers, and images, to run them once.

use core::convert::Infallible;
use core::fmt::{self, Display};

use fentry::addr::Entry;
use fentry::emit::x86_64::{Check, Preamble, TARGET};
use fentry::emit::{EmitError, HardeningError};
use fentry::encode::x86_64::{NOP5, Reg, add_reg, call, call_reg, endbr64, mov_reg_reg, ret};
use fentry::encode::{CodeBuffer, EncodeError};
use fentry::layout::{EntryLayout, LandingPad, LayoutError, LayoutSpec};
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
    /// Where it traps if it compares hashes, and finds another than its own.
    pub traps: Range,
    /// Where what stands at and before its entry is.
    pub layout: EntryLayout,
    pub entry: u64,
    /// What is done before it is called through a pointer; `None` where it must not be.
    pub check: Option<Check>,
}

impl Function {
    pub fn site(&self) -> u64 {
        self.layout.site(Entry::new(self.entry)).get()
    }
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

    /// Emits a function with `preamble`, a patch site behind it, and no slot.
    pub fn function(&mut self, preamble: Preamble) -> Result<Function, Failure> {
        let at_entry = preamble.size() - preamble.before_entry();
        let layout = EntryLayout::new(LayoutSpec {
            padding: 0,
            slot: None,
            landing_pad: LandingPad::None,
            site: at_entry,
            site_len: 5,
            origin: at_entry + 5,
        })?;
        self.emit(preamble.before_entry(), |code| {
            let start = code.here();
            let entry = preamble.emit(code)?;
            code.bytes(&NOP5)?;
            mov_reg_reg(code, Reg::Rax, Reg::Rdi)?;
            add_reg(code, Reg::Rax, Reg::Rsi)?;
            ret(code)?;
            let (range, traps) = (start..code.here(), start..entry + 4);
            Ok(Function { range, traps, layout, entry, check: Some(preamble.check()) })
        })
    }

    /// Emits code that calls `function` as it is to be called: through a pointer where that may be.
    pub fn right_caller(&mut self, function: &Function) -> Result<Range, Failure> {
        match function.check {
            Some(check) => self.caller(check),
            None => self.direct_caller(function.entry),
        }
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
            Ok(start..code.here())
        })
    }
}

/// Writes bytes of emitted code.
pub fn patch(address: u64, bytes: &[u8]) {
    // SAFETY: inside the images, which nothing executes meanwhile.
    unsafe { paging::alias(address).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}
