//! What changes: an engine, and the embedder's part in it.

use std::sync::Arc;

use fentry::attach::{
    AttachError, Attachment, Cookies, Engine, FunctionId, FunctionSpec, Lanes, ProgramKind, Region,
    SiteNop,
};
use fentry::emit::Vectors;
use fentry::fault::{self, Fault};
use fentry::patch::{PatchError, Poke};
use loom::sync::atomic::Ordering;

use crate::machine::{FUNCTIONS, Machine, TRAPS, entry, program};
use crate::parts::{self, ToldToFail, World};
use crate::plan::Break;

type Outcome<T> = Result<T, AttachError<ToldToFail>>;

/// The thread that changes what is attached.
pub struct Operator {
    machine: Arc<Machine>,
    engine: Engine<World>,
    ids: [Option<FunctionId>; FUNCTIONS],
}

impl Operator {
    /// With an engine that knows no function.
    pub fn new(machine: Arc<Machine>) -> Self {
        let protocol = machine.plan.protocol;
        let engine = Engine::new(parts::parts(&machine), protocol, &TRAPS).unwrap();
        Self { machine, engine, ids: [None; FUNCTIONS] }
    }

    /// Makes a function known. Gives its index.
    pub fn register(&mut self, function: usize) -> u32 {
        let spec = FunctionSpec {
            entry: entry(function),
            layout: self.machine.plan.layout,
            nop: SiteNop::FiveByte,
            region: Region(0),
            stack_arguments: self.machine.plan.stack_arguments,
        };
        let id = self.engine.register(&spec).unwrap();
        self.ids[function] = Some(id);
        id.index()
    }

    /// The ids of functions that are registered.
    fn ids(&self, functions: &[usize]) -> Vec<FunctionId> {
        functions.iter().map(|&function| self.ids[function].unwrap()).collect()
    }

    /// One change, or two that are made as one: cores may see it from now on, and must when it
    /// is over.
    fn change<T>(
        &mut self,
        count: usize,
        functions: &[usize],
        change: impl FnOnce(&mut Engine<World>, &[FunctionId], &mut [Poke]) -> Outcome<T>,
    ) -> Outcome<T> {
        let ids = self.ids(functions);
        let mut pokes = vec![Poke::EMPTY; self.engine.pokes_needed(&ids)];
        let before = self.machine.changes.fetch_add(2 * count - 1, Ordering::Relaxed);
        fault::inject(self.machine.plan.fault);
        let outcome = change(&mut self.engine, &ids, &mut pokes);
        fault::inject(Fault::None);
        self.machine.changes.store(before + 2 * count, Ordering::Relaxed);
        outcome
    }

    /// Attaches a program, to run at the entry, with a cookie for each function.
    pub fn attach(&mut self, to: &[usize], number: usize, cookies: &[u64]) -> Lanes {
        self.try_attach(1, to, number, ProgramKind::Entry, cookies).unwrap()
    }

    /// The same, to run at the exit.
    pub fn attach_exit(&mut self, to: &[usize], number: usize, cookies: &[u64]) -> Lanes {
        self.try_attach(1, to, number, ProgramKind::Exit, cookies).unwrap()
    }

    /// Fails to attach a program, which counts as two changes: it comes and goes.
    pub fn fail_to_attach(&mut self, to: &[usize], number: usize, cookies: &[u64]) {
        let kind = ProgramKind::Entry;
        let failed = self.try_attach(2, to, number, kind, cookies).unwrap_err();
        assert_eq!(failed, AttachError::Patch(PatchError::Synchronise(ToldToFail)));
    }

    fn try_attach(
        &mut self,
        changes: usize,
        to: &[usize],
        number: usize,
        kind: ProgramKind,
        cookies: &[u64],
    ) -> Outcome<Lanes> {
        let attachment = Attachment {
            target: program(number),
            kind,
            data: None,
            vectors: Vectors::Untouched,
            cookies: Cookies::Each(cookies),
        };
        // SAFETY: the machine's programs run anywhere, and are there until they are dropped,
        // which is after quiescence. Nobody else writes its text, and its traps ask `TRAPS`.
        self.change(changes, to, |engine, ids, pokes| unsafe {
            engine.attach(ids, &[attachment], pokes)
        })
    }

    pub fn detach(&mut self, from: &[usize], lanes: Lanes) {
        // SAFETY: as above.
        self.change(1, from, |engine, ids, pokes| unsafe { engine.detach(ids, lanes, pokes) })
            .unwrap();
    }

    pub fn set_enabled(&mut self, of: &[usize], lanes: Lanes, enabled: bool) {
        // SAFETY: as above.
        self.change(1, of, |engine, ids, pokes| unsafe {
            engine.set_enabled(ids, lanes, enabled, pokes)
        })
        .unwrap();
    }

    /// Waits until no core is in code that was left, and none has it as a return address.
    fn wait(&self) {
        let breaks = self.machine.plan.breaks;
        let pieces = if breaks == Break::OtherImages { 1 } else { usize::MAX };
        let cores = match breaks {
            Break::Quiescence => 0,
            Break::OtherCores => 1,
            _ => self.machine.cores.len(),
        };
        let left: Vec<_> = self.engine.code_left().take(pieces).collect();
        let is_left = |address: u64| left.iter().any(|code| code.contains(&address));
        let returns = breaks != Break::ReturnAddresses;
        for core in &self.machine.cores[..cores] {
            let mut place = core.place.lock().unwrap();
            while place.at.is_some_and(is_left)
                || place.returns_to.is_some_and(|to| returns && is_left(to))
            {
                place = core.moved.wait(place).unwrap();
            }
        }
    }

    /// Waits for quiescence. Gives the number of images that were freed.
    pub fn quiesce(&mut self) -> usize {
        self.wait();
        // SAFETY: every core was outside since the last change. The mutants break that.
        unsafe { self.engine.quiesced() }
    }

    /// Lets go of a program's data.
    pub fn drop_program(&mut self, number: usize) {
        self.machine.programs[number].taken_back();
    }

    /// Takes a function's text away, as its owner does when nobody will call it again.
    pub fn unload(&mut self, function: usize) {
        for core in &self.machine.cores {
            core.place.lock().unwrap().unloaded[function] = true;
        }
    }

    /// Forgets a function whose text is gone.
    pub fn forget(&mut self, function: usize) {
        let ids = self.ids(&[function]);
        // SAFETY: it was unloaded, and then all was quiescent. A mutant breaks that.
        unsafe { self.engine.forget(&ids) };
        self.ids[function] = None;
    }
}
