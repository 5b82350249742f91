//! What the other processors do: call hooked functions without pause, and check every result.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use machine::{cpu, println};

use crate::cores;
use crate::functions::{FUNCTIONS, PROGRAMS, STAMP, call, expected, has_slot};
use crate::random::Random;

/// What is attached to each function, as the operator announces it: see [`State`].
static STATES: [AtomicU64; FUNCTIONS] = [const { AtomicU64::new(0) }; FUNCTIONS];

/// Calls from one time outside to the next.
const PASS: usize = 64;

/// No processor begins before, so that nothing is executed while it is prepared.
pub static BEGIN: AtomicBool = AtomicBool::new(false);

/// Calls made while nothing changed, and calls during which something did.
pub static SETTLED: AtomicU64 = AtomicU64::new(0);
pub static CHANGING: AtomicU64 = AtomicU64::new(0);
/// Calls that no program ran for, because both places where a function changes were in between.
pub static NEITHER: AtomicU64 = AtomicU64::new(0);
/// Results that were none of those which were possible.
pub static WRONG: AtomicU64 = AtomicU64::new(0);

/// The first of them.
static FIRST: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
/// How many there have been.
static NOTED: AtomicUsize = AtomicUsize::new(0);

/// Notes a wrong result of function `number`: what it had before the call and after it, and
/// which programs' result it is.
fn note(number: usize, before: State, after: State, ran: Option<u8>) {
    if let Some(place) = FIRST.get(NOTED.fetch_add(1, Ordering::Relaxed)) {
        let programs = [before.before, before.after, after.before, after.after];
        let programs = u64::from(u32::from_le_bytes(programs));
        let ran = u64::from(ran.unwrap_or(u8::MAX));
        place.store(programs << 32 | ran << 24 | number as u64, Ordering::Relaxed);
    }
}

/// Forgets what was wrong until now.
pub fn forget_wrong() {
    WRONG.store(0, Ordering::Relaxed);
    NOTED.store(0, Ordering::Relaxed);
}

/// Prints the first wrong results.
pub fn print_wrong() {
    let noted = NOTED.load(Ordering::Relaxed);
    for place in FIRST.iter().take(noted) {
        let noted = place.load(Ordering::Relaxed);
        let [before, during, still, after] = ((noted >> 32) as u32).to_le_bytes();
        let (ran, number) = (noted >> 24 & 0xff, noted & 0xff_ffff);
        println!(
            "wrong: function {number}: programs {before}->{during}, then {still}->{after}; ran {ran}"
        );
    }
}

/// Which programs a function has: before a change and after it, the same when none is in
/// progress. The version tells two states with the same programs apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct State {
    version: u64,
    before: u8,
    after: u8,
}

impl State {
    /// The programs when no change is in progress.
    pub const fn programs(self) -> u8 {
        self.after
    }

    fn read(number: usize) -> Self {
        let bits = STATES.get(number).map_or(0, |state| state.load(Ordering::Acquire));
        Self { version: bits >> 16, before: (bits >> 8) as u8, after: bits as u8 }
    }

    fn write(self, number: usize) {
        if let Some(state) = STATES.get(number) {
            let bits = self.version << 16 | u64::from(self.before) << 8 | u64::from(self.after);
            state.store(bits, Ordering::SeqCst);
        }
    }
}

/// What function `number` has.
pub fn state(number: usize) -> State {
    State::read(number)
}

/// Announces that function `number` is about to get `programs`.
pub fn announce(number: usize, programs: u8) {
    let State { version, after, .. } = State::read(number);
    State { version: version + 1, before: after, after: programs }.write(number);
}

/// Announces that function `number` has what it was to get.
pub fn settle(number: usize) {
    let State { version, after, .. } = State::read(number);
    State { version: version + 1, before: after, after }.write(number);
}

/// Calls functions for ever.
pub fn work(processor: usize) -> ! {
    // SAFETY: the machine has loaded the handlers.
    unsafe { cpu::enable_interrupts() };
    while !BEGIN.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let mut random = Random::new(processor as u64);
    loop {
        for _ in 0..PASS {
            let number = random.below(FUNCTIONS as u64) as usize;
            let arguments = [random.next(), random.next(), random.next()];
            let before = State::read(number);
            let result = call(number, arguments);
            let after = State::read(number);
            let is = |programs| result == Some(expected(number, arguments, programs));
            let count = match judge(number, [before, after], is) {
                Verdict::Settled => &SETTLED,
                Verdict::Changing => &CHANGING,
                Verdict::Neither => &NEITHER,
                Verdict::Wrong => {
                    note(number, before, after, (0..=PROGRAMS).find(|&programs| is(programs)));
                    &WRONG
                }
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        cores::outside(processor);
    }
}

/// What a call was.
enum Verdict {
    /// Right, and the function's programs did not change.
    Settled,
    /// Right, for they changed.
    Changing,
    /// None ran, while they changed.
    Neither,
    /// None of what is possible.
    Wrong,
}

/// Judges a call of function `number`, which had `before` before it and `after` behind it, and
/// whose result `is` that of the programs that ran.
fn judge(number: usize, [before, after]: [State; 2], is: impl Fn(u8) -> bool) -> Verdict {
    if before == after && before.before == before.after {
        return if is(before.after) { Verdict::Settled } else { Verdict::Wrong };
    }
    // A call may meet any programs that the function had meanwhile; where they changed more than
    // once, that is any.
    let met = [before.before, before.after, after.before, after.after];
    let once = after.version <= before.version + 1;
    if met.into_iter().any(&is) || (!once && (0..=PROGRAMS).any(&is)) {
        return Verdict::Changing;
    }
    // Without padding, a function has two places that change, its patch site and its thunk's
    // jump, if programs at the exit come or go. A call that meets one before the change and the
    // other after it runs none.
    let exits = met.map(|programs| programs & STAMP);
    let other_form = exits.contains(&0) && exits.contains(&STAMP);
    if !has_slot(number) && other_form && is(0) { Verdict::Neither } else { Verdict::Wrong }
}
