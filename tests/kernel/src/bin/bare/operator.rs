//! What the first processor does: attach, switch and detach, while the others call.

use fentry::attach::{AttachError, Engine, FunctionId, Lanes};
use fentry::patch::{Poke, Protocol, TrapResolver};

use crate::cores;
use crate::embedder::{Kernel, Refused, parts};
use crate::functions::{ADD, FLIP, FUNCTIONS, STAMP, cookie, forbidden, is_stamped, spec};
use crate::programs::attachment;
use crate::random::Random;
use crate::workers::{announce, settle, state};

/// Groups of functions for each program; a function is in the group of its number's remainder.
const GROUPS: usize = 2;
/// Functions of a group.
const MEMBERS: usize = FUNCTIONS / GROUPS;
/// The most pokes of a batch: a function without padding needs two.
const POKES: usize = 2 * MEMBERS;

/// What failed.
pub type Failure = AttachError<Refused>;

/// Some of the functions of a group, and what is attached to them.
struct Group {
    program: u8,
    /// The remainder of its functions' numbers.
    first: usize,
    numbers: [u16; MEMBERS],
    count: usize,
    attached: Option<Attached>,
}

#[derive(Clone, Copy)]
struct Attached {
    lanes: Lanes,
    enabled: bool,
}

/// The engine, the functions, and what is attached.
pub struct Operator {
    pub engine: Engine<Kernel>,
    ids: [Option<FunctionId>; FUNCTIONS],
    groups: [Group; 3 * GROUPS],
    random: Random,
    processors: usize,
    /// How many images were freed.
    pub freed: u64,
}

impl Operator {
    /// Registers and prepares all functions.
    pub fn new(processors: usize, traps: &'static TrapResolver) -> Result<Self, Failure> {
        let mut engine = Engine::new(parts(processors), Protocol::Breakpoint, traps)?;
        let mut ids = [None; FUNCTIONS];
        for (number, id) in ids.iter_mut().enumerate() {
            if let Some(spec) = spec(number) {
                *id = Some(engine.register(&spec)?);
            }
        }
        let Some(first) = ids.first().copied().flatten() else { return Err(Failure::NoFunctions) };
        let mut pokes = [Poke::EMPTY; FUNCTIONS];
        let all = ids.map(|id| id.unwrap_or(first));
        // SAFETY: the assembly is what `spec` says, and no processor executes it yet.
        unsafe { engine.prepare(&all, &mut pokes, |_| Ok(())) }?;
        let group = |number: usize| Group {
            program: [ADD, FLIP, STAMP].get(number / GROUPS).copied().unwrap_or(ADD),
            first: number % GROUPS,
            numbers: [0; MEMBERS],
            count: 0,
            attached: None,
        };
        let groups = [0, 1, 2, 3, 4, 5].map(group);
        Ok(Self { engine, ids, groups, random: Random::new(0), processors, freed: 0 })
    }

    /// Tries to hook what must not be hooked. Whether that was refused.
    pub fn try_forbidden(&mut self) -> Result<bool, Failure> {
        let id = self.engine.register(&forbidden())?;
        let program = attachment(FLIP, &[]);
        // SAFETY: as in `change`, were it not refused.
        let tried = unsafe { self.engine.attach(&[id], &[program], &mut [Poke::EMPTY; 1]) };
        Ok(tried.is_err() && !self.engine.is_attached(id))
    }

    /// Attaches a program to one function and announces it to nobody; calls `meanwhile`, and
    /// detaches it.
    pub fn unannounced(&mut self, meanwhile: impl FnOnce()) -> Result<(), Failure> {
        let Some(&Some(id)) = self.ids.first() else { return Ok(()) };
        let program = attachment(FLIP, &[]);
        let mut pokes = [Poke::EMPTY; 2];
        // SAFETY: as in `change`.
        let lanes = unsafe { self.engine.attach(&[id], &[program], &mut pokes) }?;
        meanwhile();
        // SAFETY: as in `change`.
        unsafe { self.engine.detach(&[id], lanes, &mut pokes) }?;
        self.quiesce();
        Ok(())
    }

    /// Changes something at random, in one batch.
    pub fn round(&mut self) -> Result<(), Failure> {
        let chosen = self.random.below(self.groups.len() as u64) as usize;
        let Some(group) = self.groups.get_mut(chosen) else { return Ok(()) };
        if group.attached.is_none() {
            group.count = 0;
            let program = group.program;
            let members = (group.first..FUNCTIONS).step_by(GROUPS);
            let members = members.filter(|number| program != STAMP || is_stamped(*number));
            for number in members.filter(|_| self.random.below(4) > 0) {
                if let Some(place) = group.numbers.get_mut(group.count) {
                    *place = number as u16;
                    group.count += 1;
                }
            }
            if group.count == 0 {
                return Ok(());
            }
        }
        let switch = self.random.below(2) == 0;
        let numbers = group.numbers.get(..group.count).unwrap_or(&[]);
        let before = group.attached;
        let runs = match before {
            None => true,
            Some(Attached { enabled, .. }) => switch && !enabled,
        };
        for number in numbers.iter().copied().map(usize::from) {
            let others = state(number).programs() & !group.program;
            announce(number, if runs { others | group.program } else { others });
        }
        let attached = change(&mut self.engine, &self.ids, numbers, group.program, before, switch);
        group.attached = attached?;
        numbers.iter().copied().map(usize::from).for_each(settle);
        Ok(())
    }

    /// Waits until all processors have been outside, and frees what nothing leads to any more.
    pub fn quiesce(&mut self) {
        cores::wait_outside(self.processors, 1);
        // SAFETY: every processor has been outside since the last change, and this one is.
        self.freed += unsafe { self.engine.quiesced() } as u64;
    }
}

/// Attaches `program` to the functions with `numbers`, or switches or detaches it where it is
/// attached.
fn change(
    engine: &mut Engine<Kernel>,
    ids: &[Option<FunctionId>; FUNCTIONS],
    numbers: &[u16],
    program: u8,
    attached: Option<Attached>,
    switch: bool,
) -> Result<Option<Attached>, Failure> {
    let mut functions = [const { None }; MEMBERS];
    let mut cookies = [0; MEMBERS];
    let numbers = numbers.iter().copied().map(usize::from);
    for ((number, function), its_cookie) in numbers.clone().zip(&mut functions).zip(&mut cookies) {
        *function = ids.get(number).copied().flatten();
        *its_cookie = cookie(number);
    }
    let Some(first) = functions.first().copied().flatten() else { return Ok(attached) };
    let functions = functions.map(|function| function.unwrap_or(first));
    let functions = functions.get(..numbers.len()).unwrap_or(&[]);
    let cookies = cookies.get(..numbers.len()).unwrap_or(&[]);
    let mut pokes = [Poke::EMPTY; POKES];
    // SAFETY: the programs have the signature that is asked for, change no vector register, and
    // run anywhere; they, their cookies and the functions stay. Only this processor patches,
    // and the trap handler of each asks the resolver.
    unsafe {
        match attached {
            None => {
                let lanes =
                    engine.attach(functions, &[attachment(program, cookies)], &mut pokes)?;
                Ok(Some(Attached { lanes, enabled: true }))
            }
            Some(Attached { lanes, enabled }) if switch => {
                engine.set_enabled(functions, lanes, !enabled, &mut pokes)?;
                Ok(Some(Attached { lanes, enabled: !enabled }))
            }
            Some(Attached { lanes, .. }) => {
                engine.detach(functions, lanes, &mut pokes)?;
                Ok(None)
            }
        }
    }
}
