//! Where functions start: the symbol table and the unwind table, side by side.
//!
//! Either alone can be missing: a stripped file has no symbol table for its static
//! functions, and C compiled without unwind tables has no unwind table. Where both speak
//! they say the same, because compilers emit `.cfi_startproc` at the function's label, behind
//! its padding (seen with gcc 12 and clang 16).

use std::vec::Vec;

use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, UnwindSection,
};
use object::elf::{
    SHN_ABS, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STB_GLOBAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC,
};
use object::read::ReadRef;
use object::read::elf::{SectionHeader as _, Sym as _};

use super::image::{Elf, LE, Sections, View, copy};
use super::reason::SkipReason;

/// Where a function starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Absolute.
    pub(super) address: u64,
    /// Bytes of the function; 0 where neither table says.
    pub(super) len: u64,
}

/// Every start that is known, sorted.
#[derive(Debug, Default)]
pub(super) struct Starts {
    all: Vec<Start>,
}

impl Starts {
    pub(super) fn new(symbols: &[Symbol], unwind: Vec<Start>) -> Self {
        let of_symbol = |s: &Symbol| Start { address: s.address, len: s.len };
        let mut all = unwind;
        all.extend(symbols.iter().map(of_symbol));
        all.sort_by_key(|start| start.address);
        all.dedup_by(|next, kept| {
            let same = next.address == kept.address;
            if same {
                kept.len = kept.len.max(next.len);
            }
            same
        });
        Self { all }
    }

    /// The start at exactly `address`.
    pub(super) fn at(&self, address: u64) -> Option<&Start> {
        let i = self.all.binary_search_by_key(&address, |start| start.address).ok()?;
        self.all.get(i)
    }

    /// The starts behind `address`, nearest first.
    pub(super) fn after(&self, address: u64) -> &[Start] {
        let i = self.all.partition_point(|start| start.address <= address);
        self.all.get(i..).unwrap_or(&[])
    }

    /// The last start before `address`.
    pub(super) fn before(&self, address: u64) -> Option<&Start> {
        let i = self.all.partition_point(|start| start.address < address);
        self.all.get(i.checked_sub(1)?)
    }
}

/// A function's symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Absolute.
    pub(super) address: u64,
    len: u64,
    name: u32,
    /// Which name is shown first: lower ones.
    rank: u8,
}

/// The function symbols of a module, sorted by address and then in the order in which they
/// are shown.
#[derive(Default)]
pub(super) struct Symbols<'data> {
    pub(super) all: Vec<Symbol>,
    strings: &'data [u8],
}

impl<'data> Symbols<'data> {
    /// Reads `.symtab`, or `.dynsym` where there is none.
    pub(super) fn read<R: ReadRef<'data>>(
        file: R,
        sections: &Sections<'data>,
        bias: u64,
    ) -> Result<Self, SkipReason> {
        let table = |kind| sections.all.iter().find(|s| s.sh_type(LE) == kind);
        let Some(section) = table(SHT_SYMTAB).or_else(|| table(SHT_DYNSYM)) else {
            return Ok(Self::default());
        };
        let entries: &[<Elf as object::read::elf::FileHeader>::Sym] =
            section.data_as_array(LE, file)?;
        let strings = match sections.all.get(section.sh_link(LE) as usize) {
            Some(strings) => strings.data(LE, file)?,
            None => &[],
        };
        let mut all = Vec::new();
        for entry in entries {
            let kind = entry.st_type();
            let place = entry.st_shndx(LE);
            if !(kind == STT_FUNC || kind == STT_GNU_IFUNC)
                || place == SHN_UNDEF
                || place == SHN_ABS
            {
                continue;
            }
            // An indirect function's symbol is at its resolver, whose own name comes first.
            let rank = match entry.st_bind() {
                _ if kind == STT_GNU_IFUNC => 3,
                STB_GLOBAL => 0,
                STB_WEAK => 1,
                _ => 2,
            };
            all.push(Symbol {
                address: bias.wrapping_add(entry.st_value(LE)),
                len: entry.st_size(LE),
                name: entry.st_name(LE),
                rank,
            });
        }
        all.sort_by_key(|symbol| (symbol.address, symbol.rank));
        Ok(Self { all, strings })
    }

    /// The names of the function at `address`, without symbol versions, each once.
    pub(super) fn names(&self, address: u64) -> Vec<&'data [u8]> {
        let first = self.all.partition_point(|symbol| symbol.address < address);
        let mut names = Vec::new();
        for symbol in self.all.get(first..).unwrap_or(&[]) {
            if symbol.address != address {
                break;
            }
            let name = self.strings.get(symbol.name as usize..).unwrap_or(&[]);
            let end = |byte: &u8| *byte == 0 || *byte == b'@';
            let name = name.split(end).next().unwrap_or(&[]);
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// Reads the functions that the unwind table of the loaded module knows. What is damaged
/// there ends the list; it is never an error, because symbols may know more.
pub(super) fn unwind(view: &View<'_>) -> Vec<Start> {
    let mut starts = Vec::new();
    let Some(header) = view.loaded.eh_frame_hdr() else {
        return starts;
    };
    let Some(hdr) = copy(view.memory, header.start, header.end - header.start) else {
        return starts;
    };
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.start);
    let Ok(hdr) = EhFrameHdr::new(&hdr, LittleEndian).parse(&bases, 8) else {
        return starts;
    };
    let Some(table) = hdr.table() else {
        return starts;
    };

    // The frames themselves say how long a function is. Where they end is not recorded, so
    // they are read up to the end of what is mapped with them.
    let mut frames = Vec::new();
    let mut frames_at = 0;
    if let Pointer::Direct(at) = hdr.eh_frame_ptr()
        && let Some(end) = view.loaded.end_of_segment(at)
    {
        frames = copy(view.memory, at, end - at).unwrap_or_default();
        frames_at = at;
    }
    let bases = bases.set_eh_frame(frames_at);
    let frames = EhFrame::new(&frames, LittleEndian);
    for row in table.iter(&bases) {
        let Ok((Pointer::Direct(address), Pointer::Direct(frame))) = row else {
            break;
        };
        let len = frame
            .checked_sub(frames_at)
            .and_then(|offset| frame_len(&frames, &bases, offset as usize, address))
            .unwrap_or(0);
        starts.push(Start { address, len });
    }
    starts
}

/// The length of the function whose frame description is at `offset`.
fn frame_len(
    frames: &EhFrame<EndianSlice<'_, LittleEndian>>,
    bases: &BaseAddresses,
    offset: usize,
    address: u64,
) -> Option<u64> {
    let frame = frames.fde_from_offset(bases, offset.into(), EhFrame::cie_from_offset).ok()?;
    (frame.initial_address() == address).then(|| frame.len())
}
