//! What mitigations need of an embedder, in a test's own process: a return thunk and a retpoline
//! that count how often they are used, and a count of calls.

use core::ptr::with_exposed_provenance_mut;

use fentry::emit::Mitigations;
use fentry::emit::x86_64::{
    Bhi, CallDepth, Check, FineIbt, Generation, Hardening, Kcfi, Preamble, Symbols,
};

/// `ret`, with a mark that it was here: `inc qword ptr [rip + ...]`. No function need keep flags,
/// so it leaves what would be seen if somebody counted on them: `cmp rsp, rsp`; `stc`.
const RETURN: [u8; 13] = [0x48, 0xff, 0x05, 0, 0, 0, 0, 0x48, 0x39, 0xe4, 0xf9, 0xc3, 0xcc];
/// A retpoline: `call 1f`; `2: pause`; `lfence`; `jmp 2b`; `1: mov [rsp], r11`; the mark; `ret`.
const RETPOLINE: [u8; 24] = [
    0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x4c, 0x89, 0x1c, 0x24, 0x48, 0xff,
    0x05, 0, 0, 0, 0, 0xc3,
];
/// Where the marks are in them.
const MARK_OF_RETURN: usize = 0;
const MARK_OF_RETPOLINE: usize = 16;

/// Where the retpoline is, from the return thunk.
const INDIRECT: usize = 0x40;

/// What calls are counted from.
pub const COUNT: u64 = 1 << 62;

const HASH: u32 = 0x1b57_00d3;

/// The thunks at one address, and at another one three words, within a direct branch's reach of
/// each other and of what is emitted.
#[derive(Clone, Copy, Debug)]
pub struct Thunks {
    /// Where the thunks are, [`SIZE`](Self::SIZE) bytes that are executed.
    pub at: u64,
    /// The count of calls, and how often returns and indirect branches went through the thunks.
    pub counts: u64,
}

impl Thunks {
    /// Bytes of both thunks.
    pub const SIZE: usize = INDIRECT + RETPOLINE.len();

    /// The thunks' code.
    pub fn code(&self) -> [u8; Self::SIZE] {
        let mut code = [0xcc; Self::SIZE];
        code[..RETURN.len()].copy_from_slice(&RETURN);
        code[INDIRECT..].copy_from_slice(&RETPOLINE);
        for (word, mark) in [(1, MARK_OF_RETURN), (2, INDIRECT + MARK_OF_RETPOLINE)] {
            let distance = (self.counts + 8 * word).wrapping_sub(self.at + mark as u64 + 7);
            code[mark + 3..mark + 7].copy_from_slice(&(distance as u32).to_le_bytes());
        }
        code
    }

    /// What emitters are told. The base of `gs` is 0 in a process.
    pub fn symbols(&self, check: Check) -> Symbols {
        Symbols {
            indirect_thunk: Some(self.at + INDIRECT as u64),
            return_thunk: Some(self.at),
            call_depth: Some(CallDepth::RipRelative(self.counts)),
            check,
        }
    }

    /// Every set of mitigations that fits together, each with every check where it has one; and
    /// what entries begin with that pass the check.
    pub fn each_hardening(&self) -> Vec<(Hardening, Preamble)> {
        let fineibt = |generation, paranoid| {
            let bhi = Bhi::None;
            let preamble = Preamble::FineIbt(FineIbt { hash: HASH, generation, bhi });
            (preamble, Check::FineIbt { hash: HASH, generation, paranoid })
        };
        let kcfi = Kcfi { hash: HASH, arity: None, padding: 11, endbr64: true };
        let kcfi = Preamble::Kcfi(kcfi);
        let checked = [
            (kcfi, kcfi.check()),
            fineibt(Generation::Original, false),
            fineibt(Generation::Udb, true),
        ];
        let mut all = Vec::new();
        for bits in 0..Mitigations::SIGNED_RETURNS.bits() {
            let mitigations = Mitigations::from_bits_retain(bits);
            let has_check = mitigations.contains(Mitigations::CFI);
            let plain = [(Preamble::Endbr64, Check::None)];
            for &(preamble, check) in if has_check { &checked[..] } else { &plain } {
                if let Ok(hardening) = Hardening::new(mitigations, self.symbols(check)) {
                    all.push((hardening, preamble));
                }
            }
        }
        all
    }

    fn words(&self) -> *mut [u64; 3] {
        with_exposed_provenance_mut(self.counts as usize)
    }

    /// Counts from [`COUNT`], and from nothing.
    ///
    /// # Safety
    /// The words are writable, and no other thread runs what was emitted.
    pub unsafe fn restart(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.words().write([COUNT, 0, 0]) };
    }

    /// The count of calls, and how often returns and indirect branches went through the thunks.
    ///
    /// # Safety
    /// The words are readable, and no other thread runs what was emitted.
    pub unsafe fn counts(&self) -> [u64; 3] {
        // SAFETY: the caller's promise.
        unsafe { self.words().read() }
    }
}
