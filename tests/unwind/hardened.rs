//! Bodies with mitigations: at every instruction of a hooked call the tables lead to its caller.
//! Return thunks and retpolines are the embedder's, and so would be their tables: here they are not
//! looked at.

use core::cell::Cell;
use core::ops::Range;
use core::ptr;

use fentry::addr::Entry;
use fentry::emit::x86_64::{EntryBody, Hardening, Preamble, UnwindTable};
use fentry::emit::{
    Context, CookiePlace, ExitContext, IndexFrom, Mitigations, ProgramCall, Stride, Vectors,
};
use fentry::encode::x86_64::call_bytes;
use fentry::layout::x86_64::PLAIN;

use crate::exits::steps::step_through;
use crate::hooked::{call_back, load};
use crate::hooks::{
    Form, Ground, Hooks, Programs, give_back, give_side_stack, side_stack, side_stack_list,
};
use crate::mitigated::Thunks;
use crate::support::object::Object;

/// Bytes of what is emitted, and places in it: what is not looked at is behind what is.
const SIZE: usize = 0xa000;
const THUNKS: u64 = 0x8000;
const COUNTS: u64 = 0x9000;
/// What no direct call reaches is so far away, where the kernel keeps to it.
const AWAY: u64 = 8 << 30;

/// Functions, and memory for what is emitted for them.
struct Lab {
    object: Object,
    ground: Ground,
    thunks: Thunks,
    /// Where programs are entered.
    far: Ground,
}

impl Lab {
    fn new(name: &str) -> Self {
        extern "C-unwind" fn nothing(_: i64) {}

        let object = load(name, include_str!("exits.cc"), "cc");
        call_back(&object, nothing);
        let ground = Ground::new(0, SIZE);
        assert!(ground.0.abs_diff(object.address("quiet") as u64) < 1 << 30, "{:#x}", ground.0);
        let thunks = Thunks { at: ground.0 + THUNKS, counts: ground.0 + COUNTS };
        ground.make_writable(thunks.counts);
        ground.write(thunks.at, &thunks.code());
        let far = Ground::new(ground.0 - AWAY, 0x1000);
        assert!(far.0.abs_diff(ground.0) > 1 << 32, "{:#x} and {:#x}", far.0, ground.0);
        Self { object, ground, thunks, far }
    }

    /// A call of `program`, of which the entry at this position passes the check.
    fn call(&self, position: u64, preamble: &Preamble, program: usize) -> ProgramCall {
        static COOKIES: [u64; NAMES.len()] = [0; NAMES.len()];

        let target = self.far.lead(self.far.0 + 0x80 * position, preamble, program as u64);
        let cookie = CookiePlace { column: COOKIES.as_ptr() as u64, stride: Stride::Eight };
        ProgramCall { target, data: None, cookie, session: None }
    }

    /// At every instruction of what is emitted, the stack leads to the driver.
    fn step_through(&self, driver: &str, argument: i64) {
        let emitted = self.ground.0 as usize..(self.ground.0 + THUNKS) as usize;
        step_through((&self.object, &emitted), driver, &NAMES, argument);
    }
}

/// Tables that the unwinder has, until this is dropped.
struct Registered(Vec<Box<[u8]>>);

// SAFETY: libgcc_s, which every Rust program on a GNU system is linked to, has these functions
// with this type (gcc, `libgcc/unwind-dw2-fde.c`).
unsafe extern "C" {
    fn __register_frame(table: *const u8);
    fn __deregister_frame(table: *const u8);
}

impl Registered {
    fn new(tables: &[UnwindTable]) -> Self {
        let tables: Vec<Box<[u8]>> = tables.iter().map(|table| table.as_bytes().into()).collect();
        for table in &tables {
            assert!(!table.is_empty(), "it has room for all");
            // SAFETY: it is a whole table with its end, and stays where it is until the unwinder
            // has been told to forget it.
            unsafe { __register_frame(table.as_ptr()) };
        }
        Self(tables)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for table in &self.0 {
            // SAFETY: registered in `new`.
            unsafe { __deregister_frame(table.as_ptr()) };
        }
    }
}

/// The functions that are hooked, of which one may be called by another.
const NAMES: [&str; 7] = ["quiet", "leaf", "tail", "tail_twice", "down", "jumper", "landing"];

const SKIPPED: u64 = 9;

extern "C" fn at_entry(_: &mut Context, _: u64, _: u64) {}

extern "C" fn may_skip(context: &mut Context, _: u64, _: u64) -> u64 {
    if context.args()[0] == SKIPPED { 40 } else { 0 }
}

thread_local! {
    /// What this thread's last exit context had of its slot.
    static SLOT: Cell<u64> = const { Cell::new(0) };
}

extern "C" fn at_exit(context: &mut ExitContext, _: u64, _: u64) {
    // SAFETY: its word at 88.
    let slot = unsafe { ptr::from_mut(context).cast::<u64>().add(11).read() };
    SLOT.set(slot);
}

/// Hooks all functions at entry and exit.
fn hook(lab: &Lab, form: Form, hardening: Hardening, preamble: &Preamble) -> (Hooks, Registered) {
    let entry: extern "C" fn(_, _, _) = at_entry;
    let modify: extern "C" fn(_, _, _) -> u64 = may_skip;
    let exit: extern "C" fn(_, _, _) = at_exit;
    let calls = [entry as usize, modify as usize, exit as usize];
    let [entry, modify, exit] =
        [1, 2, 3].map(|position| lab.call(position, preamble, calls[position as usize - 1]));
    let programs = Programs {
        entries: &[entry],
        modify: &[modify],
        exits: &[exit],
        hardening,
        ..Programs::none(Vectors::Xmm)
    };
    let entries = NAMES.map(|name| lab.object.address(name) as u64);
    let hooks = Hooks::new(form, lab.ground, &PLAIN, &entries, &programs);
    let (marks, list) = (hooks.marks().expect("a form with a thunk"), side_stack_list());
    let Range { start, end } = hooks.own();
    assert!(end <= lab.thunks.at, "what is looked at is before the thunks");
    let kept = marks.bodies().kept;
    let tables = [
        UnwindTable::of_bodies(lab.ground.0, marks, &list),
        UnwindTable::of_exit_thunks(start, (end - start) as usize, kept, &list, None),
    ];
    (hooks, Registered::new(&tables))
}

/// With every set of mitigations.
fn exits_lead_to_the_caller(form: Form) {
    let lab = Lab::new(&format!("hardened-{form:?}"));
    let drive_quiet: extern "C-unwind" fn(i64) -> i64 =
        // SAFETY: the drivers have this type.
        unsafe { lab.object.function("drive_quiet") };
    for (hardening, preamble) in lab.thunks.each_hardening() {
        give_side_stack(16);
        let _hooks = hook(&lab, form, hardening, &preamble);
        assert_eq!([1, SKIPPED as i64].map(|n| drive_quiet(n)), [8, 80], "{hardening:?}");
        lab.step_through("drive_quiet", 1);
        lab.step_through("drive_quiet", SKIPPED as i64);
        // What follows makes no checked call that the above does not make, and has no path of its
        // own on the ordinary stack.
        if form == Form::Frame || hardening.mitigations().contains(Mitigations::CFI) {
            continue;
        }
        // Frames that were left are dropped, by the next call and by a return to further down.
        lab.step_through("drive_left", 1);
        lab.step_through("drive_landing", 1);
        let empty = side_stack().expect("given before");
        assert_eq!((empty.depth(), empty.overflowed()), (0, 0));
        // One call runs unhooked.
        let full = give_side_stack(1);
        lab.step_through("drive_down", 1);
        assert_eq!((full.depth(), full.overflowed() > 0), (0, true));
    }
}

#[test]
fn a_frame_that_is_free_is_nobodys() {
    let lab = Lab::new("hardened-free");
    let (hardening, preamble) = lab.thunks.each_hardening()[0];
    let used = give_side_stack(16);
    // Looked at before the other.
    give_side_stack(16);
    let _hooks = hook(&lab, Form::SideStack, hardening, &preamble);
    lab.step_through("drive_leaf", 1);
    let slot = SLOT.get();
    give_back(used);
    lab.step_through("drive_quiet", 1);
    assert_eq!(SLOT.get(), slot, "the same place in another frame");
}

#[test]
fn every_instruction_of_bodies_on_a_side_stack_leads_to_the_caller() {
    exits_lead_to_the_caller(Form::SideStack);
}

#[test]
fn every_instruction_of_bodies_on_the_stack_leads_to_the_caller() {
    exits_lead_to_the_caller(Form::Frame);
}

#[test]
fn every_instruction_of_entry_bodies_leads_to_the_caller() {
    let lab = Lab::new("hardened-entry");
    let function = Entry::new(lab.object.address("quiet") as u64);
    let (site, slot) = (PLAIN.site(function).get(), PLAIN.slot(function).expect("padding").get());
    let entry: extern "C" fn(_, _, _) = at_entry;
    for (hardening, preamble) in lab.thunks.each_hardening() {
        let calls = [lab.call(1, &preamble, entry as usize)];
        let return_to_index = PLAIN.return_to_index().expect("padding");
        let body = EntryBody {
            index: IndexFrom::Slot { return_to_index },
            return_to_entry: PLAIN.return_to_entry(),
            vectors: Vectors::Xmm,
            calls: &calls,
        };
        // Wherever in a cache line the body ends.
        for address in (lab.ground.0..lab.ground.0 + 64).step_by(8) {
            let size = lab.ground.emit(address, |code| {
                body.emit_hardened(code, &hardening).unwrap();
                code.position()
            });
            let _table = Registered::new(&[UnwindTable::of_entry_body(address, size, &hardening)]);
            lab.ground.write(slot, &[0xb8, 0, 0, 0, 0]);
            lab.ground.write(site, &call_bytes(site, address).expect("it is near"));
            lab.step_through("drive_quiet", 1);
        }
    }
}
