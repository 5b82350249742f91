//! What a model explores, and what breaks in it.

use core::sync::atomic as plain;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use fentry::fault::Fault;
use fentry::layout::EntryLayout;
use fentry::patch::Protocol;

use crate::machine::{self, FUNCTIONS};
use crate::operator::Operator;

/// A program that ran, and the cookie that it got.
pub type Run = (usize, u64);

/// What a call of each function runs.
pub type Lists = [&'static [Run]; FUNCTIONS];

/// One model: what is done, and which calls are made meanwhile.
#[derive(Clone, Copy)]
pub struct Plan {
    pub protocol: Protocol,
    /// What stands around every function's entry.
    pub layout: EntryLayout,
    /// How many arguments every function has on the stack, if that is known.
    pub stack_arguments: Option<u8>,
    /// Whether a branch gets another target in one store.
    pub one_store: bool,
    /// For each core, the functions that it calls, one after the other.
    pub cores: &'static [&'static [usize]],
    /// What is done meanwhile.
    pub script: fn(&mut Operator),
    /// What calls run before the script's first change, after it, after its second, and so on.
    pub lists: &'static [Lists],
    pub breaks: Break,
    /// What is wrong with the stores of the thread that changes.
    pub fault: Fault,
    /// How often one execution takes a thread off its core where it could have gone on; without
    /// a bound the exploration is exhaustive.
    pub preemptions: Option<usize>,
}

/// Which promise of the machine is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    Nothing,
    /// The synchronisation of this number, counted from 1, fails, honestly.
    Fail(usize),
    /// Mutant: the synchronisation of this number synchronises nobody.
    Skip(usize),
    /// Mutant: neither does any later one.
    SkipFrom(usize),
    /// Mutant: the embedder says that all is quiescent when it has looked at nobody.
    Quiescence,
    /// Mutant: it has looked at the first core only.
    OtherCores,
    /// Mutant: it has looked for cores in the first of the images only.
    OtherImages,
    /// Mutant: it has looked where cores are, and not where they will return to.
    ReturnAddresses,
}

/// What the executions of a model had in them, so that a model that shows nothing fails.
#[derive(Default)]
pub struct Seen {
    executions: plain::AtomicUsize,
    calls: Mutex<BTreeSet<(usize, Vec<Run>)>>,
}

impl Seen {
    pub fn call(&self, function: usize, runs: Vec<Run>) {
        self.calls.lock().unwrap().insert((function, runs));
    }

    /// All that a call of the function ever ran.
    pub fn lists(&self, function: usize) -> Vec<Vec<Run>> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(of, _)| *of == function).map(|(_, runs)| runs.clone()).collect()
    }
}

impl Plan {
    pub const fn broken(self, breaks: Break) -> Self {
        Self { breaks, ..self }
    }

    /// Explores the model and gives what was seen: one thread executes the script while the
    /// cores call functions.
    pub fn explore(self) -> Arc<Seen> {
        let seen = Arc::new(Seen::default());
        let mut model = loom::model::Builder::new();
        model.preemption_bound = self.preemptions;
        model.max_branches = 10_000;
        let watch = Arc::clone(&seen);
        model.check(move || {
            watch.executions.fetch_add(1, plain::Ordering::Relaxed);
            machine::execute(self, Arc::clone(&watch));
        });
        let executions = seen.executions.load(plain::Ordering::Relaxed);
        println!("{executions} executions; calls: {:?}", seen.calls.lock().unwrap());
        seen
    }

    /// Explores the model and demands that each function had exactly these calls.
    pub fn shows(self, function: usize, lists: &[&[Run]]) {
        let mut lists: Vec<_> = lists.iter().map(|list| list.to_vec()).collect();
        lists.sort();
        assert_eq!(self.explore().lists(function), lists, "what function {function} ran");
    }
}
