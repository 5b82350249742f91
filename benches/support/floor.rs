//! The bare stores: what attaching costs when somebody who knows every address beforehand
//! writes it by hand. Nothing is checked, recorded or undone on failure.

use core::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use super::assembly::{Copy, SITE_LEN};

/// `jmp` over the other three bytes of a patch site, as the two bytes it is stored with.
const OVER: u16 = u16::from_le_bytes([0xeb, SITE_LEN as u8 - 2]);

/// The five-byte nop that the functions have at their sites.
pub const NOP: [u8; SITE_LEN] = [0x0f, 0x1f, 0x44, 0, 0];

/// Writes the sites of one copy.
pub struct Stores {
    text: (usize, usize),
    /// Each patch site and the call to the body that is attached there.
    sites: Vec<(usize, [u8; SITE_LEN])>,
}

const SYNC_CORE: libc::c_int = 1 << 5;
const REGISTER_SYNC_CORE: libc::c_int = 1 << 6;

/// `membarrier(2)`: afterwards no core of this process runs instructions it fetched before.
fn membarrier(command: libc::c_int) {
    // SAFETY: `membarrier` takes no pointers and changes no memory.
    let failed = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    assert_eq!(failed, 0, "membarrier({command}): {}", std::io::Error::last_os_error());
}

impl Stores {
    /// Prepares the attachment of `body`, a symbol of `copy`, to the first `count`
    /// functions of `copy`.
    pub fn new(copy: &Copy, body: &str, count: usize) -> Self {
        membarrier(REGISTER_SYNC_CORE);
        let body = copy.object().address(body);
        let sites = (0..count)
            .map(|index| {
                let site = copy.entry(index);
                let displacement = i32::try_from(body as i64 - (site + SITE_LEN) as i64)
                    .expect("one object is smaller than 2 GiB");
                let mut call = [0xe8; SITE_LEN];
                call[1..].copy_from_slice(&displacement.to_le_bytes());
                (site, call)
            })
            .collect::<Vec<_>>();
        let ranges = super::common::object::executable_ranges(copy.object().path());
        let text = *ranges
            .iter()
            .find(|(start, end)| (*start..*end).contains(&sites[0].0))
            .expect("the functions are in an executable mapping");
        Self { text, sites }
    }

    fn protect(&self, write: libc::c_int) {
        let (start, end) = self.text;
        let access = libc::PROT_READ | libc::PROT_EXEC | write;
        // SAFETY: the range is a mapping of the copy's text, which stays readable and
        // executable throughout.
        let failed = unsafe { libc::mprotect(start as *mut _, end - start, access) };
        assert_eq!(failed, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    fn three_passes(&self, bytes: impl Fn(&[u8; SITE_LEN]) -> [u8; SITE_LEN]) {
        self.protect(libc::PROT_WRITE);
        for (site, _) in &self.sites {
            // SAFETY: a site is five bytes of the text made writable above, 16-byte aligned;
            // cores see the old two bytes or a jump over the site.
            unsafe { AtomicU16::from_ptr(*site as *mut u16) }.store(OVER, Ordering::Relaxed);
        }
        membarrier(SYNC_CORE);
        for (site, call) in &self.sites {
            let new = bytes(call);
            // SAFETY: as above; every core now jumps over these three bytes.
            unsafe {
                AtomicU16::from_ptr((*site + 2) as *mut u16)
                    .store(u16::from_le_bytes([new[2], new[3]]), Ordering::Relaxed);
                AtomicU8::from_ptr((*site + 4) as *mut u8).store(new[4], Ordering::Relaxed);
            }
        }
        membarrier(SYNC_CORE);
        for (site, call) in &self.sites {
            let new = bytes(call);
            // SAFETY: as above; the bytes after the two are those of the new instruction.
            unsafe { AtomicU16::from_ptr(*site as *mut u16) }
                .store(u16::from_le_bytes([new[0], new[1]]), Ordering::Relaxed);
        }
        membarrier(SYNC_CORE);
        self.protect(0);
    }

    /// Every site becomes a call of the body.
    pub fn attach(&self) {
        self.three_passes(|call| *call);
    }

    /// Every site becomes the nop again.
    pub fn detach(&self) {
        self.three_passes(|_| NOP);
    }
}
