//! The small pieces that jump: thunks of functions with exit programs, and what runs instead of a
//! function.

use fentry::emit::x86_64::{Bodies, Hardening, Kept};
use iced_x86::{FlowControl, Mnemonic, Register};

use crate::branches::branches;
use crate::paths::Walk;

/// That an exit thunk is what the table on its page says.
pub fn is_exit_thunk(
    bytes: &[u8],
    address: u64,
    index: u32,
    bodies: Bodies,
    origin: u64,
    hardening: &Hardening,
) {
    let walk = Walk::decode(bytes, address);
    let flags = hardening.return_thunk().is_none();
    let jump_or_nop = |mnemonic| if flags { mnemonic } else { Mnemonic::Nop };
    let take = match bodies.kept {
        Kept::OnSideStack => Mnemonic::Pop,
        Kept::OnStack => Mnemonic::Nop,
    };
    let all: Vec<_> =
        walk.in_order().map(|i| (i.ip().wrapping_sub(address), i.mnemonic())).collect();
    let expected = [
        (0, Mnemonic::Mov),
        (6, Mnemonic::Call),
        (11, jump_or_nop(Mnemonic::Jb)),
        (13, take),
        (15, jump_or_nop(Mnemonic::Je)),
        (17, Mnemonic::Call),
        (22, Mnemonic::Jmp),
        (27, Mnemonic::Jmp),
    ];
    assert_eq!(all, expected);
    let branch = |flow| {
        let branches = walk.in_order().filter(move |i| i.flow_control() == flow);
        branches.map(|i| i.near_branch_target()).collect::<Vec<_>>()
    };
    assert_eq!(branch(FlowControl::Call), [bodies.enter, origin]);
    assert_eq!(branch(FlowControl::UnconditionalBranch), [bodies.exit, origin]);
    let unhooked_and_exit = [address.wrapping_add(27), address.wrapping_add(22)];
    assert_eq!(
        branch(FlowControl::ConditionalBranch),
        unhooked_and_exit[..if flags { 2 } else { 0 }]
    );
    let load = &walk.instructions[&address];
    assert_eq!((load.op0_register(), load.immediate32()), (Register::R11D, index));
    if let Kept::OnSideStack = bodies.kept {
        assert_eq!(walk.instructions[&address.wrapping_add(13)].op0_register(), Register::R11);
    }
}

/// That these bytes jump to `target`, directly or through `r11`, as mitigations want.
pub fn is_replacement(bytes: &[u8], address: u64, target: u64, hardening: &Hardening) {
    let walk = Walk::decode(bytes, address);
    assert!(branches(&walk, hardening).is_empty());
    let mut all = walk.in_order().filter(|it| it.mnemonic() != Mnemonic::Nop);
    let first = all.next().expect("an instruction");
    if first.mnemonic() == Mnemonic::Jmp {
        assert_eq!(first.near_branch_target(), target);
    } else {
        assert_eq!((first.mnemonic(), first.op0_register()), (Mnemonic::Mov, Register::R11));
        assert_eq!(first.immediate64(), target);
        let distance = target.wrapping_sub(address.wrapping_add(5)).cast_signed();
        assert!(i32::try_from(distance).is_err(), "{target:#x} could be jumped to directly");
        let jump = all.find(|it| it.mnemonic() != Mnemonic::Lfence).expect("a jump");
        assert_eq!(jump.mnemonic(), Mnemonic::Jmp);
        match hardening.indirect_thunk() {
            Some(thunk) => assert_eq!(jump.near_branch_target(), thunk),
            None => assert_eq!(jump.op0_register(), Register::R11),
        }
    }
    assert!(all.all(|it| it.mnemonic() == Mnemonic::Int3), "fill");
}
