//! A shared object that is loaded, and calling its functions.

use core::ffi::{CStr, c_int, c_void};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::source::{FORMS, Form, constant};

/// A loaded object. It stays loaded until [`close`](Self::close).
pub struct Library {
    handle: *mut c_void,
    pub targets: Vec<Target>,
    /// The file's name, which is the name of the module.
    pub name: String,
}

// SAFETY: the handle is only passed to `dlsym` and `dlclose`, which any thread may call.
unsafe impl Send for Library {}
// SAFETY: as above; a shared reference is for `dlsym` and numbers.
unsafe impl Sync for Library {}

/// One of its functions.
#[derive(Clone, Copy)]
pub struct Target {
    pub entry: usize,
    pub form: Form,
    constant: u64,
    /// The constant of its group's first function.
    first: u64,
}

impl Library {
    /// Loads the object at `path`, that was made with this many functions and this seed.
    pub fn open(path: &Path, functions: usize, seed: u32) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: the object was generated; it has no constructor of its own.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failed `dlopen`, `dlerror` gives a C string.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(why.to_string_lossy().into_owned());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut library = Self { handle, targets: Vec::new(), name };
        let table = library.symbol(c"table")?;
        // SAFETY: the object's `table` is an array of as many function addresses.
        let entries = unsafe { core::slice::from_raw_parts(table as *const usize, functions) };
        let target = |(index, &entry): (usize, &usize)| Target {
            entry,
            form: FORMS[index % FORMS.len()],
            constant: constant(seed, index),
            first: constant(seed, index / FORMS.len() * FORMS.len()),
        };
        library.targets = entries.iter().enumerate().map(target).collect();
        Ok(library)
    }

    /// The address of a symbol.
    pub fn symbol(&self, name: &CStr) -> Result<usize, String> {
        // SAFETY: the handle is a loaded object's.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if address.is_null() { Err(format!("{name:?} is not there")) } else { Ok(address as usize) }
    }

    /// Unloads it.
    ///
    /// # Safety
    /// No thread is in it or will call into it.
    pub unsafe fn close(self) {
        // SAFETY: a handle of `dlopen`, closed once; the rest is the caller's contract.
        unsafe { libc::dlclose(self.handle) };
    }
}

#[repr(C)]
#[derive(PartialEq, Eq)]
struct Four([u64; 4]);

impl Target {
    /// Calls it with `a` for its first argument. Whether the result is what it should be.
    ///
    /// # Safety
    /// Its library is loaded.
    #[inline]
    pub unsafe fn call(&self, a: u64, b: u64) -> bool {
        let Self { entry, constant: k, first, .. } = *self;
        let plain = |b: u64| (a ^ first).wrapping_add(b.wrapping_mul(3));
        let two = || {
            // SAFETY: these three forms have this type.
            let f: extern "C" fn(u64, u64) -> u64 = unsafe { core::mem::transmute(entry) };
            f(a, b)
        };
        match self.form {
            Form::Plain => two() == plain(b),
            Form::Nested => two() == plain(b).wrapping_mul(5).wrapping_add(k),
            Form::Tail => two() == plain(b ^ k),
            Form::Floats => {
                // SAFETY: this form has this type.
                let f: extern "C" fn(u64, f64, f64) -> u64 = unsafe { core::mem::transmute(entry) };
                let (x, y) = (a & 0xffff, b & 0xffff);
                f(a, x as f64, y as f64) == a.wrapping_add(x * y).wrapping_add(k)
            }
            Form::Eight => {
                type Eight = extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64) -> u64;
                // SAFETY: this form has this type.
                let f: Eight = unsafe { core::mem::transmute(entry) };
                let [c, d, e, g, h, i] = [1, 2, 3, 4, 5, 6].map(|n| b.rotate_left(n * 8));
                let terms = [(3, b), (5, c), (7, d), (11, e), (13, g), (17, h), (19, i)];
                let sum = terms.iter().fold(a.wrapping_add(k), |sum, (factor, value)| {
                    sum.wrapping_add(value.wrapping_mul(*factor))
                });
                f(a, b, c, d, e, g, h, i) == sum
            }
            Form::Memory => {
                // SAFETY: this form has this type.
                let f: extern "C" fn(u64, u64) -> Four = unsafe { core::mem::transmute(entry) };
                f(a, b) == Four([a ^ k, b.wrapping_add(k), a.wrapping_add(b), k])
            }
            Form::Variadic => {
                type Variadic = unsafe extern "C" fn(u64, c_int, ...) -> u64;
                // SAFETY: this form has this type.
                let f: Variadic = unsafe { core::mem::transmute(entry) };
                // SAFETY: three pairs are announced, and three follow.
                let sum = unsafe { f(a, 3, b, 1.0_f64, b ^ 1, 2.0_f64, b ^ 2, 3.0_f64) };
                let pairs = b.wrapping_add(b ^ 1).wrapping_add(b ^ 2).wrapping_add(6);
                sum == a.wrapping_add(pairs).wrapping_add(k)
            }
        }
    }
}
