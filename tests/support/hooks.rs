//! Functions of a C object, hooked at entry and exit in each of the forms by writing their patch
//! sites while nobody runs them.

use core::alloc::Layout;
use core::cell::Cell;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};
use std::alloc::alloc_zeroed;

use fentry::addr::Entry;
use fentry::emit::x86_64::{
    Bodies, CalledTrampoline, EXIT_THUNK_SIZE, FrameBodies, Hardening, Kept, MakeSideStack, Marks,
    Preamble, SideStack, SideStackBodies, SideStackList, SideStackPlace, SwapBodies, THUNK_JUMP,
    entry_thunk, exit_thunk_hardened,
};
use fentry::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{Reg, call_bytes, jmp_bytes, jmp_reg, mov_imm64};
use fentry::layout::EntryLayout;

/// The forms with exit programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    SideStack,
    Frame,
    Called,
    Swap,
}

pub const FORMS: [Form; 4] = [Form::SideStack, Form::Frame, Form::Called, Form::Swap];
/// Forms whose frames are on a side stack.
pub const SIDE_STACKS: [Form; 2] = [Form::SideStack, Form::Swap];

/// What the forms copy that copy arguments: no function here has more.
const STACK_ARGUMENTS: u8 = 12;
/// Bytes of an image, and of one function's own code, at the most.
const IMAGE: usize = 0x2000;
const OWN: usize = 0x800;

thread_local! {
    static SIDE_STACK: Cell<*mut SideStack> = const { Cell::new(ptr::null_mut()) };
}

/// Bytes from the thread pointer to `SIDE_STACK`: the same in every thread, because the test's
/// executable has its thread-local storage in the block that the loader lays out.
pub fn thread_offset() -> i32 {
    let base: u64;
    // SAFETY: the word at the thread pointer is its own address (psABI 11.2).
    unsafe { core::arch::asm!("mov {}, fs:0", out(reg) base, options(nostack, readonly)) };
    let cell = SIDE_STACK.with(|cell| ptr::from_ref(cell) as u64);
    i32::try_from(cell.wrapping_sub(base).cast_signed()).expect("the static block is near")
}

/// What stands before each side stack: the list of all, the last one made first.
#[repr(C, align(16))]
struct Listed {
    next: *mut Listed,
}

static ALL: AtomicPtr<Listed> = AtomicPtr::new(ptr::null_mut());

/// Where unwinders find all side stacks.
pub fn side_stack_list() -> SideStackList {
    SideStackList { first: ALL.as_ptr() as u64, next: 0, side_stack: size_of::<Listed>() as u8 }
}

/// Gives this thread a side stack for `depth` functions.
pub fn give_side_stack(depth: u32) -> &'static SideStack {
    let bytes = SideStack::size_for(depth);
    let layout = Layout::from_size_align(size_of::<Listed>() + bytes, align_of::<Listed>())
        .expect("16 is a power of two");
    // SAFETY: not empty.
    let listed = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("there is memory");
    let listed = listed.cast::<Listed>();
    // SAFETY: behind the head there are so many bytes of new memory, zeroed, which is never freed.
    let side_stack = unsafe { SideStack::init(listed.add(1).cast(), bytes) };
    let side_stack = side_stack.expect("aligned and large enough");
    let _before = ALL.fetch_update(Ordering::Release, Ordering::Relaxed, |next| {
        // SAFETY: not in the list yet, so nobody else has it.
        unsafe { listed.write(Listed { next }) };
        Some(listed.as_ptr())
    });
    SIDE_STACK.set(side_stack.as_ptr());
    // SAFETY: never freed; Rust code only reads it.
    unsafe { side_stack.as_ref() }
}

/// Gives this thread one that it had before.
pub fn give_back(side_stack: &'static SideStack) {
    SIDE_STACK.set(ptr::from_ref(side_stack).cast_mut());
}

/// This thread's side stack, if it has one.
pub fn side_stack() -> Option<&'static SideStack> {
    // SAFETY: as above.
    unsafe { SIDE_STACK.get().as_ref() }
}

/// Makes a side stack on a thread's first call.
pub extern "C" fn make_side_stack() -> *mut SideStack {
    ptr::from_ref(give_side_stack(200)).cast_mut()
}

/// Refuses to.
pub extern "C" fn make_none() -> *mut SideStack {
    ptr::null_mut()
}

/// How images find side stacks, which they have made by `make`, around which `vectors` are saved.
pub fn place(make: Option<extern "C" fn() -> *mut SideStack>, vectors: Vectors) -> SideStackPlace {
    let make = make.map(|make| MakeSideStack { target: make as usize as u64, vectors });
    SideStackPlace { thread_offset: thread_offset(), make }
}

/// Programs, what is saved around them, and what is done to branches, in the forms that have any
/// such thing.
#[derive(Clone, Copy)]
pub struct Programs<'a> {
    pub vectors: Vectors,
    pub side_stack: SideStackPlace,
    pub entries: &'a [ProgramCall],
    pub modify: &'a [ProgramCall],
    pub exits: &'a [ProgramCall],
    pub hardening: Hardening,
}

impl Programs<'_> {
    /// None, on side stacks that threads have.
    pub fn none(vectors: Vectors) -> Self {
        Self {
            vectors,
            side_stack: place(None, vectors),
            entries: &[],
            modify: &[],
            exits: &[],
            hardening: Hardening::NONE,
        }
    }
}

/// Hooked functions. Dropping it unhooks them.
pub struct Hooks {
    ground: Ground,
    sites: Vec<(u64, [u8; 5])>,
    /// Their entries, by index.
    _functions: Box<[u64]>,
    /// The first function's own code.
    own: u64,
    /// Where the bodies are, and places in them, of forms with a thunk.
    marks: Option<Marks>,
}

/// Text that is written while nobody runs it.
#[derive(Clone, Copy)]
pub struct Ground(pub u64);

impl Ground {
    /// New memory near `hint`, so many bytes, which nobody frees.
    pub fn new(hint: u64, size: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { libc::mmap(hint as *mut _, size, libc::PROT_READ, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(base as u64)
    }

    /// Lets the page at `page` be written, and no code be in it.
    pub fn make_writable(self, page: u64) {
        // SAFETY: a page of this test's own, in which there is no code.
        let failed =
            unsafe { libc::mprotect(page as *mut _, 0x1000, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }

    /// Emits an entry at `at` or a little later that goes on at `target` with all its arguments,
    /// and returns it.
    pub fn lead(self, at: u64, preamble: &Preamble, target: u64) -> u64 {
        self.emit(at, |code| {
            let entry = preamble.emit(code).unwrap();
            mov_imm64(code, Reg::R11, target).unwrap();
            jmp_reg(code, Reg::R11).unwrap();
            entry
        })
    }

    pub fn write(self, at: u64, bytes: &[u8]) {
        let page = at & !0xfff;
        let len = (at - page) as usize + bytes.len();
        let protect = |access| {
            // SAFETY: pages of this test's own object or mapping, which nobody runs now.
            let failed = unsafe { libc::mprotect(page as *mut _, len, access) };
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        };
        protect(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: writable now, and large enough: the callers keep to their areas.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        protect(libc::PROT_READ | libc::PROT_EXEC);
    }

    /// Writes what `emit` emits for `at`.
    pub fn emit<T>(self, at: u64, emit: impl FnOnce(&mut CodeBuffer<'_>) -> T) -> T {
        let mut bytes = [0xcc; IMAGE];
        let mut code = CodeBuffer::new(&mut bytes, at);
        let result = emit(&mut code);
        self.write(at, code.written());
        result
    }
}

impl Hooks {
    /// Hooks the functions with these entries; a function's index is its place.
    ///
    /// The area at `ground` is within a direct call's reach of them.
    pub fn new(
        form: Form,
        ground: Ground,
        layout: &EntryLayout,
        entries: &[u64],
        programs: &Programs<'_>,
    ) -> Self {
        let functions: Box<[u64]> = entries.into();
        let Programs { vectors, side_stack, entries: before, modify, exits, hardening } = *programs;
        let mut marks = None;
        let bodies = ground.emit(ground.0, |code| match form {
            Form::SideStack => {
                let functions =
                    CookiePlace { column: functions.as_ptr() as u64, stride: Stride::Eight };
                SideStackBodies { functions, side_stack, vectors, entries: before, modify, exits }
                    .emit_hardened(code, &hardening)
                    .map(|found| marks.insert(found).bodies())
                    .unwrap()
            }
            Form::Frame => {
                let functions =
                    CookiePlace { column: functions.as_ptr() as u64, stride: Stride::Eight };
                let stack_arguments = STACK_ARGUMENTS;
                FrameBodies { functions, stack_arguments, vectors, entries: before, modify, exits }
                    .emit_hardened(code, &hardening)
                    .map(|found| marks.insert(found).bodies())
                    .unwrap()
            }
            Form::Swap => SwapBodies {
                index: IndexFrom::Thunk,
                return_to_entry: layout.return_to_entry(),
                side_stack,
                vectors,
                entries: before,
                exits,
            }
            .emit(code)
            .unwrap(),
            Form::Called => Bodies { enter: 0, exit: 0, kept: Kept::OnSideStack },
        });
        let own = ground.0 + IMAGE as u64;
        let mut hooks = Self { ground, sites: Vec::new(), _functions: functions, own, marks };
        for (&entry, index) in entries.iter().zip(0_u32..) {
            let at = own + u64::from(index) * OWN as u64;
            let site = layout.site(Entry::new(entry)).get();
            let origin = layout.origin(Entry::new(entry));
            let branch = ground.emit(at, |code| match form {
                Form::SideStack | Form::Frame => {
                    exit_thunk_hardened(code, index, bodies, origin, &hardening).unwrap();
                    assert_eq!(code.position(), EXIT_THUNK_SIZE);
                    jmp_bytes(site, at).unwrap()
                }
                Form::Called => {
                    let trampoline = CalledTrampoline {
                        index,
                        function: Entry::new(entry),
                        origin,
                        stack_arguments: STACK_ARGUMENTS,
                        vectors,
                        entries: before,
                        exits,
                    };
                    call_bytes(site, trampoline.emit(code).unwrap()).unwrap()
                }
                Form::Swap => {
                    entry_thunk(code, index).unwrap();
                    call_bytes(site, at).unwrap()
                }
            });
            if form == Form::Swap {
                let jump = at + THUNK_JUMP as u64;
                ground.write(jump, &jmp_bytes(jump, bodies.enter).unwrap());
            }
            // SAFETY: five bytes of readable text.
            hooks.sites.push((site, unsafe { *(site as *const [u8; 5]) }));
            ground.write(site, &branch);
        }
        hooks
    }

    /// The functions' own code: thunks or trampolines, behind the bodies.
    pub fn own(&self) -> Range<u64> {
        self.own..self.own + (self.sites.len() * OWN) as u64
    }

    /// Whether `address` is in some function's own code.
    pub fn is_own(&self, address: u64) -> bool {
        self.own().contains(&address)
    }

    /// What unwind tables of the bodies have to know, in the forms that have such.
    pub fn marks(&self) -> Option<&Marks> {
        self.marks.as_ref()
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        for (site, bytes) in &self.sites {
            self.ground.write(*site, bytes);
        }
    }
}
