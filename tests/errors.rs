//! What cannot be done is refused as a whole, and the error names the function, says what was
//! found there and what to do.

mod support;

use core::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fentry::attach::{AttachError as EngineError, MAX_PROGRAMS};
use fentry::host::discover::Reason;
use fentry::host::{AttachError, Cookies, FindError, Stopped};
use fentry::patch::Conflict;
use support::four::{
    PADDED, assert_says, attach, build, call_numbered, counter, find, load_four, numbered,
};
use support::hostile::overwrite;

/// One test at a time: they write text by hand.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_function_without_patch_site_says_how_to_compile() {
    let _alone = alone();
    let source = "\
        __attribute__((patchable_function_entry(0, 0))) long bare_of_site(long a) { return a; }\n\
        __attribute__((patchable_function_entry(3, 0))) long short_of_site(long a) { return a; }\n\
        long with_site(long a) { return a; }";
    let object = build("nosite", source, "c", PADDED);
    let (process, functions) = find(&object);
    assert_eq!(functions.iter().map(|found| found.name()).collect::<Vec<_>>(), ["with_site"]);

    let error = process.find("bare_of_site").unwrap_err();
    assert!(matches!(&error, FindError::NoPatchSite { .. }), "{error:?}");
    assert_says(&error, &["bare_of_site", &object.module(), "-fpatchable-function-entry="]);

    let error = process.find("short_of_site").unwrap_err();
    let FindError::Rejected { reason: Reason::ShortSite { found, nops: 3 }, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(found[..3], [0x90; 3]);
    assert_says(&error, &["short_of_site", "3 bytes", "-fpatchable-function-entry="]);

    let error = process.find("no_function_has_this_name").unwrap_err();
    assert!(matches!(&error, FindError::NoSuchFunction { .. }), "{error:?}");
    assert_says(&error, &["no_function_has_this_name", "spelling"]);

    assert_eq!(process.find("with_site").expect("it has a patch site").len(), 1);
}

#[test]
fn nothing_to_attach_to_is_an_error() {
    let _alone = alone();
    let (_, process, functions) = load_four("nothing");
    let none = functions.named("no_function_has_this_name");
    assert!(none.is_empty());
    let error = attach(process, &none, counter().1).unwrap_err();
    assert!(
        matches!(&error, AttachError::Engine { cause, .. } if **cause == EngineError::NoFunctions),
        "{error:?}"
    );
    assert_says(&error, &["no functions", "empty"]);

    // SAFETY: there is no program.
    let error = unsafe { process.attach(&functions, Vec::new()) }.unwrap_err();
    assert!(
        matches!(&error, AttachError::Engine { cause, .. } if **cause == EngineError::NoPrograms),
        "{error:?}"
    );
    assert!(functions.glob("[a").is_err(), "an unclosed class is no pattern");
}

#[test]
fn a_site_that_was_taken_before_discovery_is_left_out() {
    let _alone = alone();
    let object = build("taken", &numbered("taken", 4), "c", PADDED);
    let site = object.address("taken_1");
    // SAFETY: nobody runs `taken_1`.
    unsafe { overwrite(site, &[0xe9, 1, 2, 3, 4]) };
    let (process, functions) = find(&object);
    let names: Vec<_> = functions.iter().map(|function| function.name()).collect();
    assert_eq!(names, ["taken_0", "taken_2", "taken_3"]);
    let error = process.find("taken_1").unwrap_err();
    let FindError::Rejected { reason, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*reason, Reason::ForeignBytes { found: [0xe9, 1, 2, 3, 4] });
    assert_says(&error, &["taken_1", "e9", "tracer"]);
}

/// Others' bytes at one or two of four sites: nothing is attached anywhere, all who stopped
/// it are named, and no byte has changed.
#[test]
fn a_site_that_was_taken_since_stops_the_whole_batch() {
    let _alone = alone();
    let (object, process, functions) = load_four("since");
    let (b, d) = (object.address("since_1"), object.address("since_3"));
    // SAFETY: five readable bytes of text each.
    let [old_b, old_d] = [b, d].map(|site| unsafe { *(site as *const [u8; 5]) });
    // SAFETY: nobody runs these functions.
    unsafe {
        overwrite(b, &[0xe9, 9, 8, 7, 6]);
        overwrite(d, &[0xcc]);
    }
    let before = object.text();
    let (count, program) = counter();
    let error = attach(process, &functions, program).unwrap_err();
    assert!(object.text() == before, "a refused batch has written text");
    let AttachError::Stopped(stopped) = &error else { panic!("{error:?}") };
    let found: Vec<_> = stopped
        .iter()
        .map(|Stopped { function, conflict }| {
            let Conflict::Changed { site, expected, found } = conflict else {
                panic!("{conflict:?}")
            };
            (function.split(' ').next().unwrap_or_default(), site.get() as usize, *expected, *found)
        })
        .collect();
    let breakpoint = [0xcc, old_d[1], old_d[2], old_d[3], old_d[4]];
    assert_eq!(
        found,
        [("since_1", b, old_b, [0xe9, 9, 8, 7, 6]), ("since_3", d, old_d, breakpoint)]
    );
    assert_says(&error, &["since_1", "since_3", &object.module()]);

    // SAFETY: nobody runs these functions.
    unsafe {
        overwrite(b, &old_b);
        overwrite(d, &old_d);
    }
    call_numbered(&object, "since", 4);
    assert_eq!(count.load(Ordering::Relaxed), 0, "a refused program ran");
    let (count, program) = counter();
    let link = attach(process, &functions, program).expect("the sites are free again");
    call_numbered(&object, "since", 4);
    assert_eq!(count.load(Ordering::Relaxed), 4);
    link.detach().expect("an attached link detaches");
}

#[test]
fn a_slot_that_was_taken_stops_the_batch() {
    let _alone = alone();
    let (object, process, functions) = load_four("slot");
    let slot = functions.named("slot_2").iter().next().map(|function| {
        let slot = function.found().layout.slot(function.entry());
        slot.expect("sixteen bytes of padding have a slot").get() as usize
    });
    let slot = slot.expect("slot_2 was found");
    // SAFETY: padding is not executed.
    unsafe { overwrite(slot, &[0xe9, 1, 2, 3, 4]) };
    let before = object.text();
    let error = attach(process, &functions, counter().1).unwrap_err();
    assert!(object.text() == before, "a refused batch has written text");
    let AttachError::Engine { function: Some(function), cause } = &error else {
        panic!("{error:?}")
    };
    assert!(function.starts_with("slot_2 "), "{function}");
    assert!(
        matches!(**cause, EngineError::SlotTaken { found, .. } if found[..5] == [0xe9, 1, 2, 3, 4]),
        "{cause:?}"
    );
    assert_says(&error, &["slot_2", "another tool"]);
}

#[test]
fn a_site_that_changed_under_a_link_keeps_the_link() {
    let _alone = alone();
    let (object, process, functions) = load_four("under");
    let before = object.address("under_0");
    let (count, program) = counter();
    let link = attach(process, &functions, program).expect("all have patch sites");
    let site = object.address("under_2");
    // SAFETY: five readable bytes of text.
    let ours = unsafe { *(site as *const [u8; 5]) };
    assert_eq!(ours[0], 0xe8, "an attached site calls");
    // SAFETY: nobody runs `under_2`.
    unsafe { overwrite(site, &[0xcc]) };
    let attached = object.text();

    let error = link.detach().unwrap_err();
    assert!(object.text() == attached, "a refused detach has written text");
    let AttachError::Stopped(stopped) = &error.cause else { panic!("{error:?}") };
    assert_eq!(stopped.len(), 1, "{error}");
    assert!(stopped[0].function.starts_with("under_2 "), "{error}");
    assert!(
        matches!(stopped[0].conflict, Conflict::Changed { expected, found, .. }
            if expected == ours && found[0] == 0xcc),
        "{error:?}"
    );
    assert_says(&error, &["still attached", "under_2"]);
    // SAFETY: `under_0` is a function of this type.
    let call: extern "C" fn(i64) -> i64 = unsafe { core::mem::transmute(before) };
    assert_eq!(call(1), 1);
    assert_eq!(count.load(Ordering::Relaxed), 1, "the other functions are still attached");
    let error_of_switch = error.link.disable().unwrap_err();
    assert!(matches!(error_of_switch, AttachError::Stopped(_)), "{error_of_switch:?}");

    // SAFETY: nobody runs `under_2`.
    unsafe { overwrite(site, &ours) };
    call_numbered(&object, "under", 4);
    assert_eq!(count.load(Ordering::Relaxed), 5);
    error.link.detach().expect("the site is ours again");
    call_numbered(&object, "under", 4);
    assert_eq!(count.load(Ordering::Relaxed), 5);
}

#[test]
fn attaching_twice_runs_both_up_to_a_limit_that_is_an_error() {
    let _alone = alone();
    let (object, process, functions) = load_four("twice");
    let (count, program) = counter();
    let mut links = Vec::new();
    for _ in 0..MAX_PROGRAMS {
        links.push(attach(process, &functions, program.clone()).expect("below the limit"));
    }
    call_numbered(&object, "twice", 4);
    assert_eq!(count.swap(0, Ordering::Relaxed), 4 * MAX_PROGRAMS as u64);
    let before = object.text();
    let error = attach(process, &functions, program.clone()).unwrap_err();
    assert!(object.text() == before, "a refused attachment has written text");
    let AttachError::Engine { function: Some(function), cause } = &error else {
        panic!("{error:?}")
    };
    assert!(function.starts_with("twice_"), "{function}");
    assert!(matches!(**cause, EngineError::TooManyPrograms { .. }), "{cause:?}");
    assert_says(&error, &["16 programs", "detach"]);
    links.swap_remove(3).detach().expect("an attached link detaches");
    links.push(attach(process, &functions, program).expect("there is room again"));
    call_numbered(&object, "twice", 4);
    assert_eq!(count.swap(0, Ordering::Relaxed), 4 * MAX_PROGRAMS as u64);
    drop(links);
    call_numbered(&object, "twice", 4);
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[test]
fn too_few_cookies_are_an_error() {
    let _alone = alone();
    let (object, process, functions) = load_four("cookies");
    let before = object.text();
    let program = counter().1.cookies(Cookies::Each(vec![1, 2, 3]));
    let error = attach(process, &functions, program).unwrap_err();
    assert!(object.text() == before, "a refused attachment has written text");
    let AttachError::Engine { cause, .. } = &error else { panic!("{error:?}") };
    assert_eq!(**cause, EngineError::CookieCount { cookies: 3, functions: 4 });
    assert_says(&error, &["3 cookies", "4 functions"]);
}

#[test]
fn switching_twice_changes_nothing_and_a_leaked_link_stays() {
    let _alone = alone();
    let (object, process, functions) = load_four("leaked");
    let (count, program) = counter();
    let link = attach(process, &functions, program).expect("all have patch sites");
    link.disable().expect("on");
    link.disable().expect("off already");
    call_numbered(&object, "leaked", 4);
    assert_eq!(count.load(Ordering::Relaxed), 0);
    link.enable().expect("off");
    link.enable().expect("on already");
    call_numbered(&object, "leaked", 4);
    assert_eq!(count.load(Ordering::Relaxed), 4, "enabled twice, the program runs once");
    link.leak();
    support::settle(process);
    call_numbered(&object, "leaked", 4);
    assert_eq!(count.load(Ordering::Relaxed), 8);
}

/// Sites that begin anywhere, as unoptimised functions do. One in sixteen cannot be rewritten
/// while threads run; it is named, and the others are hooked.
#[test]
fn a_site_that_cannot_be_stored_at_once_is_named() {
    let _alone = alone();
    let function = |offset| {
        format!(
            ".p2align 4\n.skip {offset}, 0x90\n.globl at_{offset}\n.type at_{offset}, @function\n\
             at_{offset}: .byte 0x0f, 0x1f, 0x44, 0, 0\nlea {offset}(%rdi), %rax\nret\n\
             .size at_{offset}, .-at_{offset}\n"
        )
    };
    let mut source = String::from(".text\n");
    (0..16).for_each(|offset| source += &function(offset));
    source += ".section __patchable_function_entries,\"awo\",@progbits,.text\n";
    (0..16).for_each(|offset| source += &format!(".quad at_{offset}\n"));
    source += ".section .note.GNU-stack,\"\",@progbits\n";
    let object = build("straddles", &source, "s", &[]);
    let (process, functions) = find(&object);
    assert_eq!(functions.len(), if std::is_x86_feature_detected!("avx") { 15 } else { 14 });
    assert!(functions.named("at_15").is_empty());
    let error = process.find("at_15").unwrap_err();
    assert_says(&error, &["at_15", "-falign-functions=16"]);
    let before = object.text();
    let (count, program) = counter();
    let link = attach(process, &functions, program).expect("all others can be stored at once");
    for function in functions.iter() {
        // SAFETY: all of them are functions of this type.
        let call: extern "C" fn(i64) -> i64 = unsafe { object.function(&function.name()) };
        let offset = function.entry().get() % 16;
        assert_eq!(call(3), 3 + offset as i64);
    }
    assert_eq!(count.load(Ordering::Relaxed), functions.len() as u64);
    link.detach().expect("an attached link detaches");
    process.synchronize().expect("no thread is inside");
    assert!(object.text() == before, "detaching left something behind");
}

/// A function that demangles to one of this library's runs whenever a program does.
#[test]
fn the_librarys_own_functions_are_refused() {
    let _alone = alone();
    let source = "\
        long own(long) __asm__(\"_ZN6fentry4host7process5probe17h0123456789abcdefE\");\n\
        long own(long a) { return a; }\n\
        long user(long) __asm__(\"_ZN11fentry_user5probe17h0123456789abcdefE\");\n\
        long user(long a) { return a; }\n";
    let object = build("own", source, "c", PADDED);
    let (process, functions) = find(&object);
    assert_eq!(functions.len(), 2);
    let before = object.text();
    let error = attach(process, &functions, counter().1).unwrap_err();
    assert!(object.text() == before, "a refused attachment has written text");
    let AttachError::OwnFunction { function } = &error else { panic!("{error:?}") };
    assert!(function.contains("fentry::host::process::probe"), "{function}");
    assert_says(&error, &["selection"]);
    let others = functions.glob("fentry_user::*").expect("a pattern");
    attach(process, &others, counter().1)
        .expect("a crate whose name begins alike is another")
        .detach()
        .expect("an attached link detaches");
}
