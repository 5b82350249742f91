//! A survey: every thread has been outside of given code, once.
//!
//! It is for code that no thread enters any more. Whoever was seen outside once stays so, and
//! whoever is started later begins outside. So threads are looked at one by one, and nobody is
//! held. How, depends on what a thread does:
//!
//! | | how | what the thread notices |
//! |---|---|---|
//! | it sleeps, or is stopped | `/proc` tells where; its stack is read, and it has not run meanwhile | nothing |
//! | it runs | a real-time signal, in whose handler it looks for itself | an interruption; `EINTR` if it goes to sleep that moment |
//! | it runs and blocks all signals | a helper process stops it by `ptrace(2)` ([`helper`]) | an interruption |
//!
//! Nobody has to come by anywhere, or to unblock anything. What a thread costs: four files of
//! `/proc` if it sleeps, a signal if it runs, two context switches and a process if it is deaf.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;
use std::vec::Vec;

use rustix::io::Errno;

use super::gather::own_tid;
use super::helper::{self, Finding};
use super::list::{self, Place, Status};
use super::signal::{self, Hold, Question};
use super::stacks::{OwnMemory, Stacks};
use super::{ThreadsError, Turn};

/// How long a thread may block every signal before it is stopped: glibc's do while they start
/// and end.
const DEAF: Duration = Duration::from_millis(10);
/// How long nobody answers before it is looked why, in nanoseconds.
const SILENCE: i64 = 1_000_000;

/// The threads that existed when it began, and have not been seen outside.
#[derive(Debug)]
pub(in crate::host) struct Survey {
    unseen: Vec<i32>,
    deaf: Deaf,
}

/// Threads that blocked every signal when they were first asked, and when that was: from one
/// survey to the next.
#[derive(Debug, Default)]
pub(in crate::host) struct Deaf(Vec<(i32, Instant)>);

impl Deaf {
    /// Whether a thread that is deaf now has been so before, long enough ago.
    fn has_been(&mut self, tid: i32) -> bool {
        match self.0.iter().find(|(known, _)| *known == tid) {
            Some((_, since)) => since.elapsed() > DEAF,
            None => {
                self.0.push((tid, Instant::now()));
                false
            }
        }
    }
}

/// How a look at one thread went.
enum Look {
    Outside,
    Inside,
    /// It runs.
    Runs,
}

impl Survey {
    /// Of the threads that exist now. `deaf` is from the last survey.
    ///
    /// # Errors
    /// [`ThreadsError::Proc`], [`ThreadsError::Restless`].
    pub(in crate::host) fn begin(mut deaf: Deaf) -> Result<Self, ThreadsError> {
        let mut unseen = Vec::new();
        match list::all(&mut unseen) {
            Ok(true) => {
                deaf.0.retain(|(tid, _)| unseen.contains(tid));
                Ok(Self { unseen, deaf })
            }
            Ok(false) => Err(ThreadsError::Restless { started: unseen.len() }),
            Err(errno) => Err(ThreadsError::Proc { errno }),
        }
    }

    /// What the next survey is begun with.
    pub(in crate::host) fn end(self) -> Deaf {
        self.deaf
    }

    /// Looks at the threads until all have been seen outside of what is `watched`, or until
    /// `deadline`; at least once. Gives a thread that still seems to be inside, if there is one.
    ///
    /// Of the calling thread's stack, `own_from` and what is above it is looked at: below are
    /// frames of this library, which hold addresses of code without returning to it.
    ///
    /// # Errors
    /// [`ThreadsError`]: a thread cannot be looked at.
    pub(in crate::host) fn look(
        &mut self,
        own_from: u64,
        watched: &[Range<u64>],
        deadline: Instant,
    ) -> Result<Option<i32>, ThreadsError> {
        let proc = |errno| ThreadsError::Proc { errno };
        let _turn = Turn::take()?;
        let memory = Arc::new(OwnMemory::open().map_err(proc)?);
        let watched: Arc<[Range<u64>]> = watched.into();
        loop {
            let stacks = Arc::new(Stacks::read().map_err(proc)?);
            let (watched, memory) = (Arc::clone(&watched), Arc::clone(&memory));
            let question = Question { watched, stacks, memory };
            if let Some(own) = self.look_at_own(own_from, &question) {
                // It does not move while it waits.
                return Ok(Some(own));
            }
            let mut runs = Vec::new();
            self.unseen.retain(|&tid| match look_asleep(tid, &question) {
                Look::Outside => false,
                Look::Inside => true,
                Look::Runs => {
                    runs.push(tid);
                    true
                }
            });
            let failed = self.ask(&runs, &question, deadline)?;
            let Some(&tid) = self.unseen.first() else { return Ok(None) };
            if Instant::now() > deadline {
                return failed.map_or(Ok(Some(tid)), Err);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the calling thread is inside.
    fn look_at_own(&mut self, own_from: u64, question: &Question) -> Option<i32> {
        let own = own_tid();
        let position = self.unseen.iter().position(|&tid| tid == own)?;
        // It is in this function, which nobody watches.
        let outside = !signal::on_alternate_stack() && question.is_outside(0, own_from).ok()?;
        if !outside {
            return Some(own);
        }
        self.unseen.swap_remove(position);
        None
    }

    /// Asks those that run. An error is of a thread that cannot be asked, now.
    fn ask(
        &mut self,
        runs: &[i32],
        question: &Question,
        deadline: Instant,
    ) -> Result<Option<ThreadsError>, ThreadsError> {
        let blocked: Vec<_> = runs
            .iter()
            .filter_map(|&tid| Some((tid, Status::of(tid)?)))
            .filter(|(tid, status)| !status.has_ended() && !list::is_kernel_worker(*tid))
            .collect();
        // Ended, or threads of the kernel's, which never run this process's text.
        self.unseen.retain(|tid| !runs.contains(tid) || blocked.iter().any(|(of, _)| of == tid));
        let (signal, mut failed) = (signal::least_blocked(blocked.iter().map(|(_, s)| s)), None);
        let hears = |status: &Status| signal.is_some_and(|signal| !status.blocks(signal));
        let (asked, deaf): (Vec<_>, Vec<_>) = blocked.iter().partition(|(_, status)| hears(status));
        if let Some(signal) = signal.filter(|_| !asked.is_empty()) {
            let hold = Hold::new(signal, asked.len(), Some(question.clone()))
                .map_err(|errno| ThreadsError::Signal { tid: own_tid(), errno })?;
            let mut waiting = Vec::new();
            for (slot, &(tid, _)) in asked.iter().enumerate() {
                match hold.ask(tid, slot) {
                    Ok(()) => waiting.push((tid, slot)),
                    Err(Errno::SRCH) => self.saw_outside(tid),
                    Err(errno) => failed = Some(ThreadsError::Signal { tid, errno }),
                }
            }
            self.hear(&hold, waiting, question, deadline);
        }
        for &(tid, status) in &deaf {
            if self.deaf.has_been(tid) {
                match helper::look(tid, question) {
                    Finding::Seen { outside: true } | Finding::Refused(Errno::SRCH) => {
                        self.saw_outside(tid);
                    }
                    Finding::Seen { outside: false } | Finding::Late => {}
                    Finding::Refused(errno) => {
                        failed = Some(ThreadsError::Untraceable { tid, name: status.name, errno });
                    }
                }
            }
        }
        Ok(failed)
    }

    /// Waits for the answers of those in `waiting`.
    fn hear(
        &mut self,
        hold: &Hold,
        mut waiting: Vec<(i32, usize)>,
        question: &Question,
        deadline: Instant,
    ) {
        loop {
            let answers = hold.answers();
            waiting.retain(|&(tid, slot)| {
                let Some(slot) = hold.slot(slot).filter(|slot| slot.has_answered()) else {
                    return true;
                };
                if slot.is_outside() {
                    self.saw_outside(tid);
                }
                false
            });
            if waiting.is_empty() || Instant::now() > deadline {
                return;
            }
            hold.wait(answers, SILENCE);
            if hold.answers() == answers {
                // Asleep where no signal wakes it, perhaps, or ended, or deaf since.
                waiting.retain(|&(tid, _)| match look_asleep(tid, question) {
                    Look::Outside => {
                        self.saw_outside(tid);
                        false
                    }
                    Look::Inside => true,
                    Look::Runs => Status::of(tid).is_some_and(|s| !s.blocks(hold.signal())),
                });
            }
        }
    }

    fn saw_outside(&mut self, tid: i32) {
        self.unseen.retain(|&unseen| unseen != tid);
    }
}

/// Looks at a thread that sleeps, without waking it. One that is gone is outside.
fn look_asleep(tid: i32, question: &Question) -> Look {
    let place = Place::of(tid);
    let (instruction, stack) = match place {
        Place::Gone => return Look::Outside,
        Place::Running => return Look::Runs,
        Place::Asleep { instruction, stack } => (instruction, stack),
    };
    let before = Status::of(tid).filter(|status| !status.has_ended());
    let Some(before) = before else { return Look::Outside };
    let seen = question.is_outside(instruction, stack);
    // It sleeps now, where it slept before, and has not left a core in between: it has not run.
    let same = Place::of(tid) == place
        && Status::of(tid).is_some_and(|after| after.switches == before.switches);
    match seen {
        _ if !same => Look::Runs,
        Ok(true) => Look::Outside,
        // It never runs this process's text.
        Err(_) if list::is_kernel_worker(tid) => Look::Outside,
        Ok(false) | Err(_) => Look::Inside,
    }
}
