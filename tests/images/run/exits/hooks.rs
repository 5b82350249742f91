//! Functions of a C object, hooked at entry and exit in each of the three forms by writing
//! their patch sites while nobody runs them.

use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::{self, NonNull};
use std::alloc::alloc_zeroed;

use fentry::addr::Entry;
use fentry::emit::x86_64::{
    Bodies, CalledTrampoline, EXIT_THUNK_SIZE, FrameBodies, Kept, MakeSideStack, SideStack,
    SideStackBodies, SideStackPlace, SwapBodies, THUNK_JUMP, entry_thunk, exit_thunk,
};
use fentry::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{call_bytes, jmp_bytes};
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

/// Gives this thread a side stack for `depth` functions.
pub fn give_side_stack(depth: u32) -> &'static SideStack {
    let bytes = SideStack::size_for(depth);
    let layout = Layout::from_size_align(bytes, 16).expect("16 is a power of two");
    // SAFETY: not empty.
    let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("there is memory");
    // SAFETY: new memory of that size, zeroed, which is never freed.
    let side_stack = unsafe { SideStack::init(memory, bytes) }.expect("aligned and large enough");
    SIDE_STACK.set(side_stack.as_ptr());
    // SAFETY: never freed; Rust code only reads it.
    unsafe { side_stack.as_ref() }
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

pub fn place(make: Option<extern "C" fn() -> *mut SideStack>) -> SideStackPlace {
    let make = make.map(|make| MakeSideStack {
        target: make as usize as u64,
        vectors: super::super::widest(),
    });
    SideStackPlace { thread_offset: thread_offset(), make }
}

/// Programs, and what is saved around them.
#[derive(Clone, Copy)]
pub struct Programs<'a> {
    pub vectors: Vectors,
    pub side_stack: SideStackPlace,
    pub entries: &'a [ProgramCall],
    pub exits: &'a [ProgramCall],
}

/// Hooked functions. Dropping it unhooks them.
pub struct Hooks {
    ground: Ground,
    sites: Vec<(u64, [u8; 5])>,
    /// Their entries, by index.
    _functions: Box<[u64]>,
    /// The first function's own code.
    own: u64,
}

/// Text that is written while nobody runs it.
#[derive(Clone, Copy)]
pub struct Ground(pub u64);

impl Ground {
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
        let Programs { vectors, side_stack, entries: before, exits } = *programs;
        let bodies = ground.emit(ground.0, |code| match form {
            Form::SideStack => {
                let functions =
                    CookiePlace { column: functions.as_ptr() as u64, stride: Stride::Eight };
                let modify = &[];
                SideStackBodies { functions, side_stack, vectors, entries: before, modify, exits }
                    .emit(code)
                    .unwrap()
            }
            Form::Frame => {
                let functions =
                    CookiePlace { column: functions.as_ptr() as u64, stride: Stride::Eight };
                let (stack_arguments, modify) = (STACK_ARGUMENTS, &[][..]);
                FrameBodies { functions, stack_arguments, vectors, entries: before, modify, exits }
                    .emit(code)
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
        let mut hooks = Self { ground, sites: Vec::new(), _functions: functions, own };
        for (&entry, index) in entries.iter().zip(0_u32..) {
            let at = own + u64::from(index) * OWN as u64;
            let site = layout.site(Entry::new(entry)).get();
            let origin = layout.origin(Entry::new(entry));
            let branch = ground.emit(at, |code| match form {
                Form::SideStack | Form::Frame => {
                    exit_thunk(code, index, bodies, origin).unwrap();
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

    /// Whether `address` is in some function's own code: a thunk or trampoline.
    pub fn is_own(&self, address: u64) -> bool {
        (self.own..self.own + (self.sites.len() * OWN) as u64).contains(&address)
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        for (site, bytes) in &self.sites {
            self.ground.write(*site, bytes);
        }
    }
}
