//! Random operations against a model that is a list of programs for each function.

use fentry::attach::{AttachError, Attachment, Cookies, Lanes, ProgramKind, SiteNop};
use fentry::emit::Vectors;
use fentry::layout::x86_64::{IBT, IBT_UNPADDED, PLAIN_UNPADDED};
use fentry::patch::Protocol;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::bench::{BEFORE, Bench, Kind, STEP};
use crate::decode::Run;
use crate::fake::Failing;

const KINDS: [Kind; 8] = [
    Kind::PLAIN,
    Kind::PLAIN.nop(SiteNop::Clang),
    Kind::of(IBT),
    Kind::of(PLAIN_UNPADDED),
    Kind::of(IBT_UNPADDED),
    Kind::PLAIN.region(1),
    Kind::of(PLAIN_UNPADDED).region(1),
    Kind::PLAIN.nop(SiteNop::Prefixed),
];
const LINKS: usize = 4;

/// One step of a test. Functions are bits.
#[derive(Clone, Debug)]
enum Step {
    /// Attaches these programs as a link, if there is none of that number.
    Attach {
        link: usize,
        functions: u8,
        programs: Vec<usize>,
    },
    /// Detaches a link from those of its functions.
    Detach {
        link: usize,
        functions: u8,
    },
    Enable {
        link: usize,
        functions: u8,
        enabled: bool,
    },
    Quiesce,
}

fn step() -> impl Strategy<Value = Step> {
    let functions = || prop_oneof![Just(0xff), 1..=0xff_u8];
    let programs = proptest::collection::vec(0..5_usize, 1..=3);
    prop_oneof![
        4 => (0..LINKS, functions(), programs)
            .prop_map(|(link, functions, programs)| Step::Attach { link, functions, programs }),
        3 => (0..LINKS, functions())
            .prop_map(|(link, functions)| Step::Detach { link, functions }),
        3 => (0..LINKS, functions(), any::<bool>())
            .prop_map(|(link, functions, enabled)| Step::Enable { link, functions, enabled }),
        1 => Just(Step::Quiesce),
    ]
}

/// A program of a function.
#[derive(Clone, Copy, Debug)]
struct Attached {
    link: usize,
    run: Run,
    enabled: bool,
}

struct Model {
    bench: Bench,
    functions: Vec<Vec<Attached>>,
    /// The lanes of each link that is attached.
    links: [Option<Lanes>; LINKS],
    /// Makes every cookie another one.
    cookies: u64,
}

impl Model {
    fn new(protocol: Protocol) -> Self {
        let bench = Bench::new(protocol, &KINDS);
        let functions = vec![Vec::new(); KINDS.len()];
        Self { bench, functions, links: [None; LINKS], cookies: 0 }
    }

    /// The functions among `bits` that have the link.
    fn of_link(&self, link: usize, bits: u8) -> Vec<usize> {
        let has = |function: &usize| {
            self.functions[*function].iter().any(|attached| attached.link == link)
        };
        chosen(bits).filter(has).collect()
    }

    /// Does one step, whose `failing`th step fails.
    fn execute(&mut self, step: &Step, failing: Option<usize>) {
        let text = self.bench.world.text();
        self.bench.world.arm(failing.map_or(Failing::None, Failing::At));
        let done = match step {
            Step::Attach { link, functions, programs } if self.links[*link].is_none() => {
                self.attach(*link, &chosen(*functions).collect::<Vec<_>>(), programs)
            }
            Step::Attach { .. } => true,
            Step::Detach { link, functions } => {
                let functions = self.of_link(*link, *functions);
                let Some(lanes) = self.links[*link].filter(|_| !functions.is_empty()) else {
                    return;
                };
                let done = self.bench.detach(&functions, lanes).is_ok();
                if done {
                    for &function in &functions {
                        self.functions[function].retain(|attached| attached.link != *link);
                    }
                    if self.of_link(*link, 0xff).is_empty() {
                        self.links[*link] = None;
                    }
                }
                done
            }
            Step::Enable { link, functions, enabled } => {
                let functions = self.of_link(*link, *functions);
                let Some(lanes) = self.links[*link].filter(|_| !functions.is_empty()) else {
                    return;
                };
                let done = self.bench.set_enabled(&functions, lanes, *enabled).is_ok();
                if done {
                    for &function in &functions {
                        let list = self.functions[function].iter_mut();
                        list.filter(|attached| attached.link == *link)
                            .for_each(|attached| attached.enabled = *enabled);
                    }
                }
                done
            }
            Step::Quiesce => {
                self.bench.quiesced();
                true
            }
        };
        self.bench.world.disarm();
        if !done {
            let changed = text.differences(&self.bench.world.text());
            // An index may stay in its padding.
            let outside = |address: &&u64| **address % STEP >= BEFORE;
            assert_eq!(changed.iter().find(outside), None, "{step:?} failed");
        }
    }

    /// Whether the programs were attached.
    fn attach(&mut self, link: usize, functions: &[usize], programs: &[usize]) -> bool {
        let first = self.cookies;
        let cookie = |program: usize, position: usize| first + (program * 100 + position) as u64;
        let columns: Vec<Vec<_>> = (0..programs.len())
            .map(|program| (0..functions.len()).map(|at| cookie(program, at)).collect())
            .collect();
        let attachments: Vec<_> = programs
            .iter()
            .zip(&columns)
            .map(|(&number, cookies)| Attachment {
                target: 0x1900_0000 + 0x100 * number as u64,
                kind: ProgramKind::Entry,
                data: (number > 2).then_some(number as u64),
                vectors: if number == 1 { Vectors::Ymm } else { Vectors::Untouched },
                cookies: Cookies::Each(cookies),
            })
            .collect();
        self.cookies += 1_000;
        let mut attached = self.bench.attach(functions, &attachments);
        if attached == Err(AttachError::NoLane) {
            // At most 12 of 32 lanes are in use; the others have only to retire.
            self.bench.world.disarm();
            self.bench.quiesced();
            attached = self.bench.attach(functions, &attachments);
            assert_ne!(attached, Err(AttachError::NoLane));
        }
        if let Ok(lanes) = attached {
            self.links[link] = Some(lanes);
            for (position, &function) in functions.iter().enumerate() {
                let each = attachments.iter().zip(&columns).map(|(attachment, cookies)| {
                    let Attachment { target, data, .. } = *attachment;
                    let run = Run { target, cookie: cookies[position], data };
                    Attached { link, run, enabled: true }
                });
                self.functions[function].extend(each);
            }
        }
        attached.is_ok()
    }

    fn check(&self) {
        for (function, list) in self.functions.iter().enumerate() {
            let enabled = list.iter().filter(|attached| attached.enabled);
            let expected: Vec<_> = enabled.map(|attached| attached.run).collect();
            assert_eq!(self.bench.runs(function), expected, "function {function}");
        }
    }

    fn take_down(mut self) {
        for link in 0..LINKS {
            self.execute(&Step::Detach { link, functions: 0xff }, None);
        }
        self.check();
        self.bench.quiesced();
        assert_eq!(self.bench.images(), 0, "images that were never freed");
    }
}

/// The functions of these bits.
fn chosen(bits: u8) -> impl Iterator<Item = usize> {
    (0..KINDS.len()).filter(move |bit| bits >> bit & 1 == 1)
}

#[test]
fn what_runs_is_what_a_list_says_after_any_operations() {
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    // One in three steps is made to fail somewhere, if it takes so many steps.
    let failing = prop_oneof![2 => Just(None), 1 => (0..120_usize).prop_map(Some)];
    let steps = proptest::collection::vec((step(), failing), 1..60);
    let protocol = prop_oneof![Just(Protocol::ShortJump), Just(Protocol::Breakpoint)];
    TestRunner::new_with_rng(config, rng)
        .run(&(protocol, steps), |(protocol, steps)| {
            let mut model = Model::new(protocol);
            for (step, failing) in &steps {
                model.execute(step, *failing);
                model.check();
            }
            model.take_down();
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
