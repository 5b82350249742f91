//! Batches of arm64 instructions, over text that is only numbers: what is refused, what is
//! written in which order, and a failure at each step.

use core::cell::RefCell;
use core::fmt;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use fentry::addr::PatchSite;
use fentry::encode::aarch64::{self, BTI_C, Condition, NOP, WORD};
use fentry::encode::{CodeBuffer, EncodeError};
use fentry::patch::{CheckError, Conflict, Cores, PatchError, Poke, WordBatch, WordText};
use proptest::prelude::{any, proptest};
use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Opcode};

type Word = [u8; WORD];

const TEXT: u64 = 0x40_0000;
const BODY: u64 = 0x48_0000;
/// Three patch sites, 64 bytes apart.
const SITES: [u64; 3] = [TEXT, TEXT + 0x40, TEXT + 0x80];

/// What a step that was told to fail reports, and what is reported of text that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Injected { step: usize },
    Unmapped { address: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What was done, in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Open,
    Store { address: u64, word: Word },
    Flush,
    Synchronise,
    Close,
}

#[derive(Default)]
struct State {
    memory: BTreeMap<u64, Word>,
    /// What instruction fetches find: memory, as it was when it was flushed.
    fetched: BTreeMap<u64, Word>,
    open: Option<BTreeSet<u64>>,
    events: Vec<Event>,
    /// Steps so far that can fail, the first of which is number 1.
    steps: usize,
    fails: Vec<usize>,
}

impl State {
    fn step(&mut self) -> Result<(), Fault> {
        self.steps += 1;
        let step = self.steps;
        if self.fails.contains(&step) { Err(Fault::Injected { step }) } else { Ok(()) }
    }
}

/// Text and cores at once.
#[derive(Clone, Default)]
struct World(Rc<RefCell<State>>);

impl World {
    fn new(words: impl IntoIterator<Item = (u64, Word)>) -> Self {
        let world = Self::default();
        let memory: BTreeMap<_, _> = words.into_iter().collect();
        world.0.borrow_mut().fetched = memory.clone();
        world.0.borrow_mut().memory = memory;
        world
    }

    fn nops() -> Self {
        Self::new(SITES.map(|site| (site, NOP)))
    }

    fn failing(self, steps: impl IntoIterator<Item = usize>) -> Self {
        self.0.borrow_mut().fails = steps.into_iter().collect();
        self
    }

    fn apply(&self, pokes: &mut [Poke<WORD>]) -> Result<(), PatchError<Fault, Fault, WORD>> {
        // SAFETY: the text is only numbers, and nobody executes them.
        unsafe { WordBatch::new(pokes).apply(&mut self.clone(), &mut self.clone()) }
    }

    fn events(&self) -> Vec<Event> {
        self.0.borrow().events.clone()
    }

    /// What stands at each site, which must be what is fetched there.
    fn words(&self) -> Vec<Word> {
        let state = self.0.borrow();
        assert_eq!(state.memory, state.fetched, "stored, and not flushed");
        state.memory.values().copied().collect()
    }
}

// SAFETY: nothing executes this text; the promises are checked by the tests.
unsafe impl WordText for World {
    type Error = Fault;

    fn read(&self, address: u64) -> Result<Word, Fault> {
        let word = self.0.borrow().memory.get(&address).copied();
        word.ok_or(Fault::Unmapped { address })
    }

    fn open(&mut self, pokes: &[Poke<WORD>]) -> Result<(), Fault> {
        let mut state = self.0.borrow_mut();
        state.step()?;
        assert_eq!(state.open, None, "opened twice");
        state.open = Some(pokes.iter().map(|poke| poke.site.get()).collect());
        state.events.push(Event::Open);
        Ok(())
    }

    fn close(&mut self) {
        let mut state = self.0.borrow_mut();
        assert!(state.open.take().is_some(), "closed twice");
        state.events.push(Event::Close);
    }

    unsafe fn store(&mut self, address: u64, word: Word) -> Result<(), Fault> {
        let mut state = self.0.borrow_mut();
        state.step()?;
        let open = state.open.as_ref().is_some_and(|open| open.contains(&address));
        assert!(open, "{address:#x} is not open");
        assert_eq!(address % 4, 0);
        assert!(state.memory.insert(address, word).is_some());
        state.events.push(Event::Store { address, word });
        Ok(())
    }

    fn flush(&mut self, pokes: &[Poke<WORD>]) {
        let mut state = self.0.borrow_mut();
        for poke in pokes {
            let word = state.memory[&poke.site.get()];
            state.fetched.insert(poke.site.get(), word);
        }
        state.events.push(Event::Flush);
    }
}

// SAFETY: there is no core.
unsafe impl Cores for World {
    type Error = Fault;

    fn synchronise(&mut self) -> Result<(), Fault> {
        let mut state = self.0.borrow_mut();
        state.step()?;
        state.events.push(Event::Synchronise);
        Ok(())
    }
}

fn call(site: u64) -> Word {
    aarch64::bl_bytes(site, BODY).unwrap()
}

fn poke(site: u64, old: Word, new: Word) -> Poke<WORD> {
    Poke::new(PatchSite::new(site), old, new)
}

/// A batch that switches every site on.
fn on() -> [Poke<WORD>; 3] {
    SITES.map(|site| poke(site, NOP, call(site)))
}

/// One instruction of an encoder, at [`TEXT`].
fn encoded(emit: impl Fn(&mut CodeBuffer<'_>) -> Result<(), EncodeError>) -> Word {
    let mut word = [0; WORD];
    emit(&mut CodeBuffer::new(&mut word, TEXT)).unwrap();
    word
}

/// The conflict of a batch of this one change.
fn refused(old: Word, new: Word) -> Option<Conflict<WORD>> {
    let mut pokes = [poke(TEXT, old, new)];
    let checked = WordBatch::new(&mut pokes).check(&World::new([(TEXT, old)]));
    match checked {
        Ok(_) => None,
        Err(CheckError::Conflicts { count: 1, first }) => Some(first),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn a_batch_is_one_store_for_each_site_and_one_synchronisation() {
    let world = World::nops();
    let [a, b, c] = on();
    world.apply(&mut [c, a, b]).unwrap();
    let store = |site| Event::Store { address: site, word: call(site) };
    let [first, second, third] = SITES.map(store);
    let events =
        [Event::Open, first, second, third, Event::Flush, Event::Synchronise, Event::Close];
    assert_eq!(world.events(), events);
    for (site, word) in SITES.into_iter().zip(world.words()) {
        let decoded = InstDecoder::default().decode(&mut U8Reader::new(&word)).unwrap();
        assert_eq!(decoded.to_string(), format!("bl $+{:#x}", BODY - site));
    }
}

#[test]
fn what_stays_is_not_stored_and_an_empty_batch_does_nothing() {
    let world = World::nops();
    world.apply(&mut [poke(SITES[0], NOP, NOP), on()[1]]).unwrap();
    let stores = world.events().into_iter().filter(|event| matches!(event, Event::Store { .. }));
    assert_eq!(stores.count(), 1);
    assert_eq!(world.words(), [NOP, call(SITES[1]), NOP]);

    let world = World::nops();
    world.apply(&mut []).unwrap();
    assert_eq!(world.events(), []);
}

#[test]
fn other_bytes_are_refused_and_each_site_says_what_was_found() {
    let foreign = encoded(|code| aarch64::brk(code, 7));
    let world = World::new([(SITES[0], NOP), (SITES[1], foreign), (SITES[2], foreign)]);
    let mut pokes = on();
    let changed =
        |site| Conflict::Changed { site: PatchSite::new(site), expected: NOP, found: foreign };
    let error = CheckError::Conflicts { count: 2, first: changed(SITES[1]) };
    assert_eq!(world.apply(&mut pokes), Err(PatchError::Check(error)));
    let conflicts = pokes.map(|poke| poke.conflict());
    assert_eq!(conflicts, [None, Some(changed(SITES[1])), Some(changed(SITES[2]))]);
    assert_eq!(world.events(), []);
}

#[test]
fn duplicates_unknown_text_and_misaligned_sites_are_refused() {
    let world = World::nops();
    let [a, b, _] = on();
    let site = a.site;
    let duplicate = CheckError::Duplicate { site };
    assert_eq!(world.apply(&mut [a, b, a]), Err(PatchError::Check(duplicate)));

    let unknown = poke(TEXT + 4, NOP, call(TEXT + 4));
    let cause = Fault::Unmapped { address: TEXT + 4 };
    let unread = CheckError::Read { site: unknown.site, cause };
    assert_eq!(world.apply(&mut [a, unknown]), Err(PatchError::Check(unread)));

    for offset in 1..4 {
        let site = PatchSite::new(TEXT + offset);
        let world = World::new([(site.get(), NOP)]);
        let first = Conflict::Misaligned { site };
        let misaligned = CheckError::Conflicts { count: 1, first };
        let applied = world.apply(&mut [Poke::new(site, NOP, call(TEXT))]);
        assert_eq!(applied, Err(PatchError::Check(misaligned)));
        assert!(first.to_string().contains(&site.to_string()), "{first}");
    }
    assert_eq!(world.events(), []);
}

#[test]
fn the_encoders_instructions_are_told_apart() {
    let listed = [
        NOP,
        call(TEXT),
        aarch64::b_bytes(TEXT, BODY).unwrap(),
        aarch64::b_bytes(TEXT, TEXT - 4).unwrap(),
        encoded(|code| aarch64::brk(code, u16::MAX)),
        encoded(aarch64::isb),
    ];
    let unlisted = [
        BTI_C,
        encoded(|code| aarch64::b_cond(code, Condition::Equal, BODY)),
        encoded(|code| aarch64::cbz(code, aarch64::Reg::X0, BODY)),
        encoded(|code| aarch64::mov_reg(code, aarch64::Reg::X9, aarch64::Reg::X30)),
        encoded(|code| aarch64::ret(code, aarch64::Reg::X30)),
        encoded(|code| aarch64::blr(code, aarch64::Reg::X16)),
        encoded(|code| aarch64::udf(code, 0)),
        encoded(aarch64::dsb_sy),
    ];
    for old in listed {
        for new in listed {
            assert_eq!(refused(old, new), None, "{old:02x?} to {new:02x?}");
        }
        for instruction in unlisted {
            let conflict = Conflict::Unlisted { site: PatchSite::new(TEXT), instruction };
            assert_eq!(refused(old, instruction), Some(conflict));
            assert_eq!(refused(instruction, old), Some(conflict));
            assert!(conflict.to_string().contains(&format!("{instruction:02x?}")), "{conflict}");
        }
    }
}

/// Whether a decoder finds that `word` is one of the instructions that the architecture lists.
fn is_listed(word: u32) -> bool {
    let Ok(decoded) = InstDecoder::default().decode(&mut U8Reader::new(&word.to_le_bytes())) else {
        return false;
    };
    match decoded.opcode {
        Opcode::B | Opcode::BL | Opcode::BRK | Opcode::HVC | Opcode::ISB => true,
        Opcode::SMC | Opcode::SVC => true,
        // The decoder has one opcode for all hints, and calls those that mean nothing yet `nop`,
        // too; the NOP is hint 0 (Arm ARM C6.2, HINT and NOP).
        Opcode::HINT => word == 0xd503_201f,
        _ => false,
    }
}

proptest! {
    /// Any word, and words with few bits other than those of a listed instruction.
    #[test]
    fn a_decoder_tells_the_same_instructions_apart(
        any in any::<u32>(),
        listed in proptest::sample::select(&[
            0x1400_0000_u32, 0x9400_0000, 0xd400_0001, 0xd400_0002, 0xd400_0003, 0xd420_0000,
            0xd503_201f, 0xd503_3fdf,
        ][..]),
        flips in proptest::collection::vec(0..32_u32, 0..3),
    ) {
        for word in [any, flips.iter().fold(listed, |word, bit| word ^ 1 << bit)] {
            let refused = word.to_le_bytes() != NOP && refused(NOP, word.to_le_bytes()).is_some();
            assert_eq!(!refused, is_listed(word), "{word:#010x}");
        }
    }
}

/// The steps of a batch of three sites that can fail: open, a store for each site, and the
/// synchronisation.
const STEPS: usize = 5;

#[test]
fn a_failure_at_any_step_leaves_the_old_instructions() {
    for step in 1..=STEPS {
        let world = World::nops().failing([step]);
        let cause = Fault::Injected { step };
        let expected = match step {
            1 => PatchError::Open(cause),
            STEPS => PatchError::Synchronise(cause),
            _ => PatchError::Store { site: PatchSite::new(SITES[step - 2]), cause },
        };
        assert_eq!(world.apply(&mut on()), Err(expected));
        assert_eq!(world.words(), [NOP; 3], "step {step}");
        let events = world.events();
        assert_eq!(events.last(), (step > 1).then_some(&Event::Close), "step {step}");
        // What was stored was taken back, and no core may still execute it.
        let stored = events.iter().any(|event| matches!(event, Event::Store { .. }));
        assert_eq!(events.contains(&Event::Synchronise), stored, "step {step}");
    }
    let world = World::nops().failing([STEPS + 1]);
    world.apply(&mut on()).unwrap();
}

/// The way back fails as well, at each of its steps: as many stores as were done, and the
/// synchronisation.
#[test]
fn a_failure_on_the_way_back_is_stuck_and_names_the_site() {
    for step in 3..=STEPS {
        let stored = step - 2;
        for again in 0..=stored {
            let world = World::nops().failing([step, step + 1 + again]);
            let site = PatchSite::new(SITES[if again == stored { 0 } else { again }]);
            let stuck = PatchError::Stuck { site };
            assert_eq!(world.apply(&mut on()), Err(stuck), "steps {step} and {again} later");
            assert!(stuck.to_string().contains(&site.to_string()), "{stuck}");
            assert_eq!(world.events().last(), Some(&Event::Close));
            for (at, (&site, &word)) in world.0.borrow().memory.iter().enumerate() {
                let new = (again..stored).contains(&at);
                assert_eq!(word, if new { call(site) } else { NOP }, "{site:#x}");
            }
        }
    }
}

#[test]
fn what_is_switched_on_is_switched_off() {
    let world = World::nops();
    world.apply(&mut on()).unwrap();
    let off = |poke: Poke<WORD>| Poke::new(poke.site, poke.new, poke.old);
    world.apply(&mut on().map(off)).unwrap();
    assert_eq!(world.words(), [NOP; 3]);
}

/// What does not reach is an error of the encoder, before there is a batch.
#[test]
fn a_body_out_of_reach_makes_no_poke() {
    const REACH: u64 = 128 << 20;
    assert!(aarch64::bl_bytes(TEXT, TEXT + REACH - 4).is_ok());
    let error = EncodeError::OutOfReach { from: TEXT, to: TEXT + REACH, reach: REACH, step: 4 };
    assert_eq!(aarch64::bl_bytes(TEXT, TEXT + REACH), Err(error));
}
