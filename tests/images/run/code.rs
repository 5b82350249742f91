//! Code of the tests' own, in memory that is writable and then executable.

use core::ptr;

use fentry::addr::Entry;
use fentry::emit::Mitigations;
use fentry::emit::x86_64::{
    CallDepth, Check, EntryBody, Hardening, Symbols, THUNK_JUMP, THUNK_SIZE, entry_thunk_hardened,
};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{Reg, call_bytes, jmp_bytes, jmp_reg, mov_imm64};
use fentry::layout::EntryLayout;
use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::machine::origin;

const SIZE: usize = 0x3000;
/// What of it is executed; the rest is written.
const CODE: usize = 0x2000;
/// Where things are in the mapping.
const ENTRY: usize = 0x40;
const THUNK: usize = 0x120;
const STUB: usize = 0x200;
const RETURN_THUNK: usize = 0x280;
const INDIRECT_THUNK: usize = 0x2c0;
const IMAGE: usize = 0x400;

/// What calls are counted from.
pub const COUNT: u64 = 1 << 62;

/// `ret`, with a mark that it was here: `inc qword ptr [rip + ...]`.
const RETURN: [u8; 9] = [0x48, 0xff, 0x05, 0, 0, 0, 0, 0xc3, 0xcc];
/// A retpoline: `call 1f`; `2: pause`; `lfence`; `jmp 2b`; `1: mov [rsp], r11`; `ret`.
const RETPOLINE: [u8; 24] = [
    0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x4c, 0x89, 0x1c, 0x24, 0x48, 0xff,
    0x05, 0, 0, 0, 0, 0xc3,
];

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
        let mark = |mut thunk: Vec<u8>, at: usize, increment: usize, word: usize| {
            let behind = at + increment + 7;
            let distance = (CODE + 8 * word - behind) as u32;
            thunk[increment + 3..increment + 7].copy_from_slice(&distance.to_le_bytes());
            thunk
        };
        self.write(RETURN_THUNK, &mark(RETURN.to_vec(), RETURN_THUNK, 0, 1));
        self.write(INDIRECT_THUNK, &mark(RETPOLINE.to_vec(), INDIRECT_THUNK, 16, 2));
        self.write(CODE, &COUNT.to_le_bytes());
        let symbols = Symbols {
            indirect_thunk: Some(self.at(INDIRECT_THUNK)),
            return_thunk: Some(self.at(RETURN_THUNK)),
            // The base of `gs` is 0 in a process.
            call_depth: Some(CallDepth::RipRelative(self.at(CODE))),
            check,
        };
        self.hardening = Hardening::new(mitigations, symbols).unwrap();
    }

    /// The count of calls, and how often returns and indirect calls went through thunks.
    pub fn counts(&self) -> [u64; 3] {
        // SAFETY: three words of the mapping that are always readable, and no code runs.
        unsafe { self.base.add(CODE).cast::<[u64; 3]>().read() }
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
            let thunk = instruction.near_branch_target() == self.at(INDIRECT_THUNK);
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
