//! The forms: each hooks every function of its own copy, by writing text that nobody runs.

use core::cell::Cell;
use core::ptr::{self, NonNull};

use fentry::addr::Entry;
use fentry::emit::x86_64::{
    Bodies, CalledTrampoline, EXIT_THUNK_SIZE, FrameBodies, Kept, SideStack, SideStackBodies,
    SideStackPlace, SwapBodies, exit_thunk,
};
use fentry::emit::{CookiePlace, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::x86_64::{Reg, call, call_bytes, jmp, jmp_bytes, mov_imm32, pop};
use fentry::encode::{CodeBuffer, EncodeError};
use fentry::layout::x86_64::PLAIN;

use crate::functions::Copy;

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Unhooked,
    /// Hand-written, balanced.
    Floor,
    SideStack,
    /// All state on the ordinary stack: it is known that nothing else is an argument there.
    Frame,
    /// Called from the patch site, with a frame skipped.
    Called,
    /// The return address swapped, returning with a jump.
    Swap,
}

/// Bytes of the bodies that all functions share, and of a function's own code, at the most.
const SHARED: u64 = 0x1000;
const OWN: u64 = 384;

/// Bytes that the forms need for `count` functions, in whole pages.
pub const fn own_bytes(count: usize) -> usize {
    (SHARED as usize + OWN as usize * count).next_multiple_of(4096)
}

thread_local! {
    static SIDE_STACK: Cell<*mut SideStack> = const { Cell::new(ptr::null_mut()) };
}

/// Gives this thread a side stack, and says where it stands.
pub fn side_stack() -> SideStackPlace {
    let memory = Box::leak(vec![0_u128; SideStack::size_for(64).div_ceil(16)].into_boxed_slice());
    let bytes = size_of_val(memory);
    // SAFETY: new memory, which nobody else has and which is never freed.
    let made = unsafe { SideStack::init(NonNull::from(memory).cast(), bytes) };
    SIDE_STACK.set(made.expect("aligned and large enough").as_ptr());
    let base: u64;
    // SAFETY: the word at the thread pointer is its own address (psABI 11.2).
    unsafe { core::arch::asm!("mov {}, fs:0", out(reg) base, options(nostack, readonly)) };
    let cell = SIDE_STACK.with(|cell| ptr::from_ref(cell) as u64);
    let thread_offset = i32::try_from(cell.wrapping_sub(base).cast_signed());
    SideStackPlace { thread_offset: thread_offset.expect("the static block is near"), make: None }
}

/// What hooks one copy.
pub struct Hooks<'a> {
    pub form: Form,
    pub copy: &'a Copy,
    pub side_stack: SideStackPlace,
    /// What the images read: entries, and cookies, by index.
    functions: Vec<u64>,
    cookies: Vec<u64>,
    /// The text that is written.
    text: (usize, usize),
}

impl<'a> Hooks<'a> {
    pub fn new(form: Form, copy: &'a Copy, count: usize, side_stack: SideStackPlace) -> Self {
        let functions = (0..count).map(|index| copy.entry(index)).collect();
        let start = copy.entry(0) as usize & !0xfff;
        let end = copy.address("ground") as usize + own_bytes(count);
        Self { form, copy, side_stack, functions, cookies: vec![0; count], text: (start, end) }
    }

    fn protect(&self, access: libc::c_int) {
        let (start, end) = self.text;
        // SAFETY: pages of the copy's text, which nobody runs while they are written.
        let failed = unsafe { libc::mprotect(start as *mut _, end - start, access) };
        assert_eq!(failed, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let (start, end) = self.text;
        assert!((start..end - bytes.len()).contains(&(at as usize)));
        // SAFETY: inside the text, which is writable and run by nobody at the moment.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    /// Writes what `emit` emits for `at`; it has `room` bytes.
    fn emit<T>(&self, at: u64, room: u64, emit: impl FnOnce(&mut CodeBuffer<'_>) -> T) -> T {
        let mut bytes = [0xcc; SHARED as usize];
        let mut code = CodeBuffer::new(&mut bytes[..room as usize], at);
        let result = emit(&mut code);
        self.write(at, code.written());
        result
    }

    /// Hooks every function with the programs `<kind>_entry` and `<kind>_exit` of the copy.
    pub fn attach(&self, kind: &str) {
        if self.form == Form::Unhooked {
            return;
        }
        let program = |which| {
            let column = self.cookies.as_ptr() as u64;
            let cookie = CookiePlace { column, stride: Stride::Eight };
            let target = self.copy.address(&format!("{kind}_{which}"));
            [ProgramCall { target, data: None, cookie, session: None }]
        };
        let (entries, exits) = (program("entry"), program("exit"));
        let ground = self.copy.address("ground");
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
        let bodies = self.emit(ground, SHARED, |code| self.bodies(kind, &entries, &exits, code));
        for (&entry, index) in self.functions.iter().zip(0_u32..) {
            // As close together as each form allows.
            let size = if self.form == Form::Called { OWN } else { EXIT_THUNK_SIZE as u64 };
            let at = ground + SHARED + size * u64::from(index);
            let origin = PLAIN.origin(Entry::new(entry));
            let site = match self.form {
                Form::Unhooked => return,
                Form::Floor => {
                    let thunk =
                        |code: &mut CodeBuffer<'_>| floor(code, index, bodies, origin.get());
                    self.emit(at, size, thunk).expect("it is 26 bytes");
                    jmp_bytes(entry, at)
                }
                Form::SideStack | Form::Frame => {
                    let thunk = |code: &mut CodeBuffer<'_>| exit_thunk(code, index, bodies, origin);
                    self.emit(at, size, thunk).expect("it is 32 bytes");
                    jmp_bytes(entry, at)
                }
                Form::Called => {
                    let trampoline = CalledTrampoline {
                        index,
                        function: Entry::new(entry),
                        origin,
                        stack_arguments: 0,
                        vectors: Vectors::Untouched,
                        entries: &entries,
                        exits: &exits,
                    };
                    let start = self.emit(at, size, |code| trampoline.emit(code));
                    call_bytes(entry, start.expect("it fits"))
                }
                Form::Swap => {
                    let mut slot = [0; 5];
                    let [a, b, c, d] = index.to_le_bytes();
                    slot.copy_from_slice(&[0xb8, a, b, c, d]);
                    let at = PLAIN.slot(Entry::new(entry)).expect("it has padding");
                    self.write(at.get(), &slot);
                    call_bytes(entry, bodies.enter)
                }
            };
            self.write(entry, &site.expect("one object is smaller than 2 GiB"));
        }
        self.protect(libc::PROT_READ | libc::PROT_EXEC);
    }

    fn bodies(
        &self,
        kind: &str,
        entries: &[ProgramCall],
        exits: &[ProgramCall],
        code: &mut CodeBuffer<'_>,
    ) -> Bodies {
        let (vectors, side_stack) = (Vectors::Untouched, self.side_stack);
        let column = self.functions.as_ptr() as u64;
        let functions = CookiePlace { column, stride: Stride::Eight };
        let modify = &[];
        match self.form {
            Form::Unhooked | Form::Called => Bodies { enter: 0, exit: 0, kept: Kept::OnSideStack },
            Form::Floor => Bodies {
                enter: self.copy.address(&format!("floor_enter_{kind}")),
                exit: self.copy.address(&format!("floor_exit_{kind}")),
                kept: Kept::OnSideStack,
            },
            Form::SideStack => {
                let bodies =
                    SideStackBodies { functions, side_stack, vectors, entries, modify, exits };
                bodies.emit(code).expect("it fits")
            }
            Form::Frame => {
                let stack_arguments = 0;
                let bodies =
                    FrameBodies { functions, stack_arguments, vectors, entries, modify, exits };
                bodies.emit(code).expect("it fits")
            }
            Form::Swap => {
                let return_to_index = PLAIN.return_to_index().expect("it has padding");
                let index = IndexFrom::Slot { return_to_index };
                let return_to_entry = PLAIN.return_to_entry();
                let bodies =
                    SwapBodies { index, return_to_entry, side_stack, vectors, entries, exits };
                bodies.emit(code).expect("it fits")
            }
        }
    }
}

/// The floor's thunk: the library's without the two ways round the origin.
fn floor(
    code: &mut CodeBuffer<'_>,
    index: u32,
    bodies: Bodies,
    origin: u64,
) -> Result<(), EncodeError> {
    mov_imm32(code, Reg::R11, index)?;
    call(code, bodies.enter)?;
    pop(code, Reg::R11)?;
    call(code, origin)?;
    jmp(code, bodies.exit)
}
