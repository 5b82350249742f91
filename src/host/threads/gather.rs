//! Holding every other thread. Allocates nothing from the first signal on.
//!
//! A thread may wait, with every signal blocked, for a lock that a held thread has: glibc's
//! does so at its end, for the list of stacks that a thread held in `pthread_create` has
//! locked. Such a thread answers only when the others have been let go. So a hold is short
//! at first: without all answers in time everybody goes on, and the next one is longer.

use core::ops::Range;
use core::time::Duration;
use std::time::Instant;
use std::vec::Vec;

use rustix::io::Errno;

use super::list::Status;
use super::signal::Hold;
use super::{Decision, ThreadName, ThreadsError, list, signal, stack_pointer, thread_count};

/// How long a thread may take to answer, over all holds.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long the first hold waits for answers. Each following one waits twice as long.
pub(super) const FIRST_HOLD: Duration = Duration::from_millis(10);
/// How long a thread may block every signal: glibc does so while it starts or ends one.
/// A busy machine may leave it there for some time.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(1);
/// How long the inspector waits before it looks why nobody answers, in nanoseconds.
const SILENCE: i64 = 1_000_000;

/// A thread listed, in the order of the slots; the calling one comes last.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) tid: i32,
    pub(super) standing: Standing,
    pub(super) decision: Decision,
    pub(super) stack_pointer: u64,
    /// The part of its stack to look at; empty until found.
    pub(super) stack: Range<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Asked.
    Pending,
    /// In the handler.
    Held,
    /// Listed, and never runs our text (again): a zombie, or a thread of the kernel's.
    Inert,
    /// Ended.
    Gone,
    /// The calling thread.
    Own,
}

impl Known {
    fn new(tid: i32, standing: Standing) -> Self {
        Self { tid, standing, decision: Decision::Leave, stack_pointer: 0, stack: 0..0 }
    }

    /// The calling thread, whose stack is looked at from here.
    pub(super) fn own() -> Self {
        Self { stack_pointer: stack_pointer(), ..Self::new(own_tid(), Standing::Own) }
    }

    /// Of the calling thread's stack, leaves out what is below this address.
    pub(super) fn look_from(&mut self, own_from: u64) {
        if self.standing == Standing::Own {
            self.stack_pointer = self.stack_pointer.max(own_from);
        }
    }
}

pub(super) fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// How an attempt to hold every other thread went.
pub(super) enum Gathered {
    /// They are held.
    All,
    /// There are more than slots.
    Crowded,
    /// Not by the deadline; let them go, and try again.
    Late(ThreadsError),
}

/// Holds every other thread, by `deadline`.
pub(super) fn gather(
    hold: &Hold,
    known: &mut Vec<Known>,
    deadline: Instant,
) -> Result<Gathered, ThreadsError> {
    let own = own_tid();
    let mut quiet_since = hold.answers();
    loop {
        let (mut listed, mut settled, mut found_own) = (0, 0, false);
        let (mut overflow, mut refused) = (false, None);
        list::for_each(|tid| {
            listed += 1;
            if tid == own {
                found_own = true;
                return;
            }
            let standing = known
                .iter()
                .find(|thread| thread.tid == tid && thread.standing != Standing::Gone)
                .map(|thread| thread.standing);
            match standing {
                Some(Standing::Pending) => {}
                Some(_) => settled += 1,
                None if known.len() == hold.capacity() => overflow = true,
                None => match hold.ask(tid, known.len()) {
                    Ok(()) => known.push(Known::new(tid, Standing::Pending)),
                    // Ended since it was listed.
                    Err(Errno::SRCH) => {}
                    // EAGAIN: as many signals are queued as RLIMIT_SIGPENDING allows.
                    Err(errno) => refused = Some((tid, errno)),
                },
            }
        })
        .map_err(|errno| ThreadsError::Proc { errno })?;
        if overflow {
            return Ok(Gathered::Crowded);
        }
        if !found_own {
            return Err(ThreadsError::Proc { errno: Errno::SRCH });
        }
        // All that were listed are held, and the kernel counts no more: a list that was cut
        // short by a thread ending is found out here.
        if settled + 1 == listed && thread_count()? == listed {
            known.push(Known::own());
            return Ok(Gathered::All);
        }
        if let Some((tid, errno)) = refused
            && (errno != Errno::AGAIN || Instant::now() > deadline)
        {
            let error = ThreadsError::Signal { tid, errno };
            return if errno == Errno::AGAIN { Ok(Gathered::Late(error)) } else { Err(error) };
        }
        while let Some(pending) = settle(hold, known) {
            let answers = hold.answers();
            if answers != quiet_since {
                quiet_since = answers;
                continue;
            }
            hold.wait(answers, SILENCE);
            if hold.answers() == answers {
                explain_silence(hold.signal(), known);
                if Instant::now() > deadline {
                    return Ok(Gathered::Late(unanswered(hold.signal(), pending)));
                }
            }
        }
        if Instant::now() > deadline {
            return Ok(Gathered::Late(ThreadsError::Restless { started: known.len() }));
        }
    }
}

/// Notes who has answered; returns one who has not.
fn settle(hold: &Hold, known: &mut [Known]) -> Option<i32> {
    let mut pending = None;
    for (index, thread) in known.iter_mut().enumerate() {
        if thread.standing == Standing::Pending {
            match hold.slot(index) {
                Some(slot) if slot.has_answered() => thread.standing = Standing::Held,
                _ => pending = Some(thread.tid),
            }
        }
    }
    pending
}

/// Notes who cannot answer.
fn explain_silence(signal: i32, known: &mut [Known]) {
    for thread in known.iter_mut().filter(|thread| thread.standing == Standing::Pending) {
        match Status::of(thread.tid) {
            None => thread.standing = Standing::Gone,
            Some(status) if status.has_ended() => thread.standing = Standing::Inert,
            Some(status) if status.blocks(signal) && list::is_kernel_worker(thread.tid) => {
                thread.standing = Standing::Inert;
            }
            Some(_) => {}
        }
    }
}

fn unanswered(signal: i32, tid: i32) -> ThreadsError {
    match Status::of(tid) {
        Some(status) if status.blocks(signal) => {
            ThreadsError::Blocked { tid, name: status.name, signal }
        }
        status => ThreadsError::Unresponsive {
            tid,
            name: status.map_or_else(ThreadName::unknown, |status| status.name),
            state: status.map_or('?', |status| char::from(status.state)),
        },
    }
}

/// A usable signal that no thread blocks for longer than it takes to start or
/// end a thread.
pub(super) fn choose_signal() -> Result<i32, ThreadsError> {
    let own = own_tid();
    let usable = signal::usable();
    let mut common = usable;
    let mut suspects = Vec::new();
    list::for_each(|tid| suspects.push(tid)).map_err(|errno| ThreadsError::Proc { errno })?;
    suspects.retain(|&tid| tid != own);
    let deadline = Instant::now() + BLOCKED_PATIENCE;
    loop {
        suspects.retain(|&tid| match Status::of(tid) {
            Some(status) if !status.has_ended() && !list::is_kernel_worker(tid) => {
                let free = common & !status.blocked;
                if free != 0 {
                    common = free;
                }
                free == 0
            }
            _ => false,
        });
        let Some(&tid) = suspects.first() else { break };
        if Instant::now() > deadline {
            let signal = signal::lowest(usable);
            let name = Status::of(tid).map_or_else(ThreadName::unknown, |status| status.name);
            return Err(ThreadsError::Blocked { tid, name, signal });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if common == 0 { Err(ThreadsError::NoSignal) } else { Ok(signal::lowest(common)) }
}
