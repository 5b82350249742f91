//! Memory for emitted code, and what is in it whatever is measured.

use core::ptr;

use fentry::emit::Mitigations;
use fentry::emit::x86_64::{Check, Hardening, Symbols};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{Mem, Reg, call, int3, jmp, lfence, mov_store64, ret};

/// Bytes of code, and of the data behind it.
const TEXT: usize = 8 << 20;
const DATA: usize = 0x1000;

/// Code that is written once, in order, and then run.
pub struct Ground {
    base: *mut u8,
    /// Where the next piece of code goes.
    next: u64,
    thunk: u64,
}

impl Ground {
    /// An empty ground but for a retpoline.
    pub fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes; never unmapped.
        let base = unsafe { libc::mmap(ptr::null_mut(), TEXT + DATA, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        let mut ground = Self { base: base.cast(), next: base as u64, thunk: 0 };
        ground.thunk = ground.emit(64, retpoline);
        ground
    }

    /// Emits the next piece at a multiple of `alignment`; returns what `emit` returns.
    pub fn emit(&mut self, alignment: u64, emit: impl FnOnce(&mut CodeBuffer<'_>) -> u64) -> u64 {
        self.next = self.next.next_multiple_of(alignment);
        let offset = (self.next - self.base as u64) as usize;
        // SAFETY: the rest of the code, which is writable until `seal` and borrowed only here.
        let rest = unsafe { core::slice::from_raw_parts_mut(self.base.add(offset), TEXT - offset) };
        let mut code = CodeBuffer::new(rest, self.next);
        let result = emit(&mut code);
        self.next = code.here();
        result
    }

    /// The code becomes executable. The data stays writable.
    pub fn seal(&self) {
        // SAFETY: the code of this mapping.
        let failed =
            unsafe { libc::mprotect(self.base.cast(), TEXT, libc::PROT_READ | libc::PROT_EXEC) };
        assert_eq!(failed, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    /// The address of a page of zeroed data.
    pub fn data(&self) -> u64 {
        self.base as u64 + TEXT as u64
    }

    /// These mitigations.
    pub fn hardening(&self, mitigations: Mitigations, check: Check) -> Hardening {
        let symbols = Symbols { indirect_thunk: Some(self.thunk), check, ..Symbols::NONE };
        Hardening::new(mitigations, symbols).expect("thunk and check are told")
    }
}

/// Goes on at `r11` by a return, which is predicted to come back here and wait
/// (Turner, "Retpoline: a software construct for preventing branch-target-injection", 2018).
fn retpoline(code: &mut CodeBuffer<'_>) -> u64 {
    let start = code.here();
    // `call` over the loop: `pause`, `lfence` and a jump, ten bytes.
    call(code, start + 15).expect("it is near");
    code.bytes(&[0xf3, 0x90]).expect("there is room");
    lfence(code).expect("there is room");
    jmp(code, start + 5).expect("it is near");
    mov_store64(code, Mem::at(Reg::Rsp, 0), Reg::R11).expect("there is room");
    ret(code).expect("there is room");
    int3(code).expect("there is room");
    start
}
