//! The branches of an image: whether mitigations allow each, and what calls call.

use fentry::emit::x86_64::Hardening;
use fentry::emit::{Mitigations, ProgramCall, Stride};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::paths::Walk;

/// Bytes from an exit context to its session words, from the table of `ExitContext`.
const SESSIONS: u64 = 112;

/// A call that an image makes.
#[derive(Debug)]
pub struct Call {
    pub target: u64,
    pub through_register: bool,
    /// What a check before it compares with.
    pub hash: Option<u32>,
    /// The instructions between the call before it, or a return, and what loads its target.
    before: Vec<Instruction>,
}

/// Looks at every branch of an image, and gives its calls as they stand.
pub fn branches(walk: &Walk, hardening: &Hardening) -> Vec<Call> {
    let has = |mitigation| hardening.mitigations().contains(mitigation);
    let all: Vec<Instruction> = walk.in_order().copied().collect();
    let mut calls = Vec::new();
    let mut from = 0;
    for (position, it) in all.iter().enumerate() {
        let stopped = || all.get(position + 1).is_some_and(|i| i.mnemonic() == Mnemonic::Int3);
        let fenced = || all[position - 1].mnemonic() == Mnemonic::Lfence;
        let last_byte = it.next_ip().wrapping_sub(1);
        let placed = last_byte % 64 >= 32;
        let flow = it.flow_control();
        match flow {
            FlowControl::Return => {
                assert!(!has(Mitigations::RETURN_THUNK), "{it:?}");
                assert!(!has(Mitigations::SLS) || stopped(), "{it:?}");
                assert!(!has(Mitigations::ITS) || placed, "{it:?}");
                from = position + 1;
            }
            FlowControl::UnconditionalBranch => {
                assert!(!has(Mitigations::SLS) || stopped(), "{it:?}");
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                assert!(!has(Mitigations::RETPOLINE), "{it:?}");
                assert_eq!((it.op0_kind(), it.op0_register()), (OpKind::Register, Register::R11));
                assert_eq!(has(Mitigations::LFENCE), fenced(), "{it:?}");
                assert!(!has(Mitigations::ITS) || placed, "{it:?}");
                let jump = flow == FlowControl::IndirectBranch;
                assert!(!(has(Mitigations::SLS) && jump) || stopped(), "{it:?}");
            }
            _ => {}
        }
        if matches!(flow, FlowControl::Call | FlowControl::IndirectCall) {
            let counts = all[from..position].iter().filter(|it| it.mnemonic() == Mnemonic::Sar);
            let counts: Vec<_> = counts.map(|it| (it.segment_prefix(), it.immediate8())).collect();
            let counted = if has(Mitigations::CALL_DEPTH) { &[(Register::GS, 5)][..] } else { &[] };
            assert_eq!(counts, counted, "{it:?}");
            calls.push(call(&all[from..position], it, hardening.indirect_thunk()));
            from = position + 1;
        }
    }
    calls
}

/// Whether it loads a number into `register`.
fn loads(it: &Instruction, register: Register) -> bool {
    let number = !matches!(it.op1_kind(), OpKind::Register | OpKind::Memory);
    it.mnemonic() == Mnemonic::Mov && it.op0_register().full_register() == register && number
}

/// One call, behind these instructions.
fn call(before: &[Instruction], it: &Instruction, indirect_thunk: Option<u64>) -> Call {
    let direct = it.near_branch_target();
    if it.flow_control() == FlowControl::Call && Some(direct) != indirect_thunk {
        return Call { target: direct, through_register: false, hash: None, before: before.into() };
    }
    let load = before.iter().rposition(|it| loads(it, Register::R11)).expect("a call of a number");
    let target = before[load].immediate(1);
    // A direct call in the place of what loads the target.
    let distance = target.wrapping_sub(before[load].ip().wrapping_add(5)).cast_signed();
    assert!(i32::try_from(distance).is_err(), "{target:#x} could be called directly: {it:?}");
    let mut check = before[load..].iter();
    let hash = check.find(|it| loads(it, Register::R10) || loads(it, Register::RAX));
    Call {
        target,
        through_register: true,
        hash: hash.map(Instruction::immediate32),
        before: before[..load].into(),
    }
}

impl Call {
    /// That it calls this program, with its cookie, data and session, and a check of this hash if
    /// there is to be one.
    pub fn is_of(&self, program: &ProgramCall, hash: Option<u32>) {
        assert_eq!(self.target, program.target);
        match (self.hash, hash.filter(|_| self.through_register)) {
            (None, None) => {}
            (Some(found), Some(hash)) => assert!([hash, hash.wrapping_neg()].contains(&found)),
            other => panic!("hashes: {other:x?}"),
        }
        let cookie = self.before.iter().rposition(|it| it.op0_register() == Register::RSI);
        let (column, behind) = self.before.split_at(cookie.expect("a program gets a cookie"));
        let [cookie, context, rest @ ..] = behind else { panic!("{behind:?}") };
        let place = (cookie.memory_base(), cookie.memory_index(), cookie.memory_index_scale());
        assert_eq!(cookie.mnemonic(), Mnemonic::Mov);
        assert_eq!(place, (Register::R11, Register::RAX, 8));
        assert_eq!(cookie.memory_displacement64(), 0);
        let column = match program.cookie.stride {
            Stride::Eight => column,
            Stride::Sixteen => {
                let (double, column) = column.split_last().expect("the index is doubled");
                let registers = (double.op0_register(), double.op1_register());
                assert_eq!(double.mnemonic(), Mnemonic::Add);
                assert_eq!(registers, (Register::RAX, Register::RAX));
                column
            }
        };
        let column = column.last().expect("the column is loaded");
        assert!(loads(column, Register::R11), "{column:?}");
        assert_eq!(column.immediate(1), program.cookie.column);
        assert_eq!((context.mnemonic(), context.op0_register()), (Mnemonic::Lea, Register::RDI));
        let data = rest.iter().find(|it| loads(it, Register::RDX));
        assert_eq!(data.map(|it| it.immediate(1)), program.data);
        let session = rest.iter().find(|it| it.op0_register() == Register::RCX);
        let session = session.map(|it| {
            assert_eq!(it.mnemonic(), Mnemonic::Lea);
            // In the context; or in another, which the exit programs get.
            let frame = if it.memory_base() == context.memory_base() {
                context.memory_displacement64()
            } else {
                assert_eq!(it.memory_base(), Register::RBX);
                0
            };
            it.memory_displacement64().wrapping_sub(frame)
        });
        assert_eq!(session, program.session.map(|number| SESSIONS + 8 * u64::from(number)));
    }
}
