//! Counting cases, and saying what is wrong.

use machine::paging::Range;
use machine::println;
use machine::traps::{BREAKPOINT, CONTROL_PROTECTION, INVALID_OPCODE};

use crate::attempt::{Outcome, Protection, run};

/// How a case is to end.
#[derive(Clone, Debug)]
pub enum Expected {
    /// It returns this.
    Returns(u64),
    /// A branch has missed the landing pad: the trap is at where it arrives.
    NoLandingPad(u64),
    /// A return disagrees with the shadow stack: the trap is at a return in here.
    OtherReturn(Range),
    /// An invalid opcode in here: a check has found another hash.
    OtherHash(Range),
    /// A breakpoint at this address.
    Breakpoint(u64),
}

impl Expected {
    /// Error codes of control protection exceptions (Intel SDM volume 3, 7.15).
    const NEAR_RETURN: u64 = 1;
    const ENDBRANCH: u64 = 3;

    fn is_met_by(&self, outcome: Outcome) -> bool {
        let (vector, error, at) = match outcome {
            Outcome::Returned(value) => return matches!(*self, Self::Returns(it) if it == value),
            Outcome::Trapped { vector, error, at, .. } => (vector, error, at),
        };
        match self {
            Self::Returns(_) => false,
            Self::NoLandingPad(target) => {
                (vector, error, at) == (CONTROL_PROTECTION, Self::ENDBRANCH, *target)
            }
            Self::OtherReturn(range) => {
                (vector, error) == (CONTROL_PROTECTION, Self::NEAR_RETURN) && range.contains(&at)
            }
            Self::OtherHash(range) => (vector, error) == (INVALID_OPCODE, 0) && range.contains(&at),
            // A breakpoint trap is behind its instruction.
            Self::Breakpoint(address) => (vector, error, at) == (BREAKPOINT, 0, address + 1),
        }
    }
}

/// Code to run: see [`run`].
#[derive(Clone, Copy)]
pub struct Code {
    pub address: u64,
    /// What is in `r11`.
    pub target: u64,
}

/// What the arguments are.
pub const ARGUMENTS: [u64; 2] = [40_000, 2];
/// What a function returns that nothing changes.
pub const SUM: u64 = 40_002;

/// Cases so far.
#[derive(Default)]
pub struct Report {
    pub cases: u64,
    pub wrong: u64,
    /// Those of the group: uses that are right, and misuses.
    group: [u64; 2],
}

impl Report {
    /// Runs a case and compares how it ends.
    pub fn case(
        &mut self,
        what: &str,
        protection: Protection,
        code: Code,
        expected: &Expected,
    ) -> Outcome {
        // SAFETY: what the cases emit is the library's code, and functions and callers that
        // keep the psABI.
        let outcome = unsafe { run(protection, code.address, code.target, ARGUMENTS) };
        self.note(expected.is_met_by(outcome), !matches!(expected, Expected::Returns(_)));
        if !expected.is_met_by(outcome) {
            println!("wrong: {what}: {protection:?}: {outcome:x?}, expected {expected:x?}");
        }
        outcome
    }

    /// Counts a case.
    pub fn note(&mut self, good: bool, misuse: bool) {
        self.cases += 1;
        self.wrong += u64::from(!good);
        let [uses, misuses] = &mut self.group;
        *(if misuse { misuses } else { uses }) += 1;
    }

    /// Ends a group of cases.
    pub fn end_group(&mut self, name: &str) {
        let [uses, misuses] = core::mem::take(&mut self.group);
        println!("{name:<76} {uses:>6} {misuses:>8}");
    }
}
