//! Names and frames in gdb.

use std::process::Command;

use crate::support::skipped;
use crate::victim;

/// Runs the victim under gdb and gives what that prints.
fn gdb(exits: bool, commands: &[&str]) -> Option<String> {
    if let Err(error) = Command::new("gdb").arg("--version").output() {
        skipped("names in gdb", &format!("gdb: {error}"));
        return None;
    }
    let mut words = vec!["-nx", "-batch", "-iex", "set debuginfod enabled off"];
    for command in [
        "set breakpoint pending on",
        "set pagination off",
        "set width 0",
        // What threads are stopped with.
        "handle SIG34 SIG35 SIG36 nostop noprint pass",
    ] {
        words.extend(["-ex", command]);
    }
    for command in commands {
        words.extend(["-ex", command]);
    }
    words.push("--args");
    let output =
        victim::command("gdb", &words, "debugger", 3, exits).output().expect("gdb is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + "\nand as errors:\n"
        + &String::from_utf8_lossy(&output.stderr);
    if text.contains("ptrace: Operation not permitted") {
        skipped("names in gdb", "this process may not trace");
        return None;
    }
    Some(text)
}

/// The names of the frames that `bt` has printed, those of the first backtrace first.
fn frames(text: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('#')) {
        let (number, rest) = line.split_once(' ').expect("gdb numbers frames");
        let rest = rest.trim_start();
        let rest = rest.split_once(" in ").map_or(rest, |(_, rest)| rest);
        let name = rest.split(" (").next().unwrap_or_default().to_owned();
        match all.last_mut() {
            Some(trace) if number != "#0" => trace.push(name),
            _ => all.push(vec![name]),
        }
    }
    all
}

/// A backtrace that was taken in a program or a function shows what is named here, one behind
/// the other, and then who has called it all.
fn assert_shows(trace: &[String], shown: &[&str], text: &str) {
    let first = trace.iter().position(|name| name.starts_with(shown[0]));
    let trace = &trace[first.unwrap_or_else(|| panic!("{shown:?} in {trace:?}\n{text}"))..];
    for (name, wanted) in trace.iter().zip(shown) {
        assert!(name.starts_with(wanted), "{wanted} in {trace:?}\n{text}");
    }
    let [caller, test, ..] = &trace[shown.len()..] else { panic!("{trace:?}\n{text}") };
    assert_eq!(caller, "call_them", "{text}");
    assert!(test.ends_with("victim::victim"), "{text}");
}

const IMAGE: &str = "fentry::image[libvisible-";

#[test]
fn gdb_shows_who_called_a_program() {
    // At the first stop in a program, then at the second, which is for the other function.
    let commands = ["break visible::victim::fentry_visible_program", "run", "bt", "continue", "bt"];
    let Some(text) = gdb(false, &commands) else { return };
    let traces = frames(&text);
    assert_eq!(traces.len(), 2, "{text}");
    for (trace, function) in traces.iter().zip(["padded", "unpadded"]) {
        assert!(trace[0].ends_with("fentry_visible_program"), "{text}");
        assert_shows(trace, &[IMAGE, function], &text);
    }
}

#[test]
fn gdb_shows_who_called_a_function_with_exit_programs() {
    let mut commands = vec![
        "break visible::victim::fentry_visible_program",
        "break visible::victim::fentry_visible_exit",
        "set language c",
        "break inside",
        "run",
    ];
    // Entry, function, exit, of one and then of the other.
    for _ in 0..6 {
        commands.extend(["bt", "continue"]);
    }
    let Some(text) = gdb(true, &commands) else { return };
    let traces = frames(&text);
    assert_eq!(traces.len(), 6, "{text}");
    for (traces, function) in traces.chunks(3).zip(["padded", "unpadded"]) {
        assert!(traces[0][0].ends_with("fentry_visible_program"), "{text}");
        assert_shows(&traces[0], &[IMAGE, function], &text);
        assert_shows(&traces[1], &["inside", function, "fentry::thunk["], &text);
        assert!(traces[2][0].ends_with("fentry_visible_exit"), "{text}");
        assert_shows(&traces[2], &[IMAGE, function], &text);
    }
}

#[test]
fn gdb_shows_a_thunk_and_forgets_what_was_freed() {
    let commands = [
        "break visible::victim::fentry_visible_program",
        "run",
        "delete",
        "set language c",
        "tbreak *unpadded",
        "continue",
        // Over the patch site, which calls the thunk.
        "stepi",
        "bt",
        "echo \\nattached:\\n",
        "maint info jit",
        "tbreak all_is_freed",
        "continue",
        "echo \\nfreed:\\n",
        "maint info jit",
    ];
    let Some(text) = gdb(false, &commands) else { return };
    let traces = frames(&text);
    let Some([thunk, hooked, caller, ..]) = traces.first().map(Vec::as_slice) else {
        panic!("{text}")
    };
    assert!(thunk.starts_with("fentry::thunk[") && thunk.ends_with("] unpadded"), "{text}");
    assert_eq!((&**hooked, &**caller), ("unpadded", "call_them"), "{text}");
    // What gdb knows of: a line for each object, which begins with an address.
    let objects = |after: &str| {
        let (_, list) = text.split_once(after).unwrap_or_else(|| panic!("{text}"));
        let lines = list.lines().skip_while(|line| !line.starts_with("jit_code_entry")).skip(1);
        lines.take_while(|line| line.starts_with("0x")).count()
    };
    // Images and thunk of one attachment, images of the other; the thunk stays.
    assert_eq!((objects("attached:"), objects("freed:")), (2, 1), "{text}");
}
