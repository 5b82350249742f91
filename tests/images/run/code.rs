//! Code of the tests' own, in memory that is writable and then executable.

use core::ptr;

use fentry::addr::Entry;
use fentry::emit::Mitigations;
use fentry::emit::x86_64::{
    Check, EntryBody, Hardening, THUNK_JUMP, THUNK_SIZE, entry_thunk_hardened,
};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{Reg, call_bytes, jmp_bytes, jmp_reg, mov_imm64};
use fentry::layout::EntryLayout;
use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::machine::origin;
use crate::mitigated::Thunks;

const SIZE: usize = 0x3000;
/// What of it is executed; the rest is written.
const CODE: usize = 0x2000;
/// Where things are in the mapping.
const ENTRY: usize = 0x40;
const THUNK: usize = 0x120;
const STUB: usize = 0x200;
const THUNKS: usize = 0x280;
const IMAGE: usize = 0x400;

const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// A function with a patch site, and all that hooks it.
pub struct Hooked {
    base: *mut u8,
    layout: EntryLayout,
    hardening: Hardening,
}

impl Hooked {
    /// A function that goes on in the machine's [`origin`]. Its index is in the padding or in
    /// a thunk, and nothing is attached to it.
    pub fn new(layout: &EntryLayout, index: u32, mitigations: Mitigations, check: Check) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        let mut hooked = Self { base: base.cast(), layout: *layout, hardening: Hardening::NONE };
        hooked.harden(mitigations, check);
        let entry = Entry::new(hooked.at(ENTRY));
        if layout.landing_pad().size() == 4 {
            hooked.write(ENTRY, &ENDBR64);
        }
        hooked.write(hooked.site(), &NOP5);
        let mut body = [0; 16];
        let mut code = CodeBuffer::new(&mut body, layout.origin(entry).get());
        mov_imm64(&mut code, Reg::R11, origin()).unwrap();
        jmp_reg(&mut code, Reg::R11).unwrap();
        hooked.write(hooked.site() + 5, code.written());
        if layout.slot_kind().is_some() {
            let [a, b, c, d] = index.to_le_bytes();
            let slot = (layout.slot(entry).unwrap().get() - hooked.at(0)) as usize;
            hooked.write(slot, &[0xb8, a, b, c, d]);
        } else {
            let mut thunk = [0; THUNK_SIZE];
            let mut code = CodeBuffer::new(&mut thunk, hooked.at(THUNK));
            entry_thunk_hardened(&mut code, index, &hooked.hardening).unwrap();
            hooked.write(THUNK, &thunk);
            let site = hooked.site();
            hooked.write(site, &call_bytes(hooked.at(site), hooked.at(THUNK)).unwrap());
        }
        hooked.protect(libc::PROT_READ | libc::PROT_EXEC);
        hooked
    }

    /// Makes what mitigations need, and counts from nothing.
    fn harden(&mut self, mitigations: Mitigations, check: Check) {
        let thunks = self.thunks();
        self.write(THUNKS, &thunks.code());
        // SAFETY: words of the mapping that are always writable, and no code runs.
        unsafe { thunks.restart() };
        self.hardening = Hardening::new(mitigations, thunks.symbols(check)).unwrap();
    }

    fn thunks(&self) -> Thunks {
        Thunks { at: self.at(THUNKS), counts: self.at(CODE) }
    }

    /// The count of calls, and how often returns and indirect calls went through thunks.
    pub fn counts(&self) -> [u64; 3] {
        // SAFETY: words of the mapping that are always readable, and no code runs.
        unsafe { self.thunks().counts() }
    }

    fn at(&self, offset: usize) -> u64 {
        self.base as u64 + offset as u64
    }

    fn site(&self) -> usize {
        let entry = Entry::new(self.at(ENTRY));
        (self.layout.site(entry).get() - self.at(0)) as usize
    }

    pub fn entry(&self) -> u64 {
        self.at(ENTRY)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= SIZE);
        // SAFETY: inside the mapping, which is writable while this is called.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset), bytes.len()) };
    }

    fn protect(&mut self, protection: i32) {
        // SAFETY: the code of a mapping that nobody executes at the moment.
        let result = unsafe { libc::mprotect(self.base.cast(), CODE, protection) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// An address within a direct call's reach that goes on at `target`.
    pub fn near(&mut self, target: u64) -> u64 {
        let mut stub = [0; 16];
        let mut code = CodeBuffer::new(&mut stub, self.at(STUB));
        mov_imm64(&mut code, Reg::Rax, target).unwrap();
        jmp_reg(&mut code, Reg::Rax).unwrap();
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
        self.write(STUB, code.written());
        self.protect(libc::PROT_READ | libc::PROT_EXEC);
        self.at(STUB)
    }

    /// Emits the body and hooks the function with it. Says whether all its calls are direct.
    pub fn hook(&mut self, body: &EntryBody<'_>) -> bool {
        let image = self.at(IMAGE);
        let mut bytes = vec![0; EntryBody::max_hardened_size(body.calls.len())];
        let mut code = CodeBuffer::new(&mut bytes, image);
        body.emit_hardened(&mut code, &self.hardening).unwrap();
        let len = code.position();
        bytes.truncate(len);
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
        self.write(IMAGE, &bytes);
        let site = self.site();
        if self.layout.slot_kind().is_some() {
            self.write(site, &call_bytes(self.at(site), image).unwrap());
        } else {
            let jump = THUNK + THUNK_JUMP;
            self.write(jump, &jmp_bytes(self.at(jump), image).unwrap());
        }
        self.protect(libc::PROT_READ | libc::PROT_EXEC);
        Decoder::with_ip(64, &bytes, image, DecoderOptions::NONE).iter().all(|instruction| {
            let thunk = self.hardening.indirect_thunk() == Some(instruction.near_branch_target());
            instruction.flow_control() != FlowControl::IndirectCall && !thunk
        })
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        // SAFETY: this mapping's owner; nobody executes it any more.
        unsafe { libc::munmap(self.base.cast(), SIZE) };
    }
}
