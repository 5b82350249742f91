//! A module's file against its loaded image.

use core::ops::Range;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use object::elf::{
    ELF_NOTE_GNU, EM_X86_64, FileHeader64, NT_GNU_BUILD_ID, PF_R, PF_X, PT_GNU_EH_FRAME, PT_LOAD,
    PT_NOTE, ProgramHeader64, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, SectionHeader64,
};
use object::endian::LittleEndian;
use object::read::ReadRef;
use object::read::elf::{FileHeader as _, NoteIterator, ProgramHeader as _, SectionHeader as _};

use super::reason::{Difference, SkipReason};

pub(super) const LE: LittleEndian = LittleEndian;
pub(super) type Elf = FileHeader64<LittleEndian>;

/// Longest note segment that is searched for a build id.
const LONGEST_NOTES: u64 = 64 * 1024;

/// Longest part of memory that is copied, so that damaged sizes do not exhaust memory.
const LONGEST_COPY: usize = 1 << 30;

/// Where gcc and clang record the patch sites of `-fpatchable-function-entry`.
pub(super) const PATCHABLE: &[u8] = b"__patchable_function_entries";

/// Where gcc records those of `-mfentry -mrecord-mcount`.
pub(super) const MCOUNT: &[u8] = b"__mcount_loc";

/// Memory of a process, by absolute address.
pub trait Memory {
    /// Fills `into` with the bytes from `address` on. `false` if not all of them can be read;
    /// then `into` holds anything.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}

/// One program header of a loaded module, as the dynamic loader has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`.
    pub flags: u32,
    /// `p_offset`, bytes into the file.
    pub offset: u64,
    /// `p_vaddr`, without the load bias.
    pub address: u64,
    /// `p_filesz`, bytes.
    pub file_size: u64,
    /// `p_memsz`, bytes.
    pub memory_size: u64,
}

impl Segment {
    fn of_file(header: &ProgramHeader64<LittleEndian>) -> Self {
        Self {
            kind: header.p_type(LE).0,
            flags: header.p_flags(LE).0,
            offset: header.p_offset(LE),
            address: header.p_vaddr(LE),
            file_size: header.p_filesz(LE),
            memory_size: header.p_memsz(LE),
        }
    }
}

/// How a module is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What is added to an address of the file to get the address in memory.
    pub bias: u64,
    /// The program headers.
    pub segments: Vec<Segment>,
}

impl Loaded {
    /// The module that `file` would be at `bias`.
    ///
    /// # Errors
    /// The program headers of `file` are damaged.
    pub fn from_file(file: &[u8], bias: u64) -> Result<Self, SkipReason> {
        let headers = header(file)?.program_headers(LE, file)?;
        Ok(Self { bias, segments: headers.iter().map(Segment::of_file).collect() })
    }

    /// Where a segment is in memory, absolute; `None` if that is beyond the address space.
    fn range(&self, segment: &Segment) -> Option<Range<u64>> {
        let start = self.bias.wrapping_add(segment.address);
        Some(start..start.checked_add(segment.memory_size)?)
    }

    /// The ranges of the segments that are mapped with all of `flags`.
    fn mapped(&self, flags: u32) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let wanted = move |s: &&Segment| s.kind == PT_LOAD.0 && s.flags & flags == flags;
        self.segments.iter().filter(wanted).filter_map(|s| self.range(s))
    }

    /// The ranges of code that can be read, sorted.
    #[must_use]
    pub fn text(&self) -> Vec<Range<u64>> {
        let mut text: Vec<_> = self.mapped(PF_R.0 | PF_X.0).collect();
        text.sort_by_key(|range| range.start);
        text
    }

    /// The ranges that can be read.
    pub(super) fn readable(&self) -> Vec<Range<u64>> {
        self.mapped(PF_R.0).collect()
    }

    /// The end of the readable segment around `address`.
    pub(super) fn end_of_segment(&self, address: u64) -> Option<u64> {
        self.mapped(PF_R.0).find(|range| range.contains(&address)).map(|range| range.end)
    }

    /// Where the unwind table is, if it is mapped.
    pub(super) fn eh_frame_hdr(&self) -> Option<Range<u64>> {
        let segment = self.segments.iter().find(|s| s.kind == PT_GNU_EH_FRAME.0)?;
        let range = self.range(segment)?;
        (range.end <= self.end_of_segment(range.start)?).then_some(range)
    }

    /// The build id in the loaded notes; empty if there is none.
    #[must_use]
    pub fn build_id(&self, memory: &dyn Memory) -> Vec<u8> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == PT_NOTE.0 && segment.memory_size <= LONGEST_NOTES)
            .filter_map(|segment| {
                copy(memory, self.bias.wrapping_add(segment.address), segment.memory_size)
            })
            .find_map(|notes| build_id_in(&notes))
            .unwrap_or_default()
    }
}

/// The build id among `notes`.
fn build_id_in(notes: &[u8]) -> Option<Vec<u8>> {
    // Four is the alignment of a build id's note. Those aligned to eight, which can stand
    // beside it, have lengths that are multiples of eight anyway.
    let notes = NoteIterator::<Elf>::new(LE, 4, notes).ok()?;
    let is_id = |n: &object::read::elf::Note<'_, Elf>| {
        n.name() == ELF_NOTE_GNU && n.n_type(LE) == NT_GNU_BUILD_ID
    };
    notes.map_while(Result::ok).find(is_id).map(|note| note.desc().to_vec())
}

/// Copies `len` bytes of memory from `address` on; `None` if they cannot be read.
pub(super) fn copy(memory: &dyn Memory, address: u64, len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|&len| len <= LONGEST_COPY)?;
    let mut bytes = vec![0; len];
    memory.read(address, &mut bytes).then_some(bytes)
}

impl From<object::read::Error> for SkipReason {
    fn from(error: object::read::Error) -> Self {
        Self::Damaged { what: error.to_string() }
    }
}

/// Reads the file header.
fn header<'data, R: ReadRef<'data>>(file: R) -> Result<&'data Elf, SkipReason> {
    let header = Elf::parse(file)?;
    // `parse` lets 64-bit headers of either byte order pass.
    if !header.is_little_endian() || header.e_machine(LE) != EM_X86_64 {
        return Err(SkipReason::Damaged { what: "another machine's code".to_string() });
    }
    Ok(header)
}

/// The section headers of a file.
pub(super) struct Sections<'data> {
    pub(super) all: &'data [SectionHeader64<LittleEndian>],
    names: &'data [u8],
}

impl<'data> Sections<'data> {
    /// Whether `section` is named `name`.
    fn is(&self, section: &SectionHeader64<LittleEndian>, name: &[u8]) -> bool {
        let own = self.names.get(section.sh_name(LE) as usize..).unwrap_or(&[]);
        own.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Where the sections named `name` are loaded: address of the file, bytes.
    pub(super) fn loaded(&self, name: &'static [u8]) -> impl Iterator<Item = (u64, u64)> {
        self.all
            .iter()
            .filter(move |s| s.sh_flags(LE).contains(SHF_ALLOC) && self.is(s, name))
            .map(|s| (s.sh_addr(LE), s.sh_size(LE)))
    }
}

/// A loaded module and the memory it is in.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) memory: &'a dyn Memory,
}

impl View<'_> {
    /// Checks that `file` is what is loaded, as far as its headers tell, and reads its
    /// section headers.
    pub(super) fn sections<'data, R: ReadRef<'data>>(
        &self,
        file: R,
    ) -> Result<Sections<'data>, SkipReason> {
        let header = header(file)?;
        let headers = header.program_headers(LE, file)?;
        if !headers.iter().map(Segment::of_file).eq(self.loaded.segments.iter().copied()) {
            return Err(SkipReason::Differs(Difference::ProgramHeaders));
        }
        // Text behind the end of a file that was cut short could not even be read.
        let len = file.len().unwrap_or(0);
        let inside = |s: &Segment| s.offset.checked_add(s.file_size).is_some_and(|end| end <= len);
        if !self.loaded.segments.iter().filter(|s| s.kind == PT_LOAD.0).all(inside) {
            return Err(SkipReason::Differs(Difference::Length));
        }
        let mut id = Vec::new();
        for notes in headers.iter().filter(|h| h.p_type(LE) == PT_NOTE) {
            let notes = notes.data(LE, file).map_err(|()| SkipReason::Damaged {
                what: "notes beyond the end of the file".to_string(),
            })?;
            if let Some(found) = build_id_in(notes) {
                id = found;
                break;
            }
        }
        if id != self.loaded.build_id(self.memory) {
            return Err(SkipReason::Differs(Difference::BuildId));
        }

        let all = header.section_headers(LE, file)?;
        let names = match all {
            [] => &[],
            all => {
                let names = all.get(header.section_strings_index(LE, file)?.0);
                names.map_or(Ok(&[][..]), |names| names.data(LE, file))?
            }
        };
        let sections = Sections { all, names };
        if id.is_empty() {
            self.compare(file, &sections)?;
        }
        Ok(sections)
    }

    /// Compares the sections that are loaded and that nothing changes after loading. Among
    /// them are the dynamic symbols and the unwind table, which tell builds apart.
    fn compare<'data, R: ReadRef<'data>>(
        &self,
        file: R,
        sections: &Sections<'data>,
    ) -> Result<(), SkipReason> {
        let constant = |s: &&SectionHeader64<LittleEndian>| {
            let flags = s.sh_flags(LE);
            flags.contains(SHF_ALLOC)
                && !flags.contains(SHF_WRITE)
                && !flags.contains(SHF_EXECINSTR)
                && s.sh_type(LE) != SHT_NOBITS
                // Non-PIC code has its records here, and they are relocated.
                && !sections.is(s, MCOUNT)
        };
        for section in sections.all.iter().filter(constant) {
            let in_file = section.data(LE, file)?;
            let address = self.loaded.bias.wrapping_add(section.sh_addr(LE));
            let in_memory = copy(self.memory, address, in_file.len() as u64)
                .ok_or(SkipReason::UnreadableMemory { address, len: in_file.len() as u64 })?;
            if in_file != in_memory {
                return Err(SkipReason::Differs(Difference::Contents { address }));
            }
        }
        Ok(())
    }
}
