//! The ELF object that tells a debugger of emitted code.
//!
//! ```text
//!  file header | .strtab | .symtab | .eh_frame | section headers
//! ```
//! The code is not in it: a debugger reads it where it runs. Every run of pieces without a
//! gap is a section, so that an address between two runs is nobody's.

use core::ops::Range;
use std::vec::Vec;

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, ELFOSABI_NONE, EM_X86_64, ET_EXEC, EV_CURRENT, FileFlags,
    FileHeader64, Ident, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, SHT_NULL, SHT_PROGBITS, SHT_STRTAB,
    SHT_SYMTAB, STB_LOCAL, STT_FUNC, SectionFlags, SectionHeader64, SectionType, Sym64, SymbolInfo,
    SymbolOther, SymbolSection,
};
use object::pod::bytes_of;
use object::{LittleEndian as LE, U16, U32, U64};

use super::Piece;

type FileHeader = FileHeader64<LE>;
type Section = SectionHeader64<LE>;
type Symbol = Sym64<LE>;

/// What images are aligned to: so much after a piece may be its filling.
const GAP: u64 = 64;

/// The names of the sections that are no code, in their order.
const NAMES: &str = "\0.strtab\0.symtab\0.eh_frame\0.text\0";
const STRTAB: u32 = 1;
const TEXT: u32 = 4;

/// Makes the object. `pieces` are sorted by address.
pub(super) fn object(pieces: &[Piece]) -> Vec<u8> {
    let mut strings = NAMES.as_bytes().to_vec();
    let mut symbols = bytes_of(&symbol(0, SymbolInfo(0), 0, 0..0)).to_vec();
    let mut unwind = Vec::new();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for piece in pieces {
        let range = piece.range();
        match runs.last_mut() {
            Some(run) if range.start.saturating_sub(run.end) < GAP => run.end = range.end,
            _ => runs.push(range.clone()),
        }
        let section = TEXT - 1 + runs.len() as u32;
        let info = SymbolInfo::new(STB_LOCAL, STT_FUNC);
        symbols.extend(bytes_of(&symbol(strings.len(), info, section, range)));
        strings.extend(piece.name.as_bytes());
        strings.push(0);
        unwind.extend(&piece.unwind);
    }
    unwind.extend([0; 4]);

    let mut file = std::vec![0; size_of::<FileHeader>()];
    let mut sections = std::vec![section("", SHT_NULL, 0..0)];
    let contents = [
        (".strtab", SHT_STRTAB, strings),
        (".symtab", SHT_SYMTAB, symbols),
        (".eh_frame", SHT_PROGBITS, unwind),
    ];
    for (name, kind, bytes) in contents {
        file.resize(file.len().next_multiple_of(8), 0);
        let start = file.len() as u64;
        file.extend(bytes);
        let mut header = section(name, kind, start..file.len() as u64);
        if kind == SHT_SYMTAB {
            header.sh_link = U32::new(LE, STRTAB);
            // Behind the last local symbol, and all are.
            header.sh_info = U32::new(LE, pieces.len() as u32 + 1);
            header.sh_entsize = U64::new(LE, size_of::<Symbol>() as u64);
        }
        sections.push(header);
    }
    for run in runs {
        let mut header = section(".text", SHT_NOBITS, 0..run.end - run.start);
        header.sh_flags = U64::new(LE, SectionFlags(SHF_ALLOC.0 | SHF_EXECINSTR.0));
        header.sh_addr = U64::new(LE, run.start);
        header.sh_addralign = U64::new(LE, 1);
        sections.push(header);
    }
    file.resize(file.len().next_multiple_of(8), 0);
    let header = file_header(file.len(), sections.len());
    if let Some(place) = file.get_mut(..size_of::<FileHeader>()) {
        place.copy_from_slice(bytes_of(&header));
    }
    for section in &sections {
        file.extend(bytes_of(section));
    }
    file
}

fn file_header(sections: usize, count: usize) -> FileHeader {
    FileHeader {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        // Addresses are where the code is: there is nothing to relocate.
        e_type: U16::new(LE, ET_EXEC),
        e_machine: U16::new(LE, EM_X86_64),
        e_version: U32::new(LE, u32::from(EV_CURRENT.0)),
        e_entry: U64::default(),
        e_phoff: U64::default(),
        e_shoff: U64::new(LE, sections as u64),
        e_flags: U32::new(LE, FileFlags(0)),
        e_ehsize: U16::new(LE, size_of::<FileHeader>() as u16),
        e_phentsize: U16::default(),
        e_phnum: U16::default(),
        e_shentsize: U16::new(LE, size_of::<Section>() as u16),
        e_shnum: U16::new(LE, count as u16),
        e_shstrndx: U16::new(LE, SymbolSection::new(STRTAB)),
    }
}

/// A section whose bytes are at `place` in the file.
fn section(name: &str, kind: SectionType, place: Range<u64>) -> Section {
    Section {
        sh_name: U32::new(LE, NAMES.find(name).unwrap_or(0) as u32),
        sh_type: U32::new(LE, kind),
        sh_flags: U64::new(LE, SectionFlags(0)),
        sh_addr: U64::default(),
        sh_offset: U64::new(LE, place.start),
        sh_size: U64::new(LE, place.end - place.start),
        sh_link: U32::default(),
        sh_info: U32::default(),
        sh_addralign: U64::new(LE, 8),
        sh_entsize: U64::default(),
    }
}

fn symbol(name: usize, info: SymbolInfo, section: u32, range: Range<u64>) -> Symbol {
    Symbol {
        st_name: U32::new(LE, name as u32),
        st_info: info,
        st_other: SymbolOther(0),
        st_shndx: U16::new(LE, SymbolSection::new(section)),
        st_value: U64::new(LE, range.start),
        st_size: U64::new(LE, range.end - range.start),
    }
}
