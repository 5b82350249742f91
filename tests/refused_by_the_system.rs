//! What the operating system refuses, and what a full address space does: each in a process of
//! its own, because it cannot be undone.

mod support;

use fentry::attach;
use fentry::host::{AttachError, HostError, OpenError, Process};
use support::four::{PADDED, assert_says, attach, build, call_numbered, counter, find, numbered};
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
fn without_room_in_reach_nothing_is_attached() {
    in_child("without_room_in_reach_nothing_is_attached", || {
        let object = build("noroom", &numbered("noroom", 4), "c", PADDED);
        let (process, functions) = find(&object);
        let before = object.text();
        fill_address_space_around(object.address("noroom_0"));
        let error = attach(process, &functions, counter().1).unwrap_err();
        let AttachError::Engine { cause, .. } = &error else { panic!("{error:?}") };
        let attach::AttachError::Images { cause, .. } = &**cause else { panic!("{error:?}") };
        assert!(matches!(cause, HostError::Memory(_)), "{error:?}");
        assert_says(&error, &["GiB"]);
        assert!(object.text() == before, "a refused attachment has written text");
        call_numbered(&object, "noroom", 4);
    });
}
