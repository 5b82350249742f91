//! Any image with exit programs, and what holds for it on every path: each byte is an instruction
//! that some path runs or fill, the stack pointer comes back to where it was, so does every register
//! that is not the image's to change, and every call is one that was asked for.

use std::collections::BTreeSet;

use fentry::addr::{Entry, Origin};
use fentry::emit::kcfi::without_landing_pad;
use fentry::emit::x86_64::{
    Bodies, CalledTrampoline, FrameBodies, Hardening, Kept, SideStackBodies, SideStackPlace,
    SwapBodies,
};
use fentry::emit::{CookiePlace, EmitError, IndexFrom, Mitigations, ProgramCall, Stride, Vectors};
use fentry::encode::CodeBuffer;
use iced_x86::{Code, Mnemonic, Register};

use crate::branches::{Call, branches};
use crate::paths::{End, Value, Walk};

/// What a function keeps for its caller (psABI 3.2.1).
const CALLEES: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// The form of an image, and what tells it apart from others of its form.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Where functions' entries stand.
    SideStack(CookiePlace),
    /// The same, and the words of stack arguments.
    Frame(CookiePlace, u8),
    Swap {
        index: IndexFrom,
        return_to_entry: u16,
    },
    Called {
        index: u32,
        function: Entry,
        origin: Origin,
        stack_arguments: u8,
    },
}

pub struct Case<'a> {
    pub address: u64,
    pub form: Form,
    pub vectors: Vectors,
    pub side_stack: SideStackPlace,
    pub entries: &'a [ProgramCall],
    /// Of the forms that have any.
    pub modify: &'a [ProgramCall],
    pub exits: &'a [ProgramCall],
    /// The same.
    pub hardening: Hardening,
    /// Of its check, if it has one.
    pub hash: u32,
}

impl Case<'_> {
    /// Emits the image; where it has only one entry, both addresses are that one.
    pub fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Bodies, EmitError> {
        let &Self { form, vectors, side_stack, entries, modify, exits, .. } = self;
        match form {
            Form::SideStack(functions) => {
                let bodies =
                    SideStackBodies { functions, side_stack, vectors, entries, modify, exits };
                Ok(bodies.emit_hardened(code, &self.hardening)?.bodies())
            }
            Form::Frame(functions, stack_arguments) => {
                let bodies =
                    FrameBodies { functions, stack_arguments, vectors, entries, modify, exits };
                Ok(bodies.emit_hardened(code, &self.hardening)?.bodies())
            }
            Form::Swap { index, return_to_entry } => {
                SwapBodies { index, return_to_entry, side_stack, vectors, entries, exits }
                    .emit(code)
            }
            Form::Called { index, function, origin, stack_arguments } => {
                let trampoline = CalledTrampoline {
                    index,
                    function,
                    origin,
                    stack_arguments,
                    vectors,
                    entries,
                    exits,
                };
                let start = trampoline.emit(code)?;
                Ok(Bodies { enter: start, exit: start, kept: Kept::OnSideStack })
            }
        }
    }

    /// Bytes that are enough for it.
    pub fn max_size(&self) -> usize {
        let both = self.entries.len() + self.modify.len();
        let exits = self.exits.len();
        let plain = self.hardening.mitigations().is_empty();
        match self.form {
            Form::SideStack(_) if plain => SideStackBodies::max_size(both, exits),
            Form::SideStack(_) => SideStackBodies::max_hardened_size(both, exits),
            Form::Frame(_, words) if plain => FrameBodies::max_size(both, exits, words),
            Form::Frame(_, words) => FrameBodies::max_hardened_size(both, exits, words),
            Form::Swap { .. } => SwapBodies::max_size(both, exits),
            Form::Called { stack_arguments, .. } => {
                CalledTrampoline::max_size(both, exits, stack_arguments)
            }
        }
    }

    /// Follows all paths of what was emitted, and looks at all calls, which it gives.
    pub fn walk(&self, bytes: &[u8], bodies: Bodies) -> Vec<Call> {
        let mut walk = Walk::decode(bytes, self.address);
        walk.return_thunk = self.hardening.return_thunk();
        if let Form::Called { .. } = self.form {
            self.called(walk.from(bodies.enter));
        } else {
            self.enter(walk.from(bodies.enter));
            self.exit(walk.from(bodies.exit));
        }
        walk.all_was_seen();
        self.places(&walk);
        let calls = branches(&walk, &self.hardening);
        let expected = self.calls();
        assert_eq!(calls.len(), expected.len(), "{calls:?}");
        let hash = checked(&self.hardening, self.hash);
        for (call, expected) in calls.iter().zip(expected) {
            match expected {
                Expected::Program(program) => call.is_of(program, hash),
                Expected::Other(target) => assert_eq!((call.target, call.hash), (target, None)),
            }
        }
        calls
    }

    /// That side stacks and functions' entries are looked for where they are said to be.
    fn places(&self, walk: &Walk) {
        let on_side_stack = matches!(self.form, Form::SideStack(_) | Form::Swap { .. });
        let thread = walk.in_order().filter(|it| it.segment_prefix() == Register::FS);
        let thread: BTreeSet<_> =
            thread.map(|it| (it.memory_base(), it.memory_displacement64().cast_signed())).collect();
        let offset = i64::from(self.side_stack.thread_offset);
        assert_eq!(thread.contains(&(Register::None, offset)), on_side_stack);
        assert_eq!(thread.len(), usize::from(on_side_stack), "{thread:x?}");
        if let Form::SideStack(functions) | Form::Frame(functions, _) = self.form {
            let indexed = (Register::R10, Register::R11, 8);
            let mut all = walk.in_order();
            let load = all.find(|it| it.memory_index() == indexed.1).expect("a function's entry");
            let place = (load.memory_base(), load.memory_index(), load.memory_index_scale());
            assert_eq!((place, load.memory_displacement64()), (indexed, 0));
            let before: Vec<_> = walk.in_order().take_while(|it| it.ip() != load.ip()).collect();
            let doubles = before.last().is_some_and(|it| it.mnemonic() == Mnemonic::Add);
            assert_eq!(doubles, functions.stride == Stride::Sixteen);
            let column = before[before.len() - 1 - usize::from(doubles)];
            let loaded = (column.mnemonic(), column.op0_register(), column.immediate(1));
            assert_eq!(loaded, (Mnemonic::Mov, Register::R10, functions.column));
        }
    }

    /// The calls, in the order in which they stand.
    fn calls(&self) -> Vec<Expected<'_>> {
        let entries = self.entries.iter().chain(self.modify).map(Expected::Program);
        let exits = self.exits.iter().rev().map(Expected::Program);
        match self.form {
            Form::Frame(..) => exits.chain(entries).collect(),
            Form::Called { origin, .. } => {
                entries.chain([Expected::Other(origin.get())]).chain(exits).collect()
            }
            Form::SideStack(_) | Form::Swap { .. } => {
                let make = self.side_stack.make.map(|make| Expected::Other(make.target));
                exits.chain(make).chain(entries).collect()
            }
        }
    }

    fn enter(&self, ends: BTreeSet<End>) {
        // What is left on the stack, and the frame pointer.
        let (rsp, changed) = match self.form {
            Form::Frame(_, words) => (-frame_and_copy(words), vec![Register::R11, Register::RBP]),
            _ => (0, vec![Register::R11]),
        };
        // A return thunk keeps no flags. So a body that is to go on elsewhere returns there.
        let flags_are_kept = self.hardening.return_thunk().is_none();
        let on_side_stack = !matches!(self.form, Form::Frame(..));
        let end = |flags, led| End {
            by: Mnemonic::Ret,
            rsp: Value::Stack(rsp),
            flags: flags_are_kept.then_some(flags),
            led,
            changed: changed.iter().copied().collect(),
        };
        // `test rsp, rsp`: neither carry nor zero. `cmp rsp, -1`: carry, for a call that runs
        // unhooked, for which the frame form has no reason.
        let mut expected = BTreeSet::from([end(Code::Test_rm64_r64, !on_side_stack)]);
        if on_side_stack {
            expected.insert(end(Code::Cmp_rm64_imm8, !flags_are_kept));
        }
        // A call that runs unhooked may find even that register unchanged.
        let mut ends: BTreeSet<_> = ends
            .into_iter()
            .map(|mut end| {
                end.changed.insert(Register::R11);
                end
            })
            .collect();
        // `xor edx, edx`: zero. The origin is skipped, so that its arguments do not matter.
        let skips = |end: &End| end.flags == Some(Code::Xor_rm32_r32);
        let skipped: Vec<_> = ends.iter().filter(|end| skips(end)).cloned().collect();
        assert_eq!(skipped.is_empty(), self.modify.is_empty(), "{:?}", self.form);
        for end in skipped {
            ends.remove(&end);
            // Where it returns there itself, the caller's return address is gone, too.
            let led = !on_side_stack || !flags_are_kept;
            let rsp = rsp + if on_side_stack && led { 8 } else { 0 };
            assert_eq!((end.by, end.rsp, end.led), (Mnemonic::Ret, Value::Stack(rsp), led));
            let kept = |register| changed.contains(register) || !end.changed.contains(register);
            assert!(CALLEES.iter().all(kept), "{:?}: {:?}", self.form, end.changed);
        }

        let ends =
            ends.into_iter().map(|end| End { flags: end.flags.filter(|_| flags_are_kept), ..end });
        assert_eq!(ends.collect::<BTreeSet<_>>(), expected, "{:?}", self.form);
    }

    fn exit(&self, ends: BTreeSet<End>) {
        let (by, rsp) = match self.form {
            Form::SideStack(_) => (Mnemonic::Ret, -8),
            Form::Frame(_, words) => (Mnemonic::Ret, frame_and_copy(words)),
            _ => (Mnemonic::Jmp, 0),
        };
        self.leaves(&ends, by, rsp);
    }

    fn called(&self, ends: BTreeSet<End>) {
        self.leaves(&ends, Mnemonic::Ret, 8);
    }

    fn leaves(&self, ends: &BTreeSet<End>, by: Mnemonic, rsp: i64) {
        for end in ends {
            assert_eq!((end.by, end.rsp), (by, Value::Stack(rsp)), "{:?}", self.form);
            // The frame form restores two of them from the stack that `enter` has left.
            let left = |register: &Register| {
                let two = [Register::RBX, Register::RBP].contains(register);
                two && matches!(self.form, Form::Frame(..))
            };
            let kept = |register| left(register) || !end.changed.contains(register);
            assert!(CALLEES.iter().all(kept), "{:?}: {:?}", self.form, end.changed);
        }
        assert!(!ends.is_empty());
    }
}

/// What calls through a register are checked for.
fn checked(hardening: &Hardening, hash: u32) -> Option<u32> {
    let checked = hardening.mitigations().contains(Mitigations::CFI);
    checked.then_some(without_landing_pad(hash))
}

/// The same of an entry body.
pub fn walk_entry_body(
    bytes: &[u8],
    address: u64,
    programs: &[ProgramCall],
    hardening: &Hardening,
    hash: u32,
) -> Vec<Call> {
    let mut walk = Walk::decode(bytes, address);
    walk.return_thunk = hardening.return_thunk();
    let ends = walk.from(address);
    walk.all_was_seen();
    assert!(!ends.is_empty());
    for end in ends {
        assert_eq!((end.by, end.rsp), (Mnemonic::Ret, Value::Stack(0)));
        // What it restores is memory that programs may have changed.
        assert!(CALLEES.iter().all(|register| !end.changed.contains(register)));
    }
    let calls = branches(&walk, hardening);
    assert_eq!(calls.len(), programs.len(), "{calls:?}");
    for (call, program) in calls.iter().zip(programs) {
        call.is_of(program, checked(hardening, hash));
    }
    calls
}

/// Bytes that the frame form has on the stack below the caller's `rbp`, down to the return
/// address in the thunk: the caller's `rbx`, the exit context, and the copy of the arguments.
fn frame_and_copy(words: u8) -> i64 {
    // An odd number of words, so that the origin's stack is aligned as its caller meant it; of
    // more than three, one that keeps vectors of 64 bytes aligned, too (psABI 3.2.2).
    8 + 176 + 8 * i64::from(words | if words < 4 { 1 } else { 7 }) + 8
}

/// What is called.
enum Expected<'a> {
    Program(&'a ProgramCall),
    Other(u64),
}
