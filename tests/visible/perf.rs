//! Names in `perf script`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use fentry::host::Visibility;

use crate::support::skipped;
use crate::victim;

/// Calls of each function: with two programs each, some hundred samples fall into the images.
const CALLS: u64 = 10_000_000;

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("perf was there a moment ago");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{error}");
    output
}

/// Whether `perf` can record here; says why not.
fn perf_works() -> bool {
    let tried = Command::new("perf")
        .args(["record", "-q", "-e", "cpu-clock", "-o", "/dev/null", "true"])
        .output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => format!("perf: {error}"),
    };
    skipped("names in perf", &why);
    false
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("visible").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the target folder is writable");
    folder
}

/// Records the victim and gives what `perf` says of each sample: its address, and a name.
fn samples(name: &str, show: &str, inject: bool) -> Vec<(u64, String)> {
    let folder = folder(name);
    let data = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (recorded, injected) = (data("perf.data"), data("perf.jit.data"));
    let show = show.replace("FOLDER", &folder.to_string_lossy());
    let words = ["record", "-q", "-k", "mono", "-e", "cpu-clock", "-F", "2000", "-o", &recorded];
    run(&mut victim::command("perf", &words, &show, CALLS, false));
    let shown = if inject {
        run(Command::new("perf").args(["inject", "--jit", "-i", &recorded, "-o", &injected]));
        injected
    } else {
        recorded
    };
    let script = run(Command::new("perf").args(["script", "-F", "ip,sym", "-i", &shown]));
    let script = String::from_utf8_lossy(&script.stdout).into_owned();
    let sample = |line: &str| {
        let (address, name) = line.trim().split_once(' ')?;
        Some((u64::from_str_radix(address, 16).ok()?, name.trim().to_owned()))
    };
    script.lines().filter_map(sample).collect()
}

/// There must be samples in images, named after the module that they are for.
fn assert_named(samples: &[(u64, String)]) {
    let of = |prefix: &str| samples.iter().filter(|(_, name)| name.starts_with(prefix)).count();
    let images = of("fentry::image[libvisible-");
    assert!(images > 20, "{images} samples in images, of {}", samples.len());
    println!("visible: samples={} images={images}", samples.len());
}

#[test]
fn perf_names_samples_by_the_perf_map() {
    if !perf_works() {
        return;
    }
    let before = maps();
    let samples = samples("perf_map", "perf-map", false);
    assert_named(&samples);
    for map in maps().iter().filter(|map| !before.contains(map)) {
        let text = fs::read_to_string(map).unwrap_or_default();
        if text.contains("fentry::image[libvisible-") {
            assert!(text.lines().any(|line| line.ends_with("] unpadded")), "{text}");
            let _ = fs::remove_file(map);
        }
    }
}

#[test]
fn perf_names_samples_by_the_jitdump() {
    if perf_works() {
        assert_named(&samples("jitdump", "jitdump=FOLDER", true));
    }
}

/// The perf maps of all processes.
fn maps() -> Vec<PathBuf> {
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    let is_map = |name: &str| name.starts_with("perf-") && name.ends_with(".map");
    let maps = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_map));
    maps.map(|entry| entry.path()).collect()
}

#[test]
fn a_folder_that_is_not_there_is_an_error_that_says_so() {
    let error = crate::support::process()
        .show(&Visibility::none().jitdump(folder("missing").join("deeper")))
        .expect_err("the folder does not exist");
    let text = error.to_string();
    assert!(text.contains("deeper/jit-") && text.contains("folder exists"), "{text}");
}
