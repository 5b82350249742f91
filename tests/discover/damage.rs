//! Damaged files and damaged memory: any answer but a panic or a place outside of the text.

use std::path::Path;

use fentry::host::discover::{Loaded, Memory, Module, SkipReason};

use super::answer;
use super::build::*;

/// A copy of a module's memory that can be damaged.
#[derive(Clone)]
struct Copy(Vec<(u64, Vec<u8>)>);

impl Memory for Copy {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.0.iter().any(|(base, bytes)| {
            let offset = address.checked_sub(*base).and_then(|n| usize::try_from(n).ok());
            let part = offset.and_then(|n| bytes.get(n..)?.get(..into.len()));
            part.map(|part| into.copy_from_slice(part)).is_some()
        })
    }
}

/// A module, its file, how it is loaded, and its memory.
struct Subject {
    shared_object: Library,
    file: Vec<u8>,
    loaded: Loaded,
    memory: Copy,
}

impl Subject {
    fn new(name: &str, args: &[&str]) -> Self {
        let common = ["-fpatchable-function-entry=21,16", "-O2", "-nostdlib"];
        let library = Library::of_functions("gcc", name, &[&common, args].concat());
        let file = std::fs::read(&library.path).unwrap();
        let loaded = Loaded::from_file(&file, library.module().identity.bias).unwrap();
        let mapped = loaded.segments.iter().filter(|segment| segment.kind == 1);
        let copy = mapped.map(|segment| {
            let start = loaded.bias + segment.address;
            let len = segment.memory_size as usize;
            // SAFETY: The segment is loaded, and readable as all of this object's are.
            (start, unsafe { core::slice::from_raw_parts(start as *const u8, len).to_vec() })
        });
        let memory = Copy(copy.collect());
        Self { shared_object: library, file, loaded, memory }
    }

    /// Inspects; checks what must hold of any answer.
    fn inspect(&self, file: &[u8], loaded: &Loaded, memory: &Copy) -> Result<Module, SkipReason> {
        let module = Module::inspect(Path::new("damaged.so"), file, loaded, memory)?;
        answer::check(&module, memory);
        Ok(module)
    }
}

#[test]
fn truncated_files_are_never_misread() {
    let subject = Subject::new("truncated.so", &[]);
    let whole = subject.inspect(&subject.file, &subject.loaded, &subject.memory).unwrap();
    assert_eq!(entries_of(&whole), sorted(subject.shared_object.entries()));
    let lengths = (0..subject.file.len()).filter(|len| len % 61 == 0 || *len < 1_000);
    for len in lengths {
        let file = &subject.file[..len];
        // The section headers are the last thing in the file.
        let answer = subject.inspect(file, &subject.loaded, &subject.memory);
        assert!(answer.is_err(), "{len} bytes of {}", subject.file.len());
        if let Ok(loaded) = Loaded::from_file(file, subject.loaded.bias) {
            assert!(subject.inspect(file, &loaded, &subject.memory).is_err());
        }
    }
}

#[test]
fn flipped_bytes_of_the_file_never_panic() {
    for args in [&[][..], &["-Wl,--build-id=none"], &["-fcf-protection=none", "-s"]] {
        let subject = Subject::new(&format!("flipped-{}.so", args.len()), args);
        let mut file = subject.file.clone();
        let sections = u64::from_le_bytes(file[0x28..0x30].try_into().unwrap()) as usize;
        let mut answers = [0, 0];
        for at in 0..file.len() {
            // Headers byte by byte, the rest by samples.
            if at >= 0x400 && at < sections && at % 7 != 0 {
                continue;
            }
            for flip in [0xff, 0x01, 0x80] {
                file[at] ^= flip;
                let answer = subject.inspect(&file, &subject.loaded, &subject.memory);
                answers[usize::from(answer.is_ok())] += 1;
                // As a loader would have loaded the damaged file.
                if at < 0x400
                    && let Ok(loaded) = Loaded::from_file(&file, subject.loaded.bias)
                {
                    let _ = subject.inspect(&file, &loaded, &subject.memory);
                }
                file[at] ^= flip;
            }
        }
        assert!(answers.iter().all(|&count| count > 100), "{answers:?}");
        assert_eq!(file, subject.file);
    }
}

#[test]
fn flipped_bytes_of_memory_never_panic() {
    let subject = Subject::new("flipped-memory.so", &[]);
    let mut memory = subject.memory.clone();
    for segment in 0..memory.0.len() {
        for at in 0..memory.0[segment].1.len() {
            for flip in [0xff, 0x80] {
                memory.0[segment].1[at] ^= flip;
                let _ = subject.inspect(&subject.file, &subject.loaded, &memory);
                memory.0[segment].1[at] ^= flip;
            }
        }
    }
}
