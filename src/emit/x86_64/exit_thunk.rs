//! The thunk of a function with exit programs.

use super::branch::Hardening;
use crate::addr::Origin;
use crate::emit::EmitError;
use crate::encode::x86_64::{Condition, Reg, call, jcc_short, jmp, mov_imm32, nop, pop};
use crate::encode::{CodeBuffer, EncodeError};

/// The two bodies that the thunks of all functions with the same programs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bodies {
    /// The address of what runs before the function.
    pub enter: u64,
    /// The address of what runs after it.
    pub exit: u64,
    /// Where the caller's return address is meanwhile.
    pub kept: Kept,
}

/// Where the return address of a hooked function's caller is while the function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kept {
    /// On the thread's side stack: the thunk takes it off the ordinary one.
    OnSideStack,
    /// In its slot.
    OnStack,
}

/// Bytes of the thunk, and its alignment.
pub const EXIT_THUNK_SIZE: usize = 32;

/// Where the thunk goes on when the function is left: its `jmp exit`.
const EXIT: u64 = 22;
/// Where it goes on when this call runs unhooked.
const UNHOOKED: u64 = 27;
/// Where the caller's return address is on the side stack only.
pub(super) const MOVED: core::ops::RangeInclusive<u8> = 15..=EXIT as u8;
/// Where `rbp` is that of a frame with the caller's return address.
pub(super) const FRAMED: core::ops::RangeInclusive<u8> = 11..=EXIT as u8;
/// Bytes from the return address of `call enter` to that of `call origin`, and to where a call
/// goes on that runs unhooked.
pub(super) const ENTER_TO_EXIT: i32 = EXIT as i32 - 11;
pub(super) const ENTER_TO_UNHOOKED: i32 = UNHOOKED as i32 - 11;

/// Emits the thunk that the patch site of the function with `index` jumps to.
///
/// ```text
/// +0   41 bb imm32      mov r11d, index
/// +6   e8 rel32         call enter
/// +11  72 0e            jc +27            this call runs unhooked
/// +13  41 5b            pop r11           the caller's return address, kept by `enter`
/// +15  74 05            jz +22            the origin is skipped
/// +17  e8 rel32         call origin
/// +22  e9 rel32         jmp exit
/// +27  e9 rel32         jmp origin
/// ```
///
/// With [`Kept::OnSideStack`], the origin runs with `rsp` as it would be without the thunk, so
/// that its arguments on the stack are where it looks for them. With [`Kept::OnStack`], `enter`
/// has copied them, and a nop stands in the place of the `pop`. Every `ret` meets its `call`:
/// those of `enter` and of the origin return here, and that of `exit` returns from the caller's
/// call of the function.
///
/// `exit` finds a skipped origin's return value in the registers, like any other.
///
/// # Errors
/// [`EmitError::Encode`] if `code` has less than [`EXIT_THUNK_SIZE`] bytes left, or a target is
/// 2 GiB or more away.
pub const fn exit_thunk(
    code: &mut CodeBuffer<'_>,
    index: u32,
    bodies: Bodies,
    origin: Origin,
) -> Result<(), EmitError> {
    exit_thunk_hardened(code, index, bodies, origin, &Hardening::NONE)
}

/// As [`exit_thunk`], for bodies with mitigations, which are to be the same here.
///
/// It has neither indirect branches nor returns. Its calls are not counted, so that a count is
/// too low rather than too high, which is the safe side: the return-stack predictor is filled up
/// too early. Behind each `jmp`, where a processor may go straight on, there is another direct
/// `jmp`, the next thunk or `int3`: compilers, too, leave direct jumps without a stop
/// (`-mharden-sls=all` of gcc 12: "return" and "indirect-jmp").
///
/// With a return thunk, `enter` does not return with flags that say where to go on: functions
/// need not keep flags, and Linux's `call_depth_return_thunk` shifts its count, which changes
/// them (arch/x86/lib/retpoline.S, since Linux 6.2, where it was `__x86_return_skl`). So two-byte
/// nops stand in the place of both conditional jumps, and for a call that is skipped or runs
/// unhooked `enter` returns to where they would have led: a return that the return-stack
/// predictor does not expect, and that a hardware shadow stack forbids.
///
/// # Errors
/// As those of [`exit_thunk`].
pub const fn exit_thunk_hardened(
    code: &mut CodeBuffer<'_>,
    index: u32,
    bodies: Bodies,
    origin: Origin,
    hardening: &Hardening,
) -> Result<(), EmitError> {
    match emit(code, index, bodies, origin.get(), hardening.returns_flags()) {
        Ok(()) => Ok(()),
        Err(error) => Err(EmitError::Encode(error)),
    }
}

/// Leaves the function with the error of an instruction that was not emitted.
macro_rules! emit {
    ($($instruction:expr;)*) => {
        $(if let Err(error) = $instruction {
            return Err(error);
        })*
    };
}

const fn emit(
    code: &mut CodeBuffer<'_>,
    index: u32,
    bodies: Bodies,
    origin: u64,
    returns_flags: bool,
) -> Result<(), EncodeError> {
    let start = code.here();
    emit! {
        mov_imm32(code, Reg::R11, index);
        call(code, bodies.enter);
        match returns_flags {
            true => jcc_short(code, Condition::Below, start.wrapping_add(UNHOOKED)),
            false => nop(code, 2),
        };
        match bodies.kept {
            Kept::OnSideStack => pop(code, Reg::R11),
            Kept::OnStack => nop(code, 2),
        };
        match returns_flags {
            true => jcc_short(code, Condition::Equal, start.wrapping_add(EXIT)),
            false => nop(code, 2),
        };
        call(code, origin);
        jmp(code, bodies.exit);
        jmp(code, origin);
    }
    Ok(())
}
