//! The functions of `exits.cc`, hooked by hand at entry and exit.

use core::alloc::Layout;
use core::cell::Cell;
use core::mem::offset_of;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, Release};
use std::alloc::alloc_zeroed;

use fentry::addr::Entry;
use fentry::emit::x86_64::{
    Bodies, EXIT_THUNK_SIZE, MakeSideStack, Marks, SideStack, SideStackBodies, SideStackList,
    SideStackPlace, UnwindTable, exit_thunk,
};
use fentry::emit::{Context, CookiePlace, ExitContext, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::jmp_bytes;
use fentry::layout::x86_64::PLAIN;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::support::compile::{Build, Compiler, shared_object};
use crate::support::object::{Object, symbol_at};

const HOOKED: [&str; 9] =
    ["leaf", "quiet", "many", "tail", "tail_twice", "down", "thrower", "jumper", "landing"];

/// Where thunks and images are in `ground`.
const THUNKS: u64 = 0x2000;
const GROUND: u64 = 0x4000;

thread_local! {
    static SIDE_STACK: Cell<*mut SideStack> = const { Cell::new(ptr::null_mut()) };
    /// Frames that the thread's side stack will have.
    pub static DEPTH: Cell<u32> = const { Cell::new(64) };
    pub static ENTRIES: Cell<u64> = const { Cell::new(0) };
    pub static EXITS: Cell<u64> = const { Cell::new(0) };
}

/// The first of all side stacks.
static SIDE_STACKS: AtomicU64 = AtomicU64::new(0);
static COOKIES: [u64; 16] = [0; 16];

fn thread_offset() -> i32 {
    let base: u64;
    // SAFETY: the word at the thread pointer is its own address (psABI 11.2).
    unsafe { core::arch::asm!("mov {}, fs:0", out(reg) base, options(nostack, readonly)) };
    let cell = SIDE_STACK.with(|cell| ptr::from_ref(cell) as u64);
    i32::try_from(cell.wrapping_sub(base).cast_signed()).expect("the static block is near")
}

/// An element of the list of side stacks.
#[repr(C)]
struct Element {
    next: u64,
    side_stack: SideStack,
}

extern "C" fn make_side_stack() -> *mut SideStack {
    const BEFORE: usize = offset_of!(Element, side_stack);
    let bytes = SideStack::size_for(DEPTH.get());
    let layout = Layout::from_size_align(BEFORE + bytes, 16).expect("16 is a power of two");
    // SAFETY: not empty.
    let element = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("there is memory");
    // SAFETY: new memory, of that size behind the first bytes, which is never freed.
    let made = unsafe { SideStack::init(element.add(BEFORE), bytes) }.expect("aligned, and enough");
    let mut first = SIDE_STACKS.load(Relaxed);
    loop {
        // SAFETY: the field before the side stack, of an element that is not in the list yet.
        unsafe { (&raw mut (*element.as_ptr().cast::<Element>()).next).write(first) };
        let new = element.as_ptr() as u64;
        match SIDE_STACKS.compare_exchange_weak(first, new, Release, Relaxed) {
            Ok(_) => break,
            Err(found) => first = found,
        }
    }
    SIDE_STACK.set(made.as_ptr());
    made.as_ptr()
}

/// This thread's side stack.
pub fn side_stack() -> &'static SideStack {
    // SAFETY: never freed; Rust code only reads it.
    unsafe { SIDE_STACK.get().as_ref() }.expect("a hooked function was called")
}

extern "C" fn at_entry(_: &mut Context, _: u64, _: u64, _: &mut u64) {
    ENTRIES.set(ENTRIES.get() + 1);
    super::look_from_program();
}

extern "C" fn at_exit(_: &mut ExitContext, _: u64, _: u64) {
    EXITS.set(EXITS.get() + 1);
    super::look_from_program();
}

/// The functions of a copy of the object.
pub struct Hooked {
    object: Object,
    pub emitted: Range<usize>,
}

// SAFETY: libgcc_s has these functions.
unsafe extern "C" {
    fn __register_frame(table: *const u8);
    fn __deregister_frame(table: *const u8);
}

impl Hooked {
    pub fn load(name: &str) -> Self {
        let object = Object::load(&shared_object(&Build {
            name: &format!("unwind-{name}"),
            source: include_str!("../exits.cc"),
            extension: "cc",
            compiler: Compiler::Gcc,
            flags: &[
                "-O2",
                "-fcf-protection=none",
                "-falign-functions=16",
                "-fno-inline",
                "-fno-ipa-cp",
                "-Wl,-Bsymbolic",
                "-Wl,--no-as-needed",
                "-lstdc++",
            ],
        }));
        let ground = object.address("ground");
        Self { object, emitted: ground..ground + GROUND as usize }
    }

    /// What the functions that call back call.
    pub fn call_back(&self, back: extern "C-unwind" fn(i64)) {
        // SAFETY: its type in the source.
        let set: extern "C" fn(extern "C-unwind" fn(i64)) =
            unsafe { self.object.function("set_callback") };
        set(back);
    }

    pub fn driver(&self, name: &str) -> extern "C-unwind" fn(i64) -> i64 {
        // SAFETY: the drivers have this type.
        unsafe { self.object.function(name) }
    }

    pub fn address(&self, name: &str) -> usize {
        self.object.address(name)
    }

    /// Hooks all functions.
    pub fn hook(&self) -> Hooks<'_> {
        let ground = self.emitted.start as u64;
        let functions: Box<[u64]> =
            HOOKED.iter().map(|name| self.object.address(name) as u64).collect();
        let call = |target| {
            let cookie = CookiePlace { column: COOKIES.as_ptr() as u64, stride: Stride::Eight };
            ProgramCall { target, data: None, cookie }
        };
        let entry: extern "C" fn(_, _, _, _) = at_entry;
        let exit: extern "C" fn(_, _, _) = at_exit;
        let make = MakeSideStack {
            target: make_side_stack as extern "C" fn() -> _ as usize as u64,
            vectors: Vectors::Xmm,
        };
        let bodies = SideStackBodies {
            functions: functions.as_ptr() as u64,
            side_stack: SideStackPlace { thread_offset: thread_offset(), make: Some(make) },
            vectors: Vectors::Xmm,
            entries: &[call(entry as usize as u64)],
            exits: &[call(exit as usize as u64)],
        };
        let mut bytes = [0xcc; 0x1000];
        let mut code = CodeBuffer::new(&mut bytes, ground);
        let bodies = bodies.emit(&mut code).expect("there is room");
        let image = ground..code.here();
        let marks = marks(code.written(), ground, bodies);
        write(ground, code.written());
        let side_stacks = SideStackList {
            first: SIDE_STACKS.as_ptr() as u64,
            next: offset_of!(Element, next) as u8,
            side_stack: offset_of!(Element, side_stack) as u8,
        };
        let mut tables =
            vec![UnwindTable::of_side_stack_bodies(image, bodies, &marks, &side_stacks)];
        let mut sites = Vec::new();
        for (&function, index) in functions.iter().zip(0_u32..) {
            let entry = Entry::new(function);
            let at = ground + THUNKS + u64::from(index) * EXIT_THUNK_SIZE as u64;
            let mut bytes = [0xcc; EXIT_THUNK_SIZE];
            let mut code = CodeBuffer::new(&mut bytes, at);
            exit_thunk(&mut code, index, bodies, PLAIN.origin(entry)).expect("in reach");
            write(at, code.written());
            let site = PLAIN.site(entry).get();
            // SAFETY: five bytes of text.
            sites.push((site, unsafe { *(site as *const [u8; 5]) }));
            write(site, &jmp_bytes(site, at).expect("in reach"));
        }
        let thunks = functions.len() * EXIT_THUNK_SIZE;
        tables.push(UnwindTable::of_exit_thunks(ground + THUNKS, thunks, &side_stacks));
        let tables: Vec<Box<[u8]>> = tables.iter().map(|table| table.as_bytes().into()).collect();
        for table in &tables {
            // SAFETY: a whole table, which stays until it is deregistered.
            unsafe { __register_frame(table.as_ptr()) };
        }
        Hooks { _functions: functions, sites, tables, _hooked: self }
    }
}

/// Hooks, until they are dropped.
pub struct Hooks<'a> {
    _functions: Box<[u64]>,
    sites: Vec<(u64, [u8; 5])>,
    tables: Vec<Box<[u8]>>,
    _hooked: &'a Hooked,
}

impl Drop for Hooks<'_> {
    fn drop(&mut self) {
        for (site, bytes) in &self.sites {
            write(*site, bytes);
        }
        for table in &self.tables {
            // SAFETY: registered when these were made.
            unsafe { __deregister_frame(table.as_ptr()) };
        }
    }
}

fn write(at: u64, bytes: &[u8]) {
    let page = at & !0xfff;
    let len = (at - page) as usize + bytes.len();
    let protect = |access| {
        // SAFETY: pages of this test's own object, which nobody runs now.
        let failed = unsafe { libc::mprotect(page as *mut _, len, access) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    };
    protect(libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: writable now.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    protect(libc::PROT_READ | libc::PROT_EXEC);
}

/// Finds the places in the bodies that their table has to know.
fn marks(image: &[u8], start: u64, bodies: Bodies) -> Marks {
    let from = |address: u64| {
        let code = &image[(address - start) as usize..];
        Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter().collect::<Vec<_>>()
    };
    let exit = from(bodies.exit);
    let after = |found: &dyn Fn(&Instruction) -> bool, code: &[Instruction]| {
        code.iter().find(|instruction| found(instruction)).expect("it is there").next_ip()
    };
    let exit_end = after(&|instruction| instruction.mnemonic() == Mnemonic::Ret, &exit) + 1;
    let aside = from(exit_end);
    let popped = |instruction: &Instruction| {
        instruction.mnemonic() == Mnemonic::Pop && instruction.op0_register() == Register::RBP
    };
    let returned = |instruction: &Instruction| instruction.mnemonic() == Mnemonic::Ret;
    let enter = from(bodies.enter);
    // The second store of the function's entry is that to the context.
    let function = |instruction: &Instruction| {
        instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RBP
            && instruction.memory_displacement64() as i64 == -8
    };
    Marks {
        exit_found: after(&|instruction| instruction.mnemonic() == Mnemonic::Jne, &exit),
        exit_end,
        unhooked: after(&popped, &aside)..after(&returned, &aside) + 1,
        enter_found: after(&function, &enter),
    }
}

/// Whether the call that returns to `address` is in the function `name`, as the dynamic linker
/// knows it.
pub fn is_in(address: usize, name: &str) -> bool {
    symbol_at(address - 1).is_some_and(|found| found == name)
}
