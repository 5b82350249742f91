//! The discovery of patch sites: any file, loaded as it says, with a byte of memory changed.

use std::path::Path;

use fentry::host::discover::{Loaded, Memory, Module, Segment, SkipReason};

use super::input::Input;
use crate::answer;

/// `PT_LOAD`.
const LOAD: u32 = 1;

/// Bytes of a segment that are in memory at the most, whatever the file says: so that a run is short.
const MOST: u64 = 1 << 16;

/// What a loader would have made of a file.
struct AsLoaded<'a> {
    file: &'a [u8],
    loaded: &'a Loaded,
    /// A byte of the file that is another one in memory, and what it differs in.
    damage: (usize, u8),
}

impl AsLoaded<'_> {
    fn byte(&self, segment: &Segment, place: u64) -> Option<u8> {
        if place >= segment.file_size {
            return Some(0);
        }
        let place = usize::try_from(segment.offset.checked_add(place)?).ok()?;
        let flip = if place == self.damage.0 { self.damage.1 } else { 0 };
        Some(self.file.get(place)? ^ flip)
    }

    fn read_from(&self, segment: &Segment, address: u64, into: &mut [u8]) -> Option<()> {
        let start = address.checked_sub(self.loaded.bias.wrapping_add(segment.address))?;
        let end = start.checked_add(into.len() as u64)?;
        (end <= segment.memory_size.min(MOST)).then_some(())?;
        for (place, byte) in (start..end).zip(into) {
            *byte = self.byte(segment, place)?;
        }
        Some(())
    }
}

impl Memory for AsLoaded<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let mut mapped = self.loaded.segments.iter().filter(|segment| segment.kind == LOAD);
        mapped.any(|segment| self.read_from(segment, address, into).is_some())
    }
}

/// What is found in the file that stands before the last five bytes, which say what is damaged.
/// Checks what must hold of any answer.
pub fn inspect(data: &[u8]) -> Result<Module, SkipReason> {
    let (file, damage) = data.split_at(data.len().saturating_sub(5));
    let mut damage = Input::new(damage);
    let damage = (damage.u32() as usize, damage.u8());
    let loaded = Loaded::from_file(file, 0)?;
    let memory = AsLoaded { file, loaded: &loaded, damage };
    let module = Module::inspect(Path::new("any"), file, &loaded, &memory)?;
    answer::check(&module, &memory);
    Ok(module)
}

pub fn check(data: &[u8]) {
    if let Err(reason) = inspect(data) {
        assert!(!reason.to_string().is_empty());
    }
}
