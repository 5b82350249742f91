//! Every argument and every result arrives unchanged through a hooked entry and exit, whatever its
//! class and however many there are, and programs see and change exactly the arguments that were
//! passed.

mod support;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fentry::emit::Context;
use fentry::host::{Functions, Link, Process, Program, Programs, Session, Vectors};
use support::compile::{Build, Compiler, compilers, shared_object};
use support::object::{Object, symbol_at};
use support::programs::{
    call_keeping, call_misaligned, clobber, clobber_at_exit, empty, take_runs,
};
use support::signatures::{self, Driver, Generated};

/// Bytes in all, bytes before the entry: the option's two numbers.
const LAYOUTS: [&str; 3] = ["21,16", "5", "37,32"];
const PROTECTIONS: [&str; 2] = ["none", "branch"];
const OPTIMISATIONS: [&str; 2] = ["-O0", "-O2"];
/// Words of arguments on the stack: more than 16 structures of 64 bytes.
const STACK_ARGUMENTS: u8 = 160;

/// One test at a time: they count the runs of the same programs, and gcc's patch sites are
/// prepared while nobody runs them.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loaded object and a selection of all its functions that have a patch site.
struct Loaded {
    process: &'static Process,
    object: Object,
    functions: Functions,
    what: String,
}

impl Loaded {
    fn new(name: &str, source: &str, compiler: Compiler, options: [&str; 3]) -> Self {
        let [layout, protection, optimisation] = options;
        let what = format!("{name}-{}-{layout}-{protection}{optimisation}", compiler.command());
        let path = shared_object(&Build {
            name: &what.replace(',', "_"),
            source,
            extension: "c",
            compiler,
            flags: &[
                &format!("-fpatchable-function-entry={layout}"),
                &format!("-fcf-protection={protection}"),
                optimisation,
                // Unoptimised functions stand at any address, and a site whose first two bytes
                // cannot be stored at once is refused (asserted in `errors.rs`).
                "-falign-functions=16",
            ],
        });
        let object = Object::load(&path);
        let process = support::process();
        process.refresh().expect("the object was loaded a moment ago");
        let functions =
            process.functions().module(&object.module()).expect("a file name is a pattern");
        Self { process, object, functions, what }
    }

    fn attach(&self, programs: impl Programs) -> Link {
        // SAFETY: every program of this file keeps to the psABI and changes no state but its
        // own, or the arguments of functions made for that. None of the functions switches
        // stacks.
        unsafe { self.process.attach(&self.functions, programs) }
            .unwrap_or_else(|error| panic!("{}: {error}", self.what))
    }

    /// Calls all hooked functions once, in order; asserts that each computes what its twin,
    /// which nobody hooks, computes from the same values.
    fn compare(&self, generated: &Generated, when: &str) {
        let hooked = self.object.address("hooked") as *const Driver;
        let twins = self.object.address("twins") as *const Driver;
        for (case, signature) in generated.signatures.iter().enumerate() {
            // SAFETY: both arrays have a driver for every signature.
            let (through, direct) = unsafe { ((*hooked.add(case))(), (*twins.add(case))()) };
            assert_eq!(through, direct, "{}: {signature}: {when}", self.what);
        }
    }

    /// Compares under no program, an empty one, one that overwrites everything, and both; then
    /// under programs at the exit, alone and with all other kinds, in both forms.
    fn check(&self, generated: &Generated) {
        let cases = generated.signatures.len();
        assert_eq!(self.functions.len(), cases, "{}: functions with a patch site", self.what);
        take_runs();
        self.compare(generated, "nothing attached");
        // SAFETY: the program is a single `ret`.
        let untouching = unsafe { Program::from_fn(empty).vectors(Vectors::Untouched) };
        let first = self.attach(untouching);
        self.compare(generated, "an empty program that touches no vectors");
        let second = self.attach(Program::from_fn(clobber()));
        self.compare(generated, "an empty program and one that overwrites all it may");
        assert_eq!(take_runs(), cases as u64, "{}: runs of the second program", self.what);
        first.detach().expect("an attached link detaches");
        self.compare(generated, "a program that overwrites all it may");
        assert_eq!(take_runs(), cases as u64, "{}: runs of the only program", self.what);
        second.detach().expect("an attached link detaches");
        for (words, form) in [(None, "side stack"), (Some(STACK_ARGUMENTS), "frame")] {
            // SAFETY: no function has more, and what is above theirs is the stack of this test,
            // which is readable.
            unsafe { self.process.set_stack_arguments(&self.functions, words) }
                .expect("nothing is attached");
            let third = self.attach(Program::exit(clobber_at_exit));
            self.compare(generated, &format!("{form}: one at the exit that overwrites all"));
            assert_eq!(take_runs(), cases as u64, "{}: runs at the exit", self.what);
            let fourth = self.attach(around());
            self.compare(generated, &format!("{form}: all kinds, which overwrite all"));
            assert_eq!(take_runs(), 6 * cases as u64, "{}: runs of all kinds", self.what);
            for link in [third, fourth] {
                link.detach().expect("an attached link detaches");
            }
        }
        self.compare(generated, "everything detached");
        assert_eq!(take_runs(), 0, "{}: runs after the programs were detached", self.what);
    }
}

/// Programs at entry and exit, each of which overwrites all that it may: five runs for a call.
fn around() -> [Program; 4] {
    [
        Program::from_fn(clobber()),
        Program::modify_return(|context, cookie| {
            clobber()(context, cookie);
            0
        }),
        Program::session(
            |context, cookie, _| {
                clobber()(context, cookie);
                Session::Exit
            },
            |context, cookie, _| clobber_at_exit(context, cookie),
        ),
        Program::exit(clobber_at_exit),
    ]
}

/// Calls `test` for every compiler, layout, protection and optimisation.
fn for_all(mut test: impl FnMut(Compiler, [&'static str; 3])) {
    let _alone = alone();
    for compiler in compilers() {
        for layout in LAYOUTS {
            for protection in PROTECTIONS {
                for optimisation in OPTIMISATIONS {
                    test(compiler, [layout, protection, optimisation]);
                }
            }
        }
    }
}

#[test]
fn arguments_of_every_class_arrive_unchanged() {
    for_all(|compiler, options| {
        let generated = signatures::ordinary(1, compiler == Compiler::Gcc);
        Loaded::new("ordinary", &generated.source, compiler, options).check(&generated);
    });
}

#[test]
fn vectors_of_32_bytes_arrive_unchanged() {
    if !std::arch::is_x86_feature_detected!("avx") {
        return support::skipped("32-byte vector arguments", "this CPU has no AVX");
    }
    for_all(|compiler, options| {
        let generated = signatures::vectors(2, false);
        Loaded::new("ymm", &generated.source, compiler, options).check(&generated);
    });
}

#[test]
fn vectors_of_64_bytes_arrive_unchanged() {
    if !std::arch::is_x86_feature_detected!("avx512f") {
        return support::skipped("64-byte vector arguments", "this CPU has no AVX-512");
    }
    for_all(|compiler, options| {
        let generated = signatures::vectors(3, true);
        Loaded::new("zmm", &generated.source, compiler, options).check(&generated);
    });
}

/// `eight` weighs its arguments, so that each has its own effect on the result.
const EIGHT: &str = "\
__attribute__((noinline)) unsigned long eight(unsigned long a, unsigned long b, unsigned long c, unsigned long d,
                    unsigned long e, unsigned long f, unsigned long g, unsigned long h) {
  return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f + 1000000 * g + 10000000 * h;
}
__attribute__((noinline, patchable_function_entry(0, 0)))
long call_eight(const long *v) {
  unsigned long result = eight(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
  __asm__ volatile(\"\");
  return result + 1;
}
unsigned long two(unsigned long a, unsigned long b) { return a * 3 + b; }
void none(void) {}
";

/// What `call_eight` returns for `values`, by the weights above.
fn weighed(values: &[i64; 8]) -> i64 {
    values.iter().rev().fold(0, |sum, value| sum * 10 + value) + 1
}

/// What a program saw of one call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    arguments: Vec<u64>,
    function: u64,
    caller: Option<String>,
}

#[test]
fn a_program_sees_the_call() {
    for_all(|compiler, options| {
        let loaded = Loaded::new("eight", EIGHT, compiler, options);
        let call: extern "C" fn(*const i64) -> i64 =
            // SAFETY: the symbol is a function of this type.
            unsafe { loaded.object.function("call_eight") };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let link = loaded.attach(Program::new(move |context: &mut Context, _| {
            let mut arguments = context.args().to_vec();
            // SAFETY: only `eight`, which has two arguments on the stack, is called below.
            arguments.extend((0..2).map(|n| unsafe { context.stack_argument(n) }));
            log.lock().unwrap().push(Seen {
                arguments,
                function: context.function().get(),
                caller: symbol_at(context.caller().get() as usize),
            });
        }));
        let values = [3, -1, 4, i64::MIN, 5, -9, 2, 6];
        let small = [3, -1, 4, 1, 5, -9, 2, 6];
        for values in [&values, &small] {
            call(values.as_ptr());
            assert_eq!(
                core::mem::take(&mut *seen.lock().unwrap()),
                [Seen {
                    arguments: values.iter().map(|&value| value as u64).collect(),
                    function: loaded.object.address("eight") as u64,
                    caller: Some("call_eight".to_owned()),
                }],
                "{}",
                loaded.what
            );
        }
        assert_eq!(call(small.as_ptr()), weighed(&small), "{}", loaded.what);
        link.detach().expect("an attached link detaches");
    });
}

#[test]
fn what_a_program_writes_is_what_the_function_sees() {
    for_all(|compiler, options| {
        let loaded = Loaded::new("eight", EIGHT, compiler, options);
        let call: extern "C" fn(*const i64) -> i64 =
            // SAFETY: the symbol is a function of this type.
            unsafe { loaded.object.function("call_eight") };
        let mut values = [3, 1, 4, 1, 5, 9, 2, 6];
        for position in 0..6 {
            let link = loaded.attach(Program::new(move |context: &mut Context, _| {
                context.args_mut()[position] = 77 + position as u64;
            }));
            let through = call(values.as_ptr());
            let mut changed = values;
            changed[position] = 77 + position as i64;
            assert_eq!(through, weighed(&changed), "{}: argument {position}", loaded.what);
            link.detach().expect("an attached link detaches");
            assert_eq!(call(values.as_ptr()), weighed(&values), "{}", loaded.what);
            values.rotate_left(1);
        }
    });
}

#[test]
fn registers_a_callee_must_keep_are_kept() {
    for_all(|compiler, options| {
        let loaded = Loaded::new("eight", EIGHT, compiler, options);
        take_runs();
        let link = loaded.attach(Program::from_fn(clobber()));
        // SAFETY: `none` has no arguments.
        let changed = unsafe { call_keeping(loaded.object.address("none")) };
        assert_eq!(changed, 0, "{}: bits of rbx, rbp, r12 to r15", loaded.what);
        assert_eq!(take_runs(), 1, "{}", loaded.what);
        link.detach().expect("an attached link detaches");
    });
}

/// gcc calls local functions that need no alignment with whatever `rsp` it has; a program may
/// need it all the same.
#[test]
fn a_program_finds_its_stack_aligned_whatever_the_caller_did() {
    for_all(|compiler, options| {
        let loaded = Loaded::new("eight", EIGHT, compiler, options);
        take_runs();
        let link = loaded.attach(Program::from_fn(clobber()));
        // SAFETY: `two` needs no alignment: it only multiplies and adds.
        let result = unsafe { call_misaligned(loaded.object.address("two"), 14, 5) };
        assert_eq!(result, 47, "{}", loaded.what);
        assert_eq!(take_runs(), 1, "{}", loaded.what);
        link.detach().expect("an attached link detaches");
    });
}
