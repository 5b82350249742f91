//! Why there is no layout, or no room for a slot.

use core::fmt;

use super::{Config, Part, What};

/// Why a [`LayoutSpec`](super::LayoutSpec) does not describe an entry, or a [`Config`] has no
/// layout or no room for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// The slot begins before the padding does.
    SlotOutsidePadding {
        /// Bytes before the entry at which the slot was to begin.
        slot: u16,
        /// Bytes of padding there are.
        padding: u16,
    },
    /// The slot's last bytes would stand at or after the entry.
    SlotReachesEntry {
        /// Bytes before the entry at which the slot was to begin.
        slot: u16,
        /// Bytes that the slot takes.
        len: u16,
    },
    /// The patch site would overwrite the landing pad.
    SiteOnLandingPad {
        /// Bytes from the entry to the patch site.
        site: u16,
        /// Bytes that the landing pad takes.
        landing_pad: u16,
    },
    /// The patch site has no bytes, or the origin would resume inside it.
    OriginInsideSite {
        /// Bytes from the entry to where the origin was to resume.
        origin: u16,
        /// Bytes from the entry to the end of the patch site.
        site_end: u32,
    },
    /// The slot is so far before the return address of a called body that the distance does
    /// not fit into 16 bits.
    SlotTooFar {
        /// Bytes before the entry at which the slot was to begin.
        slot: u16,
        /// Bytes from the entry to the end of the patch site.
        site_end: u32,
    },
    /// Two things would stand in one place.
    Overlap {
        /// The one that begins first.
        first: Part,
        /// The other one.
        second: Part,
    },
    /// Something would begin before what the compiler leaves does.
    OutsidePadding {
        /// What would.
        part: Part,
        /// Bytes before the entry that are the function's.
        padding: u32,
    },
    /// There are not enough bytes in one place before the entry.
    NoRoom {
        /// What the entry is.
        config: Config,
        /// Bytes that were asked for.
        size: u16,
        /// Most bytes that are free in one place.
        largest: u16,
    },
    /// The patch site does not hold a branch.
    SiteTooShort {
        /// Bytes that it has.
        found: u16,
        /// Bytes that it needs.
        needed: u16,
    },
    /// More bytes before the entry than 16 bits can count.
    TooMuchPadding {
        /// How many.
        padding: u32,
    },
}

/// A place in bytes from the entry, as `entry-16`.
struct Place(i32);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("entry"),
            at => write!(f, "entry{at:+}"),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes at {})", self.what.name(), self.what.size(), Place(self.at))
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SlotOutsidePadding { slot, padding } => write!(
                f,
                "the slot begins {slot} bytes before the entry, but the padding has only {padding}"
            ),
            Self::SlotReachesEntry { slot, len } => write!(
                f,
                "a slot of {len} bytes that begins {slot} bytes before the entry runs into it"
            ),
            Self::SiteOnLandingPad { site, landing_pad } => write!(
                f,
                "the patch site at entry+{site} overlaps the landing pad of {landing_pad} bytes"
            ),
            Self::OriginInsideSite { origin, site_end } => write!(
                f,
                "the origin at entry+{origin} is inside the patch site, which ends at entry+{site_end}"
            ),
            Self::SlotTooFar { slot, site_end } => write!(
                f,
                "from a slot {slot} bytes before the entry to the end of the patch site at \
                 entry+{site_end} is more than 65535 bytes"
            ),
            Self::Overlap { first, second } => {
                write!(f, "{first} and {second} would overlap: ")?;
                match (first.what, second.what) {
                    (What::FineIbt(_), What::CallDepth(_)) => {
                        f.write_str("choose one of cfi=fineibt and retbleed=stuff")
                    }
                    (What::KcfiMov, _) => f.write_str(
                        "compile with 11 bytes of padding or more between the hash and the entry",
                    ),
                    _ => f.write_str("compile with more padding"),
                }
            }
            Self::OutsidePadding { part, padding } => write!(
                f,
                "{part} begins before the padding, which has {padding} bytes: compile with more"
            ),
            Self::NoRoom { config, size, largest } => {
                let before = config.before_entry();
                write!(f, "no {size} bytes are free in one place before the entry: of {before}, ")?;
                let parts = config.parts();
                let parts = parts.as_ref().map_or(&[][..], |parts| parts.as_slice());
                for part in parts.iter().filter(|part| part.at < 0) {
                    let taken = part.end().min(0) - part.at;
                    write!(f, "{} takes {taken} at {}, ", part.what.name(), Place(part.at))?;
                }
                let and = if parts.iter().any(|part| part.at < 0) { "and " } else { "" };
                write!(f, "{and}{largest} are left in one place: ")?;
                f.write_str(match config.fineibt().is_some() || config.call_depth().is_some() {
                    true => "align functions to 32 bytes (FUNCTION_ALIGNMENT_32B)",
                    false => "compile with more padding, or attach by a thunk",
                })
            }
            Self::SiteTooShort { found, needed } => write!(
                f,
                "the patch site has {found} bytes, and {needed} are needed: compile with \
                 -fpatchable-function-entry=N,M where N is at least M+5 (x86-64) or M+2 (arm64)"
            ),
            Self::TooMuchPadding { padding } => write!(
                f,
                "{padding} bytes before the entry are more than a layout can describe: compile \
                 with less padding"
            ),
        }
    }
}

impl core::error::Error for LayoutError {}
