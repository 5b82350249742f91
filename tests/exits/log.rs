//! Programs that write down that they run.

use std::sync::{Arc, Mutex};

use fentry::host::{Program, Session};

/// What programs have written down.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, event: impl ToString) {
        self.0.lock().unwrap().push(event.to_string());
    }

    pub fn take(&self) -> Vec<String> {
        core::mem::take(&mut self.0.lock().unwrap())
    }

    pub fn entry(&self, what: &'static str) -> Program {
        let log = self.clone();
        Program::new(move |_, cookie| log.add(format_args!("{what} {cookie}")))
    }

    pub fn exit(&self, what: &'static str) -> Program {
        let log = self.clone();
        Program::exit(move |_, cookie| log.add(format_args!("{what} {cookie}")))
    }

    pub fn modify(&self, what: &'static str, result: u64) -> Program {
        let log = self.clone();
        Program::modify_return(move |_, _| {
            log.add(what);
            result
        })
    }

    pub fn session(&self, what: &'static str, exit: Session) -> Program {
        let (log, logged) = (self.clone(), self.clone());
        Program::session(
            move |context, _, word| {
                assert_eq!(*word, 0, "a session begins with zero");
                *word = context.args()[0] + 1;
                log.add(format_args!("{what} begins"));
                exit
            },
            move |_, _, word| logged.add(format_args!("{what} ends, {word}")),
        )
    }
}
