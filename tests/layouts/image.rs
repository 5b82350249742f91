//! A kernel as its package has it: unpacked, and its sections by address.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSection, SectionKind};

/// A section that has bytes.
pub struct Section {
    pub name: String,
    pub address: u64,
    pub bytes: Vec<u8>,
    pub executable: bool,
}

/// A kernel's program, as it is before it runs.
pub struct Image {
    pub sections: Vec<Section>,
}

/// The program in a bzImage (Documentation/arch/x86/boot.rst: `setup_sects` at 0x1f1,
/// `payload_offset` and `payload_length` at 0x248), unpacked by the tool that its first bytes
/// name.
fn unpack(bzimage: &[u8]) -> Vec<u8> {
    let u32_at = |at: usize| u32::from_le_bytes(bzimage[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(&bzimage[0x202..0x206], b"HdrS", "no bzImage");
    let start = (usize::from(bzimage[0x1f1]) + 1) * 512 + u32_at(0x248);
    // The last four bytes are the unpacked size, and are none of the tool's business.
    let payload = &bzimage[start..start + u32_at(0x24c) - 4];
    let tools: [(&[u8], &[&str]); 4] = [
        (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
        (b"\xfd7zXZ\0", &["xz", "-dcq", "--single-stream"]),
        (b"\x1f\x8b\x08", &["gzip", "-dcq"]),
        (b"\x02\x21\x4c\x18", &["lz4", "-dcq"]),
    ];
    let (_, tool) = tools
        .into_iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .expect("the kernel is packed in a known way");
    let mut child = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: install it", tool[0]));
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(payload));
        child.wait_with_output().expect("it was started")
    });
    assert!(output.stdout.starts_with(b"\x7fELF"), "{} gave no program", tool[0]);
    output.stdout
}

impl Image {
    /// The image in the file `bzimage`.
    pub fn read(bzimage: &Path) -> Self {
        let packed = fs::read(bzimage).unwrap_or_else(|error| panic!("{bzimage:?}: {error}"));
        let program = unpack(&packed);
        let file = ElfFile::<FileHeader64<Endianness>>::parse(&program[..]).expect("an ELF file");
        let sections = file
            .sections()
            .filter(|section| section.address() != 0)
            .map(|section| Section {
                name: section.name().expect("a name").to_owned(),
                address: section.address(),
                bytes: section.data().expect("bytes").to_owned(),
                executable: section.kind() == SectionKind::Text,
            })
            .collect();
        Self { sections }
    }

    pub fn section(&self, name: &str) -> &Section {
        self.sections.iter().find(|section| section.name == name).expect(name)
    }

    /// The section that has the byte at `address`, and where in it that is.
    fn find(&self, address: u64) -> Option<(&Section, usize)> {
        self.sections.iter().find_map(|section| {
            let at = usize::try_from(address.checked_sub(section.address)?).ok()?;
            (at < section.bytes.len()).then_some((section, at))
        })
    }

    /// At most `len` bytes before `address`, and at most as many from it on.
    pub fn around(&self, address: u64, len: usize) -> (&[u8], &[u8]) {
        let (section, at) = self.find(address).expect("an address in the image");
        let (before, from) = section.bytes.split_at(at);
        (&before[before.len().saturating_sub(len)..], &from[..len.min(from.len())])
    }

    /// The bytes from `start` to before `end`.
    pub fn bytes(&self, start: u64, end: u64) -> &[u8] {
        let (section, at) = self.find(start).expect("an address in the image");
        &section.bytes[at..at + usize::try_from(end - start).unwrap()]
    }

    /// Writes `bytes` at `address`.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let (section, at) = self.find(address).expect("an address in the image");
        let name = section.name.clone();
        let section = self.sections.iter_mut().find(|section| section.name == name).unwrap();
        section.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Whether code is at `address`.
    pub fn is_code(&self, address: u64) -> bool {
        self.find(address).is_some_and(|(section, _)| section.executable)
    }
}
