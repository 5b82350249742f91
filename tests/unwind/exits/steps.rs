//! The stack as it is at every instruction of thunks and bodies.

use core::cell::RefCell;
use core::ops::Range;

use fentry::host::{Program, SIDE_STACK_DEPTH};

use super::{load, look_from_program};
use crate::hooked::{Hooked, is_in, runs};
use crate::support::object::Object;
use crate::walk::step;

/// At every instruction of thunks and bodies, the stack leads to the driver of the functions, and
/// on from there; `more` are hooked functions of which one may be called by the other.
pub fn step_through(
    (object, emitted): (&Object, &Range<usize>),
    driver: &str,
    more: &[&str],
    argument: i64,
) {
    // SAFETY: a driver, which may be called with any number.
    let (_, steps) = unsafe { step(object.address(driver), argument, emitted) };
    assert!(steps.len() > 20, "{} instructions", steps.len());
    let mut tail = None;
    for seen in &steps {
        let place = seen.at - emitted.start;
        let of_driver = |address: &&usize| {
            !emitted.contains(*address) && !more.iter().any(|name| is_in(**address, name))
        };
        let callers: Vec<usize> = seen.callers.iter().filter(of_driver).copied().collect();
        assert!(callers.len() > 3, "at {place:#x}: {:x?}", seen.callers);
        assert!(is_in(callers[0], driver), "at {place:#x}: {:x?}", seen.callers);
        let rest = &callers[1..];
        assert_eq!(tail.get_or_insert_with(|| rest.to_vec()), rest, "at {place:#x}");
    }
}

extern "C-unwind" fn nothing(_: i64) {}

pub fn every_instruction_of_thunk_and_bodies_leads_to_the_caller() {
    let hooked = load("step");
    hooked.call_back(nothing);
    let _link = hooked.hook(look_from_program);
    let emitted = hooked.emitted("quiet");
    let functions = (&hooked.object, &emitted);
    // The first call makes the side stack.
    for _ in 0..2 {
        step_through(functions, "drive_quiet", &["quiet"], 1);
        step_through(functions, "drive_tail", &["tail_twice", "tail", "leaf"], 1);
        step_through(functions, "drive_down", &["down"], 2);
    }
    // Frames that were left are dropped, by the next call and by a return to further down.
    step_through(functions, "drive_left", &["quiet", "jumper"], 3);
    step_through(functions, "drive_landing", &["landing", "jumper"], 3);
}

pub fn every_instruction_of_a_skipped_function_leads_to_the_caller() {
    let hooked = load("step-skip");
    hooked.call_back(nothing);
    let _link = hooked.attach(Program::modify_return(|_, _| 40));
    let emitted = hooked.emitted("quiet");
    assert_eq!(hooked.driver("drive_quiet")(1), 80);
    step_through((&hooked.object, &emitted), "drive_quiet", &["quiet"], 1);
}

#[test]
fn every_instruction_of_an_unhooked_call_leads_to_the_caller() {
    thread_local! {
        static INNER: RefCell<Option<(Hooked, Range<usize>)>> = const { RefCell::new(None) };
    }

    /// Steps where the side stack is full.
    extern "C-unwind" fn step_inside(_: i64) {
        let ran = runs();
        INNER.with_borrow(|inner| {
            let (hooked, emitted) = inner.as_ref().expect("set before");
            step_through((&hooked.object, emitted), "drive_quiet", &["quiet"], 1);
        });
        assert_eq!(runs(), ran, "no program runs");
    }

    let hooked = load("step-full");
    hooked.call_back(step_inside);
    let _link = hooked.hook(look_from_program);
    let emitted = hooked.emitted("quiet");
    let down = hooked.driver("drive_down");
    INNER.set(Some((hooked, emitted)));
    let depth = u64::from(SIDE_STACK_DEPTH);
    down(i64::from(SIDE_STACK_DEPTH) - 1);
    assert_eq!(runs(), (depth, depth));
}
