//! Whole or not at all: every operation is made to fail at every step it takes.

use fentry::attach::{AttachError, Attachment, Cookies, Lanes, SiteNop};
use fentry::layout::x86_64::{IBT, PLAIN_UNPADDED};
use fentry::patch::{PatchError, Protocol};

use crate::bench::{Bench, Kind, Outcome, program, slot_of};
use crate::decode::Run;
use crate::fake::Failing;

const PROTOCOLS: [Protocol; 2] = [Protocol::ShortJump, Protocol::Breakpoint];

/// Functions of every kind, two of them with a program of their own: lists differ, some slots
/// are vacant, and some functions have no thunk yet.
const KINDS: [Kind; 7] = [
    Kind::PLAIN,
    Kind::of(IBT),
    Kind::of(PLAIN_UNPADDED),
    Kind::of(PLAIN_UNPADDED),
    Kind::PLAIN.nop(SiteNop::Clang).region(1),
    Kind::of(PLAIN_UNPADDED).region(1),
    Kind::PLAIN,
];
const OWN: [usize; 2] = [1, 3];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Attach,
    Detach,
    Disable,
    Enable,
    Prepare,
}

const OPERATIONS: [Operation; 5] = [
    Operation::Attach,
    Operation::Detach,
    Operation::Disable,
    Operation::Enable,
    Operation::Prepare,
];

/// A bench that stands just before an operation.
struct Before {
    bench: Bench,
    operation: Operation,
    all: Vec<usize>,
    /// The attachment that is operated on, once there is one.
    lanes: Option<Lanes>,
    /// Another one, of the functions [`OWN`].
    own: Option<Lanes>,
}

impl Before {
    fn new(protocol: Protocol, operation: Operation) -> Self {
        let prepare = operation == Operation::Prepare;
        let nop = |(position, kind): (usize, &Kind)| {
            if prepare && position % 2 == 0 { kind.nop(SiteNop::OneByte) } else { *kind }
        };
        let kinds: Vec<_> = KINDS.iter().enumerate().map(nop).collect();
        let bench = Bench::new(protocol, &kinds);
        let all = bench.all();
        let mut before = Self { bench, operation, all, lanes: None, own: None };
        let own = program(0x7f00_0000_0000, Cookies::Same(77));
        before.own = Some(before.bench.attach(&OWN, &[own]).unwrap());
        if !matches!(operation, Operation::Attach | Operation::Prepare) {
            before.attach().unwrap();
        }
        if operation == Operation::Enable {
            before.bench.set_enabled(&before.all, before.lanes.unwrap(), false).unwrap();
        }
        before
    }

    fn attach(&mut self) -> Outcome<()> {
        let second = Attachment { data: Some(5), ..program(0x1900_1000, Cookies::Same(9)) };
        let programs = [program(0x1900_0000, Cookies::Position), second];
        self.bench.attach(&self.all, &programs).map(|lanes| self.lanes = Some(lanes))
    }

    fn operate(&mut self) -> Outcome<()> {
        let lanes = self.lanes;
        let Self { bench, all, .. } = self;
        match self.operation {
            Operation::Attach => self.attach(),
            Operation::Detach => bench.detach(all, lanes.unwrap()).map(|()| self.lanes = None),
            Operation::Disable => bench.set_enabled(all, lanes.unwrap(), false),
            Operation::Enable => bench.set_enabled(all, lanes.unwrap(), true),
            Operation::Prepare => bench.prepare(all),
        }
    }

    fn runs(&self) -> Vec<Vec<Run>> {
        self.all.iter().map(|&function| self.bench.runs(function)).collect()
    }

    /// Detaches everything, and checks that nothing is left of it.
    fn take_down(mut self, thunks: usize) {
        if let Some(lanes) = self.lanes {
            self.bench.detach(&self.all, lanes).unwrap();
        }
        self.bench.detach(&OWN, self.own.unwrap()).unwrap();
        self.bench.quiesced();
        assert_eq!(self.bench.images(), 0, "images that were never freed");
        assert_eq!(self.thunks(), thunks, "memory for thunks");
    }

    /// Allocations for thunks that there are.
    fn thunks(&self) -> usize {
        let images = self.bench.images();
        self.bench.world.state().images.len() - images
    }
}

/// What an operation without a failure leads to.
struct After {
    steps: usize,
    runs: Vec<Vec<Run>>,
    text: crate::fake::Memory,
    thunks: usize,
}

fn without_failure(protocol: Protocol, operation: Operation) -> After {
    let mut reference = Before::new(protocol, operation);
    reference.bench.world.arm(Failing::None);
    reference.operate().unwrap();
    let steps = reference.bench.world.disarm();
    let runs = reference.runs();
    let text = reference.bench.world.text();
    let thunks = reference.thunks();
    reference.take_down(thunks);
    After { steps, runs, text, thunks }
}

#[test]
fn every_operation_that_fails_at_any_step_changes_nothing_and_can_be_repeated() {
    for protocol in PROTOCOLS {
        for operation in OPERATIONS {
            let after = without_failure(protocol, operation);
            assert!(after.steps > 10, "{operation:?} takes {} steps", after.steps);
            for step in 0..after.steps {
                fails_cleanly(protocol, operation, step, &after);
            }
        }
    }
}

/// Whether the batch had begun to land: a core may have been led to an image by then.
fn landed<T>(error: &AttachError<T>) -> bool {
    matches!(error, AttachError::Patch(error) if !matches!(error, PatchError::Check(_)))
}

/// Whether the address is in a slot that holds its function's index, which is where a core in
/// an image would look for it.
fn is_in_written_slot(bench: &Bench, address: u64) -> bool {
    let padded = |function: &usize| bench.functions[*function].layout.slot_kind().is_some();
    bench.all().into_iter().filter(padded).any(|function| {
        let slot = bench.slot(function);
        let index = bench.ids[function].index();
        (slot..slot + 5).contains(&address) && bench.slot_bytes(function) == slot_of(index)
    })
}

fn fails_cleanly(protocol: Protocol, operation: Operation, step: usize, after: &After) {
    let what = format!("{operation:?} with {protocol:?}, step {step} of {}", after.steps);
    let mut before = Before::new(protocol, operation);
    let text = before.bench.world.text();
    let runs = before.runs();
    before.bench.world.arm(Failing::At(step));
    let error = before.operate().expect_err(&what);
    before.bench.world.disarm();
    let cause = format!("{error:?}");
    assert!(cause.contains(&format!("Injected {{ step: {step} }}")), "{what}: {cause}");
    let mut changed = text.differences(&before.bench.world.text());
    if landed(&error) {
        changed.retain(|&address| !is_in_written_slot(&before.bench, address));
    }
    assert_eq!(changed, [], "{what} ({error}): bytes that changed");
    assert_eq!(before.runs(), runs, "{what}");

    // Again, either at once or after what the failure left has retired.
    if step.is_multiple_of(2) {
        before.bench.quiesced();
    }
    before.operate().unwrap_or_else(|error| panic!("{what}, again: {error}"));
    assert_eq!(before.runs(), after.runs, "{what}, again");
    if operation == Operation::Prepare {
        let differences = after.text.differences(&before.bench.world.text());
        assert_eq!(differences, [], "{what}, again: bytes that differ");
    }
    before.take_down(after.thunks);
}

/// The step fails and so does all that would take back what was done. What remains must say
/// so, and what cores can still reach must stay.
#[test]
fn an_operation_that_cannot_be_taken_back_says_so_and_keeps_what_is_reachable() {
    for protocol in PROTOCOLS {
        for operation in OPERATIONS {
            let after = without_failure(protocol, operation);
            for step in 0..after.steps {
                stays_reachable(protocol, operation, step, &after);
            }
        }
    }
}

fn stays_reachable(protocol: Protocol, operation: Operation, step: usize, after: &After) {
    let what = format!("{operation:?} with {protocol:?}, from step {step} on");
    let mut before = Before::new(protocol, operation);
    let text = before.bench.world.text();
    let runs = before.runs();
    before.bench.world.arm(Failing::From(step));
    let error = before.operate().expect_err(&what);
    before.bench.world.disarm();
    // SAFETY: no core is anywhere.
    unsafe { before.bench.engine.quiesced() };
    let mut changed = text.differences(&before.bench.world.text());
    if landed(&error) {
        changed.retain(|&address| !is_in_written_slot(&before.bench, address));
    }
    let stuck = matches!(error, AttachError::Patch(PatchError::Stuck { .. }));
    assert!(stuck || changed.is_empty(), "{what}: {error}, but {changed:x?} changed");
    for &function in &before.all {
        if !is_guarded(&before.bench, function) {
            let found = before.bench.runs(function);
            let whole = found == runs[function] || found == after.runs[function];
            assert!(whole, "{what}: function {function} runs {found:x?}");
        }
    }
}

/// Whether a guard stands at a function's site or at its thunk's.
fn is_guarded(bench: &Bench, function: usize) -> bool {
    let guard = |address| matches!(bench.bytes(address), [0xeb, 3, ..] | [0xcc, ..]);
    let site = bench.site(function);
    let [opcode, displacement @ ..] = bench.site_bytes(function);
    let target = site.wrapping_add_signed(i64::from(i32::from_le_bytes(displacement)) + 5);
    let thunked = bench.functions[function].layout.slot_kind().is_none();
    guard(site) || opcode == 0xe8 && thunked && guard(target + 6)
}

/// More sets than one piece of table memory holds: a table must grow while an image is made.
#[test]
fn a_table_that_cannot_grow_leaves_no_image_behind() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 400);
    let mut grown = 0;
    for function in 0..400 {
        let target = 0x1900_0000 + 0x10 * function as u64;
        let attachment = program(target, Cookies::Same(function as u64));
        let images = bench.images();
        for step in 0.. {
            bench.world.arm(Failing::At(step));
            match bench.attach(&[function], &[attachment]) {
                Ok(_lanes) => break,
                Err(AttachError::Table(_)) => {
                    grown += 1;
                    // An image without a set would never be freed.
                    assert_eq!(bench.images(), images);
                }
                Err(_) => {}
            }
        }
        bench.world.disarm();
        assert_eq!(bench.runs(function), [crate::bench::run(target, function as u64)]);
    }
    assert!(grown > 1, "the table grew {grown} times");
    bench.quiesced();
    assert_eq!(bench.images(), 400);
}

#[test]
fn registering_that_fails_can_be_repeated_and_costs_no_number() {
    let engine = |bench: &Bench| format!("{:?}", bench.engine);
    let mut reference = Bench::new(Protocol::ShortJump, &[]);
    let (function, _) = Kind::PLAIN.place(0);
    reference.engine.register(&function).unwrap();
    let mut failures = 0;
    for step in 0.. {
        let mut bench = Bench::new(Protocol::ShortJump, &[]);
        bench.world.arm(Failing::At(step));
        let registered = bench.engine.register(&function);
        bench.world.disarm();
        if registered.is_ok() {
            break;
        }
        failures += 1;
        let id = bench.engine.register(&function).unwrap();
        assert_eq!(id.index(), 0, "step {step}");
        assert_eq!(engine(&bench), engine(&reference), "step {step}");
    }
    assert!(failures >= 3, "hashes, records and functions each grow");
}
