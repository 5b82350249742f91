//! The fuzz targets' checks on their committed seeds, and on bytes that chance gives.

use std::fs;
use std::path::Path;

#[path = "discover/answer.rs"]
mod answer;
#[path = "images/branches.rs"]
mod branches;
#[path = "images/case.rs"]
mod case;
#[expect(dead_code, reason = "tests of the encoder use more of it")]
#[path = "encode_x86_64/check.rs"]
mod check;
#[path = "../fuzz/src/checks/mod.rs"]
mod checks;
#[path = "encode_x86_64/forms.rs"]
mod forms;
#[path = "images/jumps.rs"]
mod jumps;
#[path = "images/paths.rs"]
mod paths;

/// Runs `check` on every seed of `target`, and on random bytes.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut replayed = 0;
    for seed in seeds {
        let path = seed.expect("a directory entry").path();
        println!("{}", path.display());
        check(&fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")));
        replayed += 1;
    }
    assert!(replayed >= 5, "{folder:?} has {replayed} seeds");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for len in (0..400).cycle().take(4000) {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                // xorshift64 (Marsaglia 2003): the same bytes in every run.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()[7]
            })
            .collect();
        check(&bytes);
    }
}

#[test]
fn discover() {
    replay("discover", checks::discover::check);
    // The seeds are what they are named after: each has sites, and is believed.
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/discover");
    for (name, functions) in
        [("padded", 3), ("ibt_build_id", 3), ("stripped", 0), ("unwind", 3), ("clang", 3)]
    {
        let seed = fs::read(seeds.join(name)).expect("it was read a moment ago");
        let module = checks::discover::inspect(&seed).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(module.functions.len(), functions, "{name}");
    }
}

#[test]
fn encode() {
    replay("encode", checks::encode::check);
}

#[test]
fn entry_body() {
    replay("entry_body", checks::entry_body::check);
}

#[test]
fn exit_bodies() {
    replay("exit_bodies", checks::exit_bodies::check);
}

#[test]
fn layout() {
    replay("layout", checks::layout::check);
}

#[test]
fn guarded() {
    replay("guarded", checks::guarded::check);
}

#[test]
fn slot() {
    replay("slot", checks::slot::check);
}
