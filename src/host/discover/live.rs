//! The modules of the running process, as its dynamic loader lists them.

use core::any::Any;
use core::ffi::{CStr, c_int, c_void};
use core::ops::Range;
use core::panic::AssertUnwindSafe;
use core::ptr;
use std::borrow::ToOwned;
use std::boxed::Box;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

use super::image::{Loaded, Memory, Segment};
use super::reason::{DiscoverError, SkipReason};
use super::{Discovery, Identity, Module, Skipped};

mod file;

use file::FileBytes;

/// The program, whatever it is called now and whether its file still has a name.
const PROGRAM: &str = "/proc/self/exe";

/// Finds the patch sites of the program and of every shared object that is loaded now.
///
/// Other threads can load and unload meanwhile; they wait for one module at most when it is
/// read. The vDSO has no patch sites and is left out.
///
/// # Errors
/// [`DiscoverError`]; what concerns one module is in [`Discovery::skipped`].
pub fn modules() -> Result<Discovery, DiscoverError> {
    modules_except(&[])
}

/// As [`modules`], without looking at those in `known`: after a `dlopen`, finds what is new.
///
/// # Errors
/// [`DiscoverError`]; it is none if `known` has everything that is loaded.
pub fn modules_except(known: &[Identity]) -> Result<Discovery, DiscoverError> {
    let mut found = Discovery { modules: Vec::new(), skipped: Vec::new() };
    let mut any = false;
    each_listed(|listed| {
        any = true;
        let identity = listed.identity();
        if known.contains(&identity) {
            return;
        }
        match listed.inspect(identity.clone()) {
            Ok(module) => found.modules.push(module),
            Err(reason) => found.skipped.push(Skipped { identity, reason }),
        }
    });
    if any { Ok(found) } else { Err(DiscoverError::NothingLoaded) }
}

/// Lists what is loaded, in the loader's order, without reading any file: what has gone or
/// come since a search.
///
/// # Errors
/// [`DiscoverError`].
pub fn loaded() -> Result<Vec<Identity>, DiscoverError> {
    let mut all = Vec::new();
    each_listed(|listed| all.push(listed.identity()));
    if all.is_empty() { Err(DiscoverError::NothingLoaded) } else { Ok(all) }
}

/// Calls `work` with what is loaded, while none of it can be unloaded: other threads that load
/// or unload wait meanwhile. Whoever waits for such a thread must not be waited for.
///
/// # Errors
/// [`DiscoverError`]; then `work` was not called.
pub fn while_loaded<R>(work: impl FnOnce(&[Identity]) -> R) -> Result<R, DiscoverError> {
    let mut work = Some(work);
    let mut result = Err(DiscoverError::NothingLoaded);
    // The loader's lock is held in here, and its owner may take it again.
    each_listed(|_| {
        if let Some(work) = work.take() {
            result = loaded().map(|loaded| work(&loaded));
        }
    });
    result
}

/// The file name of a module that has a function symbol of this name, as the symbol table has
/// it or demangled, whether or not the function has a patch site. Reads every module's symbol
/// table: for an error message, not for a search.
#[must_use]
pub fn module_of_symbol(name: &str) -> Option<String> {
    let mut found = None;
    each_listed(|listed| {
        if found.is_none() && listed.has_symbol(name) {
            let path = listed.identity().path;
            found = path.file_name().map(|name| name.to_string_lossy().into_owned());
        }
    });
    found
}

/// How often modules came and went since the process began; equal values mean that nothing
/// did in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// How many modules were loaded.
    pub loaded: u64,
    /// How many were unloaded.
    pub unloaded: u64,
}

/// The current [`Generation`], from the loader's own counters.
#[must_use]
pub fn generation() -> Generation {
    let mut now = Generation::default();
    each_listed(|listed| now = listed.generation);
    now
}

/// One module as the loader lists it, while it cannot be unloaded.
struct Listed<'a> {
    name: &'a CStr,
    loaded: Loaded,
    memory: OwnMemory,
    generation: Generation,
}

impl Listed<'_> {
    fn is_program(&self) -> bool {
        self.name.is_empty()
    }

    fn identity(&self) -> Identity {
        let path = if self.is_program() {
            std::fs::read_link(PROGRAM).unwrap_or_else(|_| PathBuf::from(PROGRAM))
        } else {
            let path = Path::new(OsStr::from_bytes(self.name.to_bytes()));
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
        };
        let build_id = self.loaded.build_id(&self.memory);
        Identity { path, bias: self.loaded.bias, build_id }
    }

    fn has_symbol(&self, name: &str) -> bool {
        let identity = self.identity();
        let path = if self.is_program() { Path::new(PROGRAM) } else { &identity.path };
        let file = File::open(path).and_then(FileBytes::new);
        file.is_ok_and(|file| Module::has_symbol(name, &file, &self.loaded, &self.memory))
    }

    fn inspect(&self, identity: Identity) -> Result<Module, SkipReason> {
        let unreadable =
            |error: io::Error| SkipReason::Unreadable { os_error: error.raw_os_error() };
        let path = if self.is_program() { Path::new(PROGRAM) } else { &identity.path };
        let file = FileBytes::new(File::open(path).map_err(unreadable)?).map_err(unreadable)?;
        Module::read(identity, &file, &self.loaded, &self.memory)
    }
}

/// The readable segments of a module of this process.
struct OwnMemory {
    readable: Vec<Range<u64>>,
}

impl Memory for OwnMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(end) = address.checked_add(into.len() as u64) else { return false };
        if !self.readable.iter().any(|range| range.start <= address && end <= range.end) {
            return false;
        }
        let from = ptr::with_exposed_provenance::<u8>(address as usize);
        // SAFETY: The bytes are inside a readable segment that the loader has mapped, and it
        // holds its lock while this type exists, so that nobody unmaps it. No Rust value
        // lives in what is read: it is headers, tables and code.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        true
    }
}

/// What the loader's callback works with.
struct Walk<'a> {
    each: &'a mut dyn FnMut(&Listed<'_>),
    panic: Option<Box<dyn Any + Send>>,
}

/// Calls `each` for every module that is loaded, except the vDSO, under the loader's lock.
fn each_listed(mut each: impl FnMut(&Listed<'_>)) {
    let mut walk = Walk { each: &mut each, panic: None };
    // SAFETY: `visit` takes what is passed here, a `Walk` that outlives the call and that
    // nothing else touches meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut walk).cast()) };
    if let Some(panic) = walk.panic {
        resume_unwind(panic);
    }
}

/// Called by the loader for each module.
///
/// # Safety
/// `info` is the loader's, and `walk` the `Walk` of [`each_listed`].
unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    walk: *mut c_void,
) -> c_int {
    // SAFETY: The caller passes a valid description.
    let info = unsafe { &*info };
    // SAFETY: The caller passes a `Walk` and leaves it to this call.
    let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
    // A panic must not unwind through the loader.
    let done = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: The description is the loader's.
        if let Some(listed) = unsafe { listed(info) } {
            (walk.each)(&listed);
        }
    }));
    match done {
        Ok(()) => 0,
        Err(panic) => {
            walk.panic = Some(panic);
            1
        }
    }
}

/// Copies what the loader says of a module; `None` for the vDSO and for what is no module.
///
/// # Safety
/// `info` is the loader's, and its lock is held for as long as the result is used.
unsafe fn listed(info: &libc::dl_phdr_info) -> Option<Listed<'_>> {
    if info.dlpi_phdr.is_null() {
        return None;
    }
    // SAFETY: The loader's headers are mapped, as many as it says, and it changes none.
    let headers =
        unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let segment = |header: &libc::Elf64_Phdr| Segment {
        kind: header.p_type,
        flags: header.p_flags,
        offset: header.p_offset,
        address: header.p_vaddr,
        file_size: header.p_filesz,
        memory_size: header.p_memsz,
    };
    let loaded = Loaded { bias: info.dlpi_addr, segments: headers.iter().map(segment).collect() };
    let readable = loaded.readable();
    // SAFETY: `getauxval` reads what the kernel passed; 0 if it passed no vDSO.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    if vdso != 0 && readable.iter().any(|range| range.contains(&vdso)) {
        return None;
    }
    let name = if info.dlpi_name.is_null() {
        c""
    } else {
        // SAFETY: The loader's name ends in a zero and lives as long as the module.
        unsafe { CStr::from_ptr(info.dlpi_name) }
    };
    let generation = Generation { loaded: info.dlpi_adds, unloaded: info.dlpi_subs };
    Some(Listed { name, loaded, memory: OwnMemory { readable }, generation })
}
