//! What the operating system refuses, and what a full address space does: each in a process of
//! its own, because it cannot be undone.

mod support;

use fentry::host::{HostError, OpenError, Process};
use support::four::{PADDED, assert_says, build, call_numbered, numbered};
use support::hostile::{fill_address_space_around, forbid_system_call, in_child};

#[test]
fn without_membarrier_a_process_is_not_opened() {
    in_child("without_membarrier_a_process_is_not_opened", || {
        forbid_system_call(libc::SYS_membarrier);
        let error = Process::open().unwrap_err();
        assert!(matches!(&error, OpenError::Host(HostError::Cores(_))), "{error:?}");
        assert_says(&error, &["membarrier"]);
    });
}

/// Emitted code must be within reach of the text that uses it; here nothing is free there.
#[test]
fn without_room_in_reach_a_module_is_not_known() {
    in_child("without_room_in_reach_a_module_is_not_known", || {
        let process = support::process();
        let object = build("noroom", &numbered("noroom", 4), "c", PADDED);
        fill_address_space_around(object.address("noroom_0"));
        let error = process.refresh().unwrap_err();
        assert!(matches!(&error, OpenError::Host(HostError::Memory(_))), "{error:?}");
        assert_says(&error, &["GiB"]);
        assert!(process.functions().named("noroom_0").is_empty());
        call_numbered(&object, "noroom", 4);
    });
}
