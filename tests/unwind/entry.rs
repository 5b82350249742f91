//! Functions with entry programs, through the host, which registers the tables.

use std::backtrace::Backtrace;
use std::sync::{Arc, Mutex};

use fentry::host::Program;

use crate::hooked::{Hooked, emitted, is_in, within};
use crate::is_alone;
use crate::support::{process, settle};
use crate::walk::{addresses, step};

/// A function with padding and one without, which needs a thunk; and what calls each.
const SOURCE: &str = "
#define PLAIN __attribute__((noinline))
PLAIN __attribute__((patchable_function_entry(21, 16))) long padded(long n)
{ __asm__(\"\"); return n + 1; }
PLAIN __attribute__((patchable_function_entry(5, 0))) long unpadded(long n)
{ __asm__(\"\"); return n + 2; }
PLAIN long drive_padded(long n) { long a = padded(n); return a * 2; }
PLAIN long drive_unpadded(long n) { long a = unpadded(n); return a * 2; }
";

/// Attaches a program that calls `look`, calls each function by its driver, and detaches.
fn attached(
    name: &str,
    look: impl Fn() + Send + Sync + 'static,
    mut call: impl FnMut(&Hooked, &str),
) {
    let hooked = Hooked::load(name, SOURCE, "c", 2);
    let link = hooked.attach(Program::new(move |_, _| look()));
    for function in ["padded", "unpadded"] {
        call(&hooked, function);
    }
    link.detach().expect("an attached link detaches");
    settle(process());
}

/// Programs are called by an image, that by the function, that by its caller.
#[test]
fn a_backtrace_in_a_program_goes_on_in_the_function_and_its_callers() {
    let traces = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&traces);
    let look = move || taken.lock().expect("nobody panicked").push(addresses());
    attached("unwind-entry", look, |functions, function| {
        let driver = format!("drive_{function}");
        let drive = functions.driver(&driver);
        assert_eq!(drive(1), if function == "padded" { 4 } else { 6 });
        let traces = core::mem::take(&mut *traces.lock().expect("nobody panicked"));
        let emitted = emitted();
        let [trace] = &traces[..] else { panic!("one call, one program") };
        let image = trace.iter().position(|address| within(&emitted, *address));
        let [_, hooked, caller, rest @ ..] = &trace[image.expect("the image")..] else {
            panic!("{trace:x?}")
        };
        assert!(is_in(*hooked, function), "{trace:x?}");
        assert!(is_in(*caller, &driver), "{trace:x?}");
        let here = addresses();
        // The first call is from another place of this closure.
        assert_eq!(rest[1..], here[3..], "the same callers as here");
    });
}

#[test]
fn backtraces_name_the_function_and_its_caller() {
    if !is_alone("entry::backtraces_name_the_function_and_its_caller") {
        return;
    }
    let texts = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&texts);
    let look = move || {
        let text = Backtrace::force_capture().to_string();
        taken.lock().expect("nobody panicked").push(text);
    };
    attached("unwind-names", look, |functions, function| {
        let driver = format!("drive_{function}");
        let drive = functions.driver(&driver);
        drive(1);
        let text = texts.lock().expect("nobody panicked").pop().expect("one call, one program");
        let place = |name: &str| {
            let line = text.lines().position(|line| line.trim_end().ends_with(name));
            line.unwrap_or_else(|| panic!("{name} is missing:\n{text}"))
        };
        assert!(place(&format!(": {function}")) < place(&format!(": {driver}")), "{text}");
        assert!(place(&driver) < place("backtraces_name_the_function_and_its_caller"), "{text}");
    });
}

#[test]
fn every_instruction_of_image_and_thunk_leads_to_the_caller() {
    attached(
        "unwind-step",
        || {},
        |functions, function| {
            let driver = format!("drive_{function}");
            let watched = functions.emitted(function);
            // SAFETY: a driver, which may be called with any number.
            let (_, steps) = unsafe { step(functions.address(&driver), 1, &watched) };
            assert!(steps.len() > 30, "{} instructions", steps.len());
            for seen in &steps {
                let place = seen.at - watched.start;
                let mut callers = seen.callers.iter().skip_while(|at| watched.contains(at));
                let mut next = |name: &str| {
                    let found = callers.next().is_some_and(|address| is_in(*address, name));
                    assert!(found, "{name} at {place:#x}: {:x?}", seen.callers);
                };
                next(function);
                next(&driver);
                assert!(callers.count() > 3, "at {place:#x}: {:x?}", seen.callers);
            }
        },
    );
}
