//! Attaching, detaching, enabling and disabling, as fast as it goes.

use fentry::host::{AttachError, Link, Process};

use crate::programs::{Kind, program};
use crate::random::Random;
use crate::selection::Selection;
use crate::tally::{TALLY, refused};
use crate::watch::{SECOND, World};

/// What everybody who attaches needs.
pub struct Stage {
    pub process: &'static Process,
    pub world: &'static World,
    pub selections: Vec<Selection>,
}

/// A link and its watch.
pub struct Post<'a> {
    stage: &'a Stage,
    watch: usize,
    link: Option<(Link, &'a Selection)>,
    enabled: bool,
}

/// How often a caller of its own calls after each change, when it is certain what must be seen.
const CALLS: usize = 8;

impl<'a> Post<'a> {
    pub fn new(stage: &'a Stage, watch: usize) -> Self {
        Self { stage, watch, link: None, enabled: false }
    }

    /// Changes something.
    pub fn step(&mut self, random: &mut Random) {
        if self.link.is_none() {
            let selections = &self.stage.selections;
            self.attach(&selections[random.below(selections.len())], random);
        } else if random.below(3) != 0 {
            self.detach(random);
        } else {
            self.switch(random);
        }
    }

    /// Attaches one or two programs.
    pub fn attach(&mut self, selection: &'a Selection, random: &mut Random) {
        let Stage { process, world, .. } = self.stage;
        let kind = |random: &mut Random| match random.below(8) {
            0..3 => Kind::Number,
            3 => Kind::Position,
            4..6 => Kind::Same,
            _ => Kind::Plain,
        };
        let numbers = &selection.numbers;
        let mut programs = vec![program(world, self.watch, 1, numbers, kind(random))];
        let mut expected = 1;
        if random.below(4) == 0 {
            programs.push(program(world, self.watch, SECOND, numbers, kind(random)));
            expected |= SECOND;
        }
        World::begin(self.watch);
        world.cover(self.watch, numbers, expected);
        // SAFETY: the programs change no argument, call no hooked function, and neither lock
        // nor allocate; the functions' libraries are never unloaded.
        let attached = unsafe { process.attach(&selection.functions, programs) };
        match attached {
            Ok(link) => {
                World::end(self.watch, true);
                TALLY.attached.add(1);
                self.link = Some((link, selection));
                self.enabled = true;
            }
            Err(error) => {
                world.uncover(self.watch, numbers);
                World::end(self.watch, false);
                if is_no_lane(&error) {
                    TALLY.no_lane.add(1);
                } else {
                    refused("attach", &error);
                }
            }
        }
        self.call(selection, random);
    }

    /// Detaches what is attached.
    pub fn detach(&mut self, random: &mut Random) {
        let Some((link, selection)) = self.link.take() else { return };
        World::begin(self.watch);
        match link.detach() {
            Ok(()) => TALLY.detached.add(1),
            Err(error) => {
                refused("detach", &error);
                error.link.leak();
            }
        }
        self.stage.world.uncover(self.watch, &selection.numbers);
        World::end(self.watch, false);
        self.call(selection, random);
    }

    /// Disables what is enabled, or the other way round.
    fn switch(&mut self, random: &mut Random) {
        let Some((link, selection)) = &self.link else { return };
        World::begin(self.watch);
        let switched = if self.enabled { link.disable() } else { link.enable() };
        match switched {
            Ok(()) => {
                self.enabled = !self.enabled;
                if self.enabled { TALLY.enabled.add(1) } else { TALLY.disabled.add(1) }
            }
            Err(error) => refused("switch", &error),
        }
        World::end(self.watch, self.enabled);
        self.call(selection, random);
    }

    /// Calls some of the functions: certainly after the change, and before the next.
    fn call(&self, selection: &Selection, random: &mut Random) {
        for _ in 0..CALLS {
            let function = selection.numbers[random.below(selection.numbers.len())];
            self.stage.world.call(function, random.next() | 1, random.next());
        }
    }
}

fn is_no_lane(error: &AttachError) -> bool {
    let AttachError::Engine { cause, .. } = error else { return false };
    matches!(**cause, fentry::attach::AttachError::NoLane)
}
