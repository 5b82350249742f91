//! Lanes: where programs' cookies stand, and which are free.

use super::engine::{MAX_FUNCTIONS, Outcome};
use super::{AttachError, Attachment, Embedder, Engine, FunctionId};
use crate::metadata::Column;
use crate::sync::{AtomicU64, Ordering};

/// Lanes that an attachment may get.
#[derive(Clone, Copy, Debug)]
pub(super) struct LanesInUse {
    /// No body reads them.
    free: u32,
    /// No program has them, but a body may still be reading them.
    stale: u32,
}

impl LanesInUse {
    /// Takes the lowest lane that no body reads.
    pub const fn take_free(&mut self) -> Option<u8> {
        if self.free == 0 {
            return None;
        }
        let lane = self.free.trailing_zeros() as u8;
        self.free &= self.free - 1;
        Some(lane)
    }
}

impl<E: Embedder> Engine<E> {
    /// Which lanes these functions use, and which may still be read.
    pub(super) fn lanes(&self, functions: &[FunctionId]) -> Outcome<LanesInUse, E> {
        let mut lanes = LanesInUse { free: !0, stale: !0 };
        let mut same = (0, 0);
        for id in functions {
            let Some(record) = self.records.get(id.0) else {
                return Err(AttachError::UnknownFunction { index: id.0 });
            };
            let set = record.set.load(Ordering::Relaxed);
            if same.0 != set {
                same = (set, self.sets.get(set).map_or(0, |set| set.programs.lanes()));
            }
            lanes.free &= !record.lanes.load(Ordering::Relaxed);
            lanes.stale &= !same.1;
        }
        lanes.stale &= !lanes.free;
        Ok(lanes)
    }

    /// A lane that has the program's cookies already, from an attachment that is over: taken
    /// from `lanes`, if there is one.
    pub(super) fn lane_with_cookies(
        &self,
        functions: &[FunctionId],
        lanes: &mut LanesInUse,
        program: &Attachment<'_>,
    ) -> Option<u8> {
        let mut stale = lanes.stale;
        while stale != 0 {
            let lane = stale.trailing_zeros() as u8;
            stale &= stale - 1;
            let found = functions.iter().enumerate().all(|(position, id)| {
                let cookie = self.cookie(id.0, lane).map(|cookie| cookie.load(Ordering::Relaxed));
                cookie.is_some() && cookie == program.cookies.at(position)
            });
            if found {
                lanes.stale &= !1_u32.wrapping_shl(lane.into());
                return Some(lane);
            }
        }
        None
    }

    /// Makes room for the cookies of `lane`.
    pub(super) fn ready_lane(&mut self, lane: u8) -> Outcome<(), E> {
        let Some(column) = usize::from(lane).checked_sub(1) else { return Ok(()) };
        let Some(column) = self.columns.get_mut(column) else {
            return Err(AttachError::NoLane);
        };
        let memory = &mut self.parts.tables;
        if column.is_none() {
            *column = Some(Column::reserve(memory, MAX_FUNCTIONS).map_err(AttachError::table)?);
        }
        match column {
            Some(column) => column.ready(memory, self.records.bound()).map_err(AttachError::table),
            None => Err(AttachError::NoLane),
        }
    }

    /// Writes a program's cookies where its lane has them. No body reads that lane yet.
    pub(super) fn write_cookies(
        &self,
        functions: &[FunctionId],
        lane: u8,
        program: &Attachment<'_>,
    ) -> Outcome<(), E> {
        for (position, id) in functions.iter().enumerate() {
            let place = self.cookie(id.0, lane).zip(program.cookies.at(position));
            let Some((place, cookie)) = place else {
                return Err(AttachError::UnknownFunction { index: id.0 });
            };
            place.store(cookie, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The cookie of `lane` of the function with `index`.
    pub(super) fn cookie(&self, index: u32, lane: u8) -> Option<&AtomicU64> {
        match usize::from(lane).checked_sub(1) {
            None => self.records.get(index).map(|record| &record.cookie),
            Some(column) => self.columns.get(column)?.as_ref()?.get(index),
        }
    }
}
