//! Mitigations as chance has them, and emitting with them.

use fentry::emit::x86_64::{CallDepth, Check, Generation, Hardening, Symbols};
use fentry::emit::{EmitError, Mitigations};
use fentry::encode::{CodeBuffer, EncodeError};

use super::input::Input;

pub const GENERATIONS: [Generation; 3] = [Generation::Original, Generation::Short, Generation::Udb];

/// Any check of calls, and its hash.
pub fn checked(input: &mut Input<'_>) -> (Check, u32) {
    let (kind, hash) = (input.u8(), input.u32());
    let check = match kind % 4 {
        0 => Check::None,
        1 => Check::Kcfi { hash, padding: input.u8() },
        _ => {
            Check::FineIbt { hash, generation: input.choose(&GENERATIONS), paranoid: kind & 4 != 0 }
        }
    };
    (check, hash)
}

/// Mitigations and where their thunks are.
pub struct Guard {
    pub hardening: Hardening,
    pub symbols: Symbols,
}

/// Any set of mitigations, with thunks mostly in reach of `near`.
pub fn guard(input: &mut Input<'_>, near: u64, check: Check) -> Option<Guard> {
    let set = Mitigations::from_bits_retain(input.u16()) & Mitigations::all();
    let symbols = Symbols {
        indirect_thunk: Some(input.address(near)),
        return_thunk: Some(input.address(near)),
        call_depth: Some(if input.u8() & 1 == 0 {
            CallDepth::Absolute(input.i32())
        } else {
            CallDepth::RipRelative(input.address(near))
        }),
        check,
    };
    match Hardening::new(set, symbols) {
        // One place cannot be both.
        Ok(_) if symbols.indirect_thunk == symbols.return_thunk => None,
        Ok(hardening) => Some(Guard { hardening, symbols }),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

impl Guard {
    pub fn has(&self, mitigation: Mitigations) -> bool {
        self.hardening.mitigations().contains(mitigation)
    }

    /// Whether one of the thunks is among these bytes.
    pub fn is_in(&self, at: u64, len: usize) -> bool {
        let thunks = [self.symbols.indirect_thunk, self.symbols.return_thunk];
        thunks.into_iter().flatten().any(|thunk| thunk.wrapping_sub(at) < len as u64)
    }
}

/// What `emit` emits at `at`, in a buffer of `max` bytes; nothing where a target is out of
/// reach. A buffer that is too small is refused.
pub fn emitted<T>(
    at: u64,
    max: usize,
    emit: impl Fn(&mut CodeBuffer<'_>) -> Result<T, EmitError>,
) -> Option<(Vec<u8>, T)> {
    let mut bytes = vec![0; max];
    let mut code = CodeBuffer::new(&mut bytes, at);
    let result = match emit(&mut code) {
        Ok(result) => result,
        Err(EmitError::Encode(EncodeError::OutOfRange { from, to })) => {
            let distance = to.wrapping_sub(from).cast_signed();
            assert!(i32::try_from(distance).is_err(), "{to:#x} is in reach of {from:#x}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let len = code.position();
    bytes.truncate(len);
    for short in [0, len / 2, len.saturating_sub(1)] {
        if short < len {
            let mut small = vec![0; short];
            let refused = emit(&mut CodeBuffer::new(&mut small, at)).err();
            assert!(matches!(refused, Some(EmitError::Encode(EncodeError::Overflow { .. }))));
        }
    }
    Some((bytes, result))
}
