//! The code that is modelled is the code that ships: the rooms that loom models take their
//! atomics from the crate's one shim, so that a model cannot miss one.

use std::fs;
use std::path::{Path, PathBuf};

const ROOMS: [&str; 4] = ["metadata", "attach", "emit", "patch"];

/// The lines, by number, at which `source` names a module `sync` that is not the crate's own.
fn other_than_the_shim(source: &str) -> Vec<usize> {
    let is_word = |byte: Option<char>| byte.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let names_another = |line: &&str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices("sync").any(|(at, name)| {
            let (before, after) = (&code[..at], &code[at + name.len()..]);
            let whole = !is_word(before.chars().next_back()) && !is_word(after.chars().next());
            whole && !before.ends_with("crate::")
        })
    };
    let lines = source.lines().enumerate();
    lines.filter(|(_, line)| names_another(line)).map(|(at, _)| at + 1).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_modelled_rooms_have_their_atomics_from_the_shim() {
    for room in ROOMS {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room), &mut files);
        let mut through_the_shim = 0;
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            let lines = other_than_the_shim(&source);
            assert!(lines.is_empty(), "{file:?}, lines {lines:?}: take it from `crate::sync`");
            through_the_shim += source.matches("use crate::sync::").count();
        }
        assert_ne!(through_the_shim, 0, "{room}: the check has found nothing to look at");
    }
}

#[test]
fn the_check_sees_what_it_is_for() {
    for line in [
        "use core::sync::atomic::{AtomicU32, Ordering};",
        "use core::{ptr, sync::atomic::fence};",
        "    std::sync::atomic::fence(Ordering::SeqCst);",
        "use loom::sync::Mutex;",
        "use core::sync as shared;",
    ] {
        let source = format!("//! Text.\n{line}\n");
        assert_eq!(other_than_the_shim(&source), [2], "{line}");
    }
    for line in [
        "use crate::sync::{AtomicU32, Ordering};",
        "// core::sync::atomic is what the shim re-exports.",
        "    crate::sync::fence(Ordering::SeqCst); // not core::sync",
        "fn synchronise(asynchronous: bool) {}",
    ] {
        assert_eq!(other_than_the_shim(line), [], "{line}");
    }
}
