//! A table of calls, one for each function, entered by index: one way to run a function's own
//! code from code that all functions share.

use super::branch::Hardening;
use super::check::TARGET;
use crate::addr::Origin;
use crate::emit::{EmitError, Mitigations};
use crate::encode::CodeBuffer;
use crate::encode::x86_64::{Mem, Reg, Scale, add_reg, endbr64, int3, lea, lea_rip};

/// Rows that call functions' origins, and the code that selects one.
///
/// ```text
/// row 0   e8 rel32   call origin 0
///         c3         ret
///         cc ...     int3 up to the next row
/// row 1   e8 rel32   call origin 1
///         c3         ret
/// ...
/// select  4c 8d 15 rel32   lea r10, [row 0]
///         4f 8d 1c da      lea r11, [r10 + r11 * 8]
///         41 ff e3         jmp r11
/// ```
///
/// Whoever calls `select` with an index in `r11` calls that function's origin, and nothing of
/// it is where the origin looks for arguments, except that there are two return addresses more
/// on the stack: stack arguments are out of place.
///
/// Every `ret` meets its `call` here as well. What it costs is a computed jump, which the
/// mitigations of Spectre v2 make slow, and a call more; an [`exit_thunk`](super::exit_thunk)
/// has the origin's address in a direct call of its own. `cargo bench --bench dispatch`, ns for
/// a call of a function with the least there can be before and after its origin, all functions
/// in turn, on an AMD EPYC guest:
///
/// | functions | not hooked | thunk | table | column of addresses | table, retpoline | column, retpoline |
/// |---|---|---|---|---|---|---|
/// | 1 | 1.4 | 3.5 | 4.1 | 2.7 | 8.9 | 8.1 |
/// | 16 | 1.2 | 3.3 | 4.6 | 2.3 | 8.5 | 7.9 |
/// | 256 | 1.5 | 4.3 | 10.3 | 2.5 | 11.2 | 9.2 |
/// | 4096 | 6.2 | 23.1 | 29.7 | 15.6 | 30.1 | 18.8 |
///
/// "Column" is an indirect call through an array of the origins' addresses, from a body that
/// nothing else is called from. It is the fastest where indirect branches need no mitigation.
///
/// The thunk is 1.3 to 2.6 times as fast as the table with a retpoline, needs no mitigation
/// and no landing pad, and leaves stack arguments where they are.
#[derive(Clone, Copy, Debug)]
pub struct CallTable<'a> {
    /// Where the functions' own bodies go on, by index.
    pub origins: &'a [Origin],
    /// Whether an `endbr64` stands at each row, which computed jumps arrive at.
    pub endbr64: bool,
}

impl CallTable<'_> {
    /// Bytes from one row to the next.
    #[must_use]
    pub const fn stride(&self, hardening: &Hardening) -> usize {
        let set = hardening.mitigations();
        if set.contains(Mitigations::ITS) && !set.contains(Mitigations::RETURN_THUNK) {
            // The `ret` stands in the upper half of a cache line.
            return 64;
        }
        let mut row: usize = if self.endbr64 { 9 } else { 5 };
        if set.contains(Mitigations::CALL_DEPTH) {
            row += 10;
        }
        row += if set.contains(Mitigations::RETURN_THUNK) { 5 } else { 1 };
        if set.contains(Mitigations::SLS) {
            row += 1;
        }
        row.next_power_of_two()
    }

    /// Bytes that the table can take at the most.
    #[must_use]
    pub const fn max_size(&self, hardening: &Hardening) -> usize {
        // Up to the first row, the rows, and the selection.
        self.stride(hardening) * (self.origins.len() + 1) + 7 + 3 * 3 + 4 + Hardening::MAX_SIZE
    }

    /// Emits the table with the mitigations of `hardening` and returns the address of `select`.
    ///
    /// It changes `r10`, `r11` and the flags before it arrives at the origin.
    ///
    /// # Errors
    /// [`EmitError::Encode`] if `code` has too few bytes left or an origin is 2 GiB or more away.
    pub fn emit(&self, code: &mut CodeBuffer<'_>, hardening: &Hardening) -> Result<u64, EmitError> {
        let stride = self.stride(hardening) as u64;
        align(code, stride)?;
        let rows = code.here();
        for origin in self.origins {
            if self.endbr64 {
                endbr64(code)?;
            }
            hardening.emit_call(code, origin.get())?;
            hardening.emit_return(code)?;
            align(code, stride)?;
        }
        let select = code.here();
        lea_rip(code, Reg::R10, rows)?;
        let mut step = 8;
        while step < stride {
            add_reg(code, TARGET, TARGET)?;
            step *= 2;
        }
        lea(code, TARGET, Mem::at(Reg::R10, 0).indexed(TARGET, Scale::Eight))?;
        hardening.emit_computed_jump(code)?;
        Ok(select)
    }
}

/// Fills up to a multiple of `alignment`.
fn align(code: &mut CodeBuffer<'_>, alignment: u64) -> Result<(), EmitError> {
    while !code.here().is_multiple_of(alignment) {
        int3(code)?;
    }
    Ok(())
}
