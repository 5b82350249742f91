//! Where a patch site leads: the bytes there, and at the function's entry thunk.

use super::FunctionId;
use super::engine::Outcome;
use super::function::FunctionInfo;
use super::set::Form;
use super::{AttachError, Embedder, Engine};
use crate::addr::PatchSite;
use crate::emit::EmitError;
use crate::emit::x86_64::THUNK_JUMP;
use crate::encode::EncodeError;
use crate::encode::x86_64::{NOP5, call_bytes, jmp_bytes};
use crate::layout::EntryLayout;
use crate::patch::{Poke, SITE_LEN};

/// What the functions of one class lead to when they have one set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leads {
    pub set: u32,
    pub form: Form,
    pub image: u64,
}

/// One function's patch site, and what may stand between it and an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub at: PatchSite,
    /// What stands there while it leads nowhere.
    pub nop: [u8; SITE_LEN],
    /// The function's entry thunk, if it has no slot.
    pub entry_thunk: Option<u64>,
}

impl Leads {
    /// The bytes at `site`, where `exit_thunk` is the function's for this set.
    fn bytes(&self, site: &Site, exit_thunk: Option<u64>) -> Result<[u8; SITE_LEN], EncodeError> {
        let at = site.at.get();
        match self.form {
            Form::Nothing => Ok(site.nop),
            Form::Entry => call_bytes(at, site.entry_thunk.unwrap_or(self.image)),
            Form::Exit => jmp_bytes(at, exit_thunk.unwrap_or(self.image)),
            Form::Replace => jmp_bytes(at, self.image),
        }
    }

    /// The bytes at the jump of an entry thunk.
    fn jump_bytes(&self, jump: u64) -> Result<[u8; SITE_LEN], EncodeError> {
        match self.form {
            Form::Entry => jmp_bytes(jump, self.image),
            Form::Nothing | Form::Exit | Form::Replace => Ok(NOP5),
        }
    }
}

impl<E: Embedder> Engine<E> {
    /// The change of a function's patch site, from where the set it had leads to where the one
    /// that it gets does. Emits its exit thunk.
    pub(super) fn site_poke(
        &mut self,
        id: FunctionId,
        layout: &EntryLayout,
        site: &Site,
        [old, new]: [&Leads; 2],
    ) -> Outcome<Poke, E> {
        let unknown = || AttachError::UnknownFunction { index: id.0 };
        let old_thunk = match old.form {
            Form::Exit => Some(self.exit_thunk_of(id.0, old.set).ok_or_else(unknown)?),
            _ => None,
        };
        let new_thunk = match new.form {
            Form::Exit => {
                let entry = self.functions.get(id.0).map(FunctionInfo::entry);
                Some(self.exit_thunk(id, new.set, layout.origin(entry.ok_or_else(unknown)?))?)
            }
            _ => None,
        };
        let old = old.bytes(site, old_thunk).map_err(EmitError::Encode)?;
        let new = new.bytes(site, new_thunk).map_err(EmitError::Encode)?;
        Ok(Poke::new(site.at, old, new))
    }
}

/// The change of an entry thunk's jump.
pub(super) fn jump_poke(thunk: u64, [old, new]: [&Leads; 2]) -> Result<Poke, EncodeError> {
    let jump = thunk.wrapping_add(THUNK_JUMP as u64);
    Ok(Poke::new(PatchSite::new(jump), old.jump_bytes(jump)?, new.jump_bytes(jump)?))
}
