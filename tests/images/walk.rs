//! What holds for every image with exit programs, on every path through it: each byte is an
//! instruction that some path runs or fill, the stack pointer comes back to where it was, and
//! so does every register that is not the image's to change.

use std::collections::BTreeSet;

use fentry::addr::{Entry, Origin};
use fentry::emit::x86_64::{
    Bodies, CalledTrampoline, EXIT_THUNK_SIZE, FrameBodies, Hardening, Kept, MakeSideStack,
    SideStackBodies, SideStackPlace, SwapBodies, exit_thunk,
};
use fentry::emit::{CookiePlace, EmitError, IndexFrom, ProgramCall, Stride, Vectors};
use fentry::encode::{CodeBuffer, EncodeError};
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, Register};

use crate::paths::{End, Value, Walk};
use crate::{in_column, in_records};

pub const IMAGE: u64 = 0x5000_0000;
const ORIGIN: u64 = 0x5100_0005;
const VECTORS: [Vectors; 4] = [Vectors::Untouched, Vectors::Xmm, Vectors::Ymm, Vectors::Zmm];

/// Programs near and far, with cookies in records and columns, and every kind of data.
pub fn programs(count: usize, near: bool) -> Vec<ProgramCall> {
    let call = |position: usize| {
        let target = if near { 0x5200_0000 } else { 0x7f00_0000_0000 } + 0x100 * position as u64;
        let call = if position == 0 { in_records } else { in_column };
        let data = [None, Some(7), Some(1 << 40)][position % 3];
        let session = (position % 2 == 1).then_some((position / 2) as u8);
        ProgramCall { data, session, ..call(target, 0x7e00_0000_0000) }
    };
    (0..count).map(call).collect()
}

/// What a function keeps for its caller (psABI 3.2.1).
const CALLEES: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// The form of an image, and what tells it apart from others of its form.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    SideStack(Stride),
    Frame(u8),
    Swap(IndexFrom),
    Called(u8),
}

const FORMS: [Form; 10] = [
    Form::Frame(0),
    Form::Frame(1),
    Form::Frame(255),
    Form::SideStack(Stride::Eight),
    Form::SideStack(Stride::Sixteen),
    Form::Swap(IndexFrom::Thunk),
    Form::Swap(IndexFrom::Slot { return_to_index: 0x8000 }),
    Form::Called(0),
    Form::Called(1),
    Form::Called(255),
];

pub struct Case<'a> {
    pub form: Form,
    pub vectors: Vectors,
    pub make: Option<MakeSideStack>,
    pub entries: &'a [ProgramCall],
    pub exits: &'a [ProgramCall],
    /// Of the forms that have any.
    pub hardening: Hardening,
}

impl Case<'_> {
    /// Emits the image; where it has only one entry, both addresses are that one.
    fn emit(&self, code: &mut CodeBuffer<'_>) -> Result<Bodies, EmitError> {
        let &Self { form, vectors, make, entries, exits, .. } = self;
        let side_stack = SideStackPlace { thread_offset: -0x1000, make };
        match form {
            Form::SideStack(stride) => {
                let modify = &self.modify()[..];
                let functions = CookiePlace { column: 0x7d00_0000_0000, stride };
                let bodies =
                    SideStackBodies { functions, side_stack, vectors, entries, modify, exits };
                Ok(bodies.emit_hardened(code, &self.hardening)?.bodies())
            }
            Form::Frame(stack_arguments) => {
                let functions = CookiePlace { column: 0x7d00_0000_0000, stride: Stride::Sixteen };
                let modify = &self.modify()[..];
                let bodies =
                    FrameBodies { functions, stack_arguments, vectors, entries, modify, exits };
                Ok(bodies.emit_hardened(code, &self.hardening)?.bodies())
            }
            Form::Swap(index) => {
                SwapBodies { index, return_to_entry: 0x8000, side_stack, vectors, entries, exits }
                    .emit(code)
            }
            Form::Called(stack_arguments) => {
                let (function, origin) = (Entry::new(ORIGIN - 5), Origin::new(ORIGIN));
                let trampoline = CalledTrampoline {
                    index: 9,
                    function,
                    origin,
                    stack_arguments,
                    vectors,
                    entries,
                    exits,
                };
                trampoline.emit(code).map(|start| Bodies {
                    enter: start,
                    exit: start,
                    kept: Kept::OnSideStack,
                })
            }
        }
    }

    /// Programs that may modify the return, where the form has such.
    pub fn modify(&self) -> Vec<ProgramCall> {
        let of_form = matches!(self.form, Form::SideStack(_) | Form::Frame(_));
        let calls = self.entries.iter().take(if of_form { 2 } else { 0 });
        calls.map(|call| ProgramCall { session: None, ..*call }).collect()
    }

    fn max_size(&self) -> usize {
        let (entries, exits) = (self.entries.len(), self.exits.len());
        let both = entries + self.modify().len();
        if !self.hardening.mitigations().is_empty() {
            return match self.form {
                Form::Frame(words) => FrameBodies::max_hardened_size(both, exits, words),
                _ => SideStackBodies::max_hardened_size(both, exits),
            };
        }
        match self.form {
            Form::SideStack(_) => SideStackBodies::max_size(both, exits),
            Form::Frame(words) => FrameBodies::max_size(both, exits, words),
            Form::Swap(_) => SwapBodies::max_size(entries, exits),
            Form::Called(words) => CalledTrampoline::max_size(entries, exits, words),
        }
    }

    /// Follows all paths; gives the instructions.
    pub fn walk(&self) -> Walk {
        let mut bytes = vec![0; self.max_size()];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        let bodies = self.emit(&mut code).unwrap();
        let mut walk = Walk::decode(code.written(), IMAGE);
        walk.return_thunk = self.hardening.return_thunk();
        walk.indirect_thunk = self.hardening.indirect_thunk();
        let targets =
            |calls: &[ProgramCall]| calls.iter().map(|call| call.target).collect::<Vec<_>>();
        let mut expected: BTreeSet<u64> =
            targets(self.entries).into_iter().chain(targets(self.exits)).collect();
        if let Form::Called(_) = self.form {
            expected.insert(ORIGIN);
            self.called(walk.from(bodies.enter));
        } else {
            if !matches!(self.form, Form::Frame(_)) {
                expected.extend(self.make.map(|make| make.target));
            }
            self.enter(walk.from(bodies.enter));
            self.exit(walk.from(bodies.exit));
        }
        walk.all_was_seen();
        // What a direct call does not reach is called through a register, and nothing else.
        let near = |target: &u64| target.abs_diff(IMAGE) < 1 << 31;
        let far = expected.iter().any(|target| !near(target));
        assert_eq!(walk.calls, expected.into_iter().filter(near).collect());
        assert_eq!(walk.indirect > 0, far);
        walk
    }

    fn enter(&self, ends: BTreeSet<End>) {
        // What is left on the stack, and the frame pointer.
        let (rsp, changed) = match self.form {
            Form::Frame(words) => (-frame_and_copy(words), vec![Register::R11, Register::RBP]),
            _ => (0, vec![Register::R11]),
        };
        // A return thunk keeps no flags. So a body that is to go on elsewhere returns there.
        let flags_are_kept = self.hardening.return_thunk().is_none();
        let on_side_stack = !matches!(self.form, Form::Frame(_));
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
        assert_eq!(skipped.is_empty(), self.modify().is_empty(), "{:?}", self.form);
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
            Form::Frame(words) => (Mnemonic::Ret, frame_and_copy(words)),
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
                two && matches!(self.form, Form::Frame(_))
            };
            let kept = |register| left(register) || !end.changed.contains(register);
            assert!(CALLEES.iter().all(kept), "{:?}: {:?}", self.form, end.changed);
        }
        assert!(!ends.is_empty());
    }
}

/// Bytes that the frame form has on the stack below the caller's `rbp`, down to the return
/// address in the thunk: the caller's `rbx`, the exit context, and the copy of the arguments.
fn frame_and_copy(words: u8) -> i64 {
    // An odd number of words, so that the origin's stack is aligned as its caller meant it.
    8 + 176 + 8 * i64::from(words | 1) + 8
}

fn each_case(mut each: impl FnMut(&Case<'_>)) {
    for form in FORMS {
        for vectors in VECTORS {
            for target in [None, Some(0x5300_0000), Some(0x7f10_0000_0000)] {
                for (entries, exits) in [(0, 0), (0, 1), (1, 0), (1, 1), (3, 3), (16, 16)] {
                    for near in [true, false] {
                        let make = target.map(|target| MakeSideStack { target, vectors });
                        let (entries, exits) = (programs(entries, near), programs(exits, near));
                        each(&Case {
                            form,
                            vectors,
                            make,
                            entries: &entries,
                            exits: &exits,
                            hardening: Hardening::NONE,
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn every_path_through_every_image_is_balanced() {
    each_case(|case| drop(case.walk()));
}

#[test]
fn an_image_fits_no_smaller_buffer() {
    each_case(|case| {
        let mut bytes = vec![0xa5; case.max_size() + 1];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        case.emit(&mut code).unwrap();
        let len = code.position();
        assert!(len <= case.max_size(), "{:?}: {len} bytes of {}", case.form, case.max_size());
        assert!(bytes[len..].iter().all(|&byte| byte == 0xa5), "bytes behind the image");
        let sizes = if case.entries.len() == 1 && case.exits.len() == 1 { 0 } else { len - 1 };
        for size in sizes..len {
            let mut code = CodeBuffer::new(&mut bytes[..size], IMAGE);
            let error = case.emit(&mut code);
            assert!(matches!(error, Err(EmitError::Encode(EncodeError::Overflow { .. }))));
        }
    });
}

#[test]
fn a_thunk_has_direct_branches_only() {
    let bodies = Bodies { enter: IMAGE + 0x1000, exit: IMAGE - 0x1000, kept: Kept::OnSideStack };
    for index in [0, 1, u32::MAX] {
        let mut bytes = [0; EXIT_THUNK_SIZE];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        exit_thunk(&mut code, index, bodies, Origin::new(ORIGIN)).unwrap();
        assert_eq!(code.remaining(), 0);
        let walk = Walk::decode(&bytes, IMAGE);
        let branch = |flow| {
            let branches = walk.instructions.values().filter(move |i| i.flow_control() == flow);
            branches.map(Instruction::near_branch_target).collect::<Vec<_>>()
        };
        assert_eq!(branch(FlowControl::Call), [bodies.enter, ORIGIN]);
        assert_eq!(branch(FlowControl::UnconditionalBranch), [bodies.exit, ORIGIN]);
        assert_eq!(branch(FlowControl::ConditionalBranch), [IMAGE + 27, IMAGE + 22]);
        let others = walk.instructions.values().filter(|i| i.flow_control() == FlowControl::Next);
        let others: Vec<_> = others.map(|i| (i.mnemonic(), i.op0_register())).collect();
        assert_eq!(others, [(Mnemonic::Mov, Register::R11D), (Mnemonic::Pop, Register::R11)]);
        assert_eq!(walk.instructions[&IMAGE].immediate32(), index);
    }
    for size in 0..EXIT_THUNK_SIZE {
        let mut bytes = vec![0; size];
        let mut code = CodeBuffer::new(&mut bytes, IMAGE);
        let error = exit_thunk(&mut code, 0, bodies, Origin::new(ORIGIN));
        assert!(matches!(error, Err(EmitError::Encode(EncodeError::Overflow { .. }))));
    }
}
