//! Program sets.

use super::thunk_block::ThunkBlock;
use super::{Attachment, ProgramKind};
use crate::emit::Vectors;
use crate::emit::x86_64::Bodies;
use crate::metadata::{Column, Element, Zeroed};
use crate::sync::AtomicU32;

/// How many programs one function can have.
pub const MAX_PROGRAMS: usize = 16;

/// When a program of a set runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    Entry,
    Exit,
    ModifyReturn,
    Session,
    Replace,
}

/// One program of a set. All zeroes is a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetEntry {
    pub target: u64,
    /// A session's exit.
    pub exit: u64,
    pub data: u64,
    pub role: Role,
    pub has_data: bool,
    pub enabled: bool,
    pub lane: u8,
    vectors: u8,
}

impl SetEntry {
    pub const VACANT: Self = Self {
        target: 0,
        exit: 0,
        data: 0,
        role: Role::Entry,
        has_data: false,
        enabled: false,
        lane: 0,
        vectors: 0,
    };

    pub const fn new(program: &Attachment<'_>, lane: u8) -> Self {
        let (data, has_data) = match program.data {
            Some(data) => (data, true),
            None => (0, false),
        };
        let (role, exit) = match program.kind {
            ProgramKind::Entry => (Role::Entry, 0),
            ProgramKind::Exit => (Role::Exit, 0),
            ProgramKind::ModifyReturn => (Role::ModifyReturn, 0),
            ProgramKind::Session { exit } => (Role::Session, exit),
            ProgramKind::Replace => (Role::Replace, 0),
        };
        let (target, vectors) = (program.target, program.vectors as u8);
        Self { target, exit, data, role, has_data, enabled: true, lane, vectors }
    }

    pub const fn vectors(&self) -> Vectors {
        const XMM: u8 = Vectors::Xmm as u8;
        const YMM: u8 = Vectors::Ymm as u8;
        const ZMM: u8 = Vectors::Zmm as u8;
        match self.vectors {
            XMM => Vectors::Xmm,
            YMM => Vectors::Ymm,
            ZMM => Vectors::Zmm,
            _ => Vectors::Untouched,
        }
    }

    /// Whether this is what runs instead of the origin, and is enabled.
    pub fn replaces(&self) -> bool {
        self.enabled && self.role == Role::Replace
    }

    /// This entry's lane, as a bit.
    pub const fn lane_bit(&self) -> u32 {
        1_u32.wrapping_shl(self.lane as u32)
    }
}

/// An ordered list of programs, in the order in which they run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs {
    entries: [SetEntry; MAX_PROGRAMS],
    len: u8,
}

impl PartialEq for Programs {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Programs {
    pub const EMPTY: Self = Self { entries: [SetEntry::VACANT; MAX_PROGRAMS], len: 0 };

    pub fn as_slice(&self) -> &[SetEntry] {
        self.entries.get(..usize::from(self.len)).unwrap_or(&[])
    }

    pub fn as_mut_slice(&mut self) -> &mut [SetEntry] {
        self.entries.get_mut(..usize::from(self.len)).unwrap_or(&mut [])
    }

    /// Appends `entry`; `false` if the list is full.
    #[must_use]
    pub fn push(&mut self, entry: SetEntry) -> bool {
        match self.entries.get_mut(usize::from(self.len)) {
            Some(place) => {
                *place = entry;
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// The lanes of all programs, one bit each.
    pub fn lanes(&self) -> u32 {
        self.as_slice().iter().fold(0, |lanes, entry| lanes | entry.lane_bit())
    }

    /// FNV-1a over what makes two lists equal. Never 0, which marks a vacant set.
    pub fn hash(&self, class: u16) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(class);
        let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        for entry in self.as_slice() {
            mix(entry.target);
            mix(entry.exit);
            mix(entry.data);
            let (has_data, enabled) = (entry.has_data.into(), entry.enabled.into());
            let flags = [entry.lane, entry.vectors, has_data, enabled, entry.role as u8, 0, 0, 0];
            mix(u64::from_le_bytes(flags));
        }
        hash | 1
    }
}

/// How a function's patch site leads to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Form {
    /// It does not: no program is enabled, and there is no image.
    Nothing,
    /// By a call: the image runs programs at the entry.
    Entry,
    /// By a jump to the function's exit thunk, which calls the image and jumps to it.
    Exit,
    /// By a jump: the image replaces the function, and no other program runs.
    Replace,
}

/// A set: programs, the image that runs them, and how many functions have it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Set {
    link: AtomicU32,
    /// Functions whose record names this set.
    pub users: u32,
    pub programs: Programs,
    /// Where its image is; 0 if no program is enabled.
    pub image: u64,
    /// Where in the image is what runs at the entry, and at the exit.
    pub bodies: Bodies,
    pub image_size: u32,
    pub form: Form,
    /// The class of its functions.
    pub class: u16,
    /// Whether its index is given out.
    pub live: bool,
    /// Whether functions have stopped leading to its image since all was quiescent: a core may
    /// still be there for one of them.
    pub left: bool,
    /// The set that the edit in progress makes of it, if `stamp` is that edit's.
    pub next: u32,
    pub stamp: u32,
    /// The exit thunks of its functions. Reserved when the set first has a need of it, and kept
    /// for the next set in this place.
    pub thunks: Column<ThunkBlock>,
}

// SAFETY: integers, booleans, enumerations that have a zero, a column, and a list of these;
// zeroes are a set that is not live.
unsafe impl Zeroed for Set {}

impl Element for Set {
    fn link(&self) -> &AtomicU32 {
        &self.link
    }
}
