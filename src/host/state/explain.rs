//! What an error of the engine's is about, by name.

use std::boxed::Box;
use std::string::String;

use super::State;
use crate::addr::Entry;
use crate::attach;
use crate::host::error::{AttachError, HostError, Stopped};
use crate::patch::{CheckError, PatchError, Poke};

impl State {
    /// Names the functions that an error is about.
    pub(super) fn explain(
        &self,
        cause: attach::AttachError<HostError>,
        pokes: &[Poke],
    ) -> AttachError {
        use attach::AttachError as Cause;
        if let Cause::Patch(PatchError::Check(CheckError::Conflicts { .. })) = &cause {
            let stopped = pokes.iter().filter_map(Poke::conflict).map(|conflict| Stopped {
                function: self.name_around(conflict.site().get()).unwrap_or_default(),
                conflict,
            });
            return AttachError::Stopped(stopped.collect());
        }
        let function = match &cause {
            Cause::TooManyPrograms { entry }
            | Cause::TooManySessions { entry }
            | Cause::Replaced { entry }
            | Cause::Attached { entry }
            | Cause::NotAttached { entry }
            | Cause::NotPrepared { entry } => self.name_at(*entry),
            Cause::SlotTaken { slot, .. } => self.name_around(slot.get()),
            Cause::Patch(PatchError::Store { site, .. } | PatchError::Stuck { site }) => {
                self.name_around(site.get())
            }
            Cause::Patch(PatchError::Check(
                CheckError::Duplicate { site } | CheckError::Read { site, .. },
            )) => self.name_around(site.get()),
            _ => None,
        };
        AttachError::Engine { function, cause: Box::new(cause) }
    }

    /// The name of the function at `entry`, with its module's.
    pub(super) fn name_at(&self, entry: Entry) -> Option<String> {
        self.catalogue.iter().find_map(|known| {
            let function = known.module.at(entry)?;
            Some(std::format!("{} ({})", known.module.name_of(function), known.module.name))
        })
    }

    /// The name of the function whose padding or code `address` is in.
    fn name_around(&self, address: u64) -> Option<String> {
        self.catalogue.iter().find_map(|known| {
            let after = known.module.functions.partition_point(|function| {
                let padding = u64::from(function.layout.padding());
                function.entry.get().saturating_sub(padding) <= address
            });
            let function = known.module.functions.get(after.checked_sub(1)?)?;
            let name = std::format!("{} ({})", known.module.name_of(function), known.module.name);
            let text = known.module.text.iter().any(|range| range.contains(&address));
            text.then_some(name)
        })
    }
}
