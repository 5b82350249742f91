//! Everything at once, for as long as you like: threads that call thousands of functions,
//! while others attach to them, detach, enable and disable; libraries that come and go,
//! signals whose handlers call the functions, threads that start and end, and forks.
//!
//! Nothing is sampled. Every result of every call is checked, and for every call and every
//! link it is checked that the link's programs ran exactly once if the link was on from before
//! the call to after it, and not at all if it was off (`watch`). What is called is generated
//! and compiled at the start (`source`); the other files are what goes on at the same time:
//! `operator`, `guests` and `disturb`.

mod disturb;
mod guests;
mod library;
mod memory;
mod operator;
mod options;
mod programs;
mod random;
mod selection;
mod source;
mod tally;
mod text;
mod watch;

use core::error::Error;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{Scope, scope, sleep};
use std::time::Instant;

use fentry::host::Process;

use disturb::Listener;
use guests::Guest;
use library::Library;
use memory::Memory;
use operator::{Post, Stage};
use options::{HELP, Options};
use random::Random;
use selection::{Selection, selections};
use source::{FORMS, Object};
use tally::{TALLY, refused};
use text::Text;
use watch::{WATCHES, World};

/// How the libraries are compiled: where the patch site and its padding are, and whether a
/// landing pad stands before the site.
const FLAGS: [&[&str]; 4] = [
    &["-fpatchable-function-entry=21,16", "-fcf-protection=none"],
    &["-fpatchable-function-entry=21,16", "-fcf-protection=branch"],
    &["-fpatchable-function-entry=5", "-fcf-protection=none"],
    &["-fpatchable-function-entry=5", "-fcf-protection=branch"],
];
/// Functions of each library that comes and goes.
const GUEST_FUNCTIONS: usize = 70;
const SELECTIONS: usize = 48;
/// Threads that attach and detach all the time; watch 0 is another's.
const OPERATORS: usize = 2;
/// How long nothing may happen before it counts as hung.
const HUNG: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn run() -> Result<bool, Box<dyn Error>> {
    let options = Options::parse()?;
    if options.help {
        println!("{HELP}");
        return Ok(true);
    }
    let folder = Folder::new()?;
    let built = build(&folder.0, options.functions)?;
    let libraries: Vec<Library> =
        built.residents.iter().map(Guest::open).collect::<Result<_, _>>()?;
    // While this is the only thread: gcc leaves five one-byte nops at an entry, and making
    // one instruction of them is only safe while no thread can be between them.
    let process = Process::open()?;
    let targets = libraries.iter().flat_map(|library| library.targets.iter().copied()).collect();
    let world: &'static World = Box::leak(Box::new(World::new(targets)));
    let (all, selections) = selections(world, &process.functions(), SELECTIONS)?;
    let text = Text::copy(&folder.0)?;
    disturb::prepare_signals(world)?;
    let start = libraries.first().ok_or("no library")?.symbol(c"thread")?;
    eprintln!("torture: {} functions, {} bytes of text", all.numbers.len(), text.len());

    let stage = Stage { process, world, selections };
    let mut memory = Memory::new();
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let crowd = Crowd { stage: &stage, all: &all, built: &built, start, stop: &stop };
        crowd.start(scope, options.threads);
        watch_over(options.length, started, &mut memory);
        stop.store(true, Ordering::Relaxed);
    });
    let seconds = started.elapsed().as_secs();
    watch::flush();
    tally::describe(0);
    finish(&stage, &text);
    for library in libraries {
        // SAFETY: every thread that called into it has ended.
        unsafe { library.close() };
    }

    println!("torture: {TALLY}");
    println!(
        "torture: seconds={seconds} threads={} operations={} calls={} wrong={} lost={} \
         duplicated={} rss_growth_kib={}",
        options.threads,
        TALLY.operations(),
        TALLY.calls.get(),
        TALLY.wrong.get(),
        TALLY.lost.get() + TALLY.lost_in_change.get(),
        TALLY.duplicated.get() + TALLY.late.get(),
        memory.growth(),
    );
    Ok(TALLY.is_good())
}

/// What was compiled.
struct Built {
    /// They stay loaded.
    residents: Vec<Guest>,
    /// They come and go, hooked.
    guests: Vec<Guest>,
    /// It comes and goes, and nobody hooks it.
    bystander: Guest,
}

fn build(folder: &Path, functions: usize) -> Result<Built, Box<dyn Error>> {
    let compile = |name: String, functions: usize, seed: u32| {
        let flags = FLAGS[seed as usize % FLAGS.len()];
        let object = Object { name: &name, functions, seed, flags };
        Ok::<_, Box<dyn Error>>(Guest { path: object.compile(folder)?, functions, seed })
    };
    let each = functions.div_ceil(FLAGS.len()).next_multiple_of(FORMS.len());
    let guest = |seed| compile(format!("guest-{seed}"), GUEST_FUNCTIONS, seed);
    Ok(Built {
        residents: (0..4)
            .map(|seed| compile(format!("resident-{seed}"), each, seed))
            .collect::<Result<_, _>>()?,
        guests: (4..8).map(guest).collect::<Result<_, _>>()?,
        bystander: guest(8)?,
    })
}

/// Who does things.
#[derive(Clone, Copy)]
struct Crowd<'a> {
    stage: &'a Stage,
    all: &'a Selection,
    built: &'a Built,
    /// The start routine of a thread that is hooked functions from its start to its end.
    start: usize,
    stop: &'a AtomicBool,
}

impl<'a> Crowd<'a> {
    /// Starts everybody.
    fn start<'scope>(self, scope: &'scope Scope<'scope, 'a>, callers: usize) {
        let Self { stage, start, stop, built, .. } = self;
        for number in 0..callers {
            scope.spawn(move || self.caller(number as u64));
        }
        for number in 0..OPERATORS {
            scope.spawn(move || self.operator(number));
        }
        scope.spawn(move || self.warden());
        scope.spawn(move || self.janitor());
        scope.spawn(move || disturb::signals(stop));
        scope.spawn(move || disturb::short_threads(stage, start, stop));
        scope.spawn(move || disturb::forks(stage, stop));
        scope.spawn(move || guests::visits(stage, &built.guests, stop));
        scope.spawn(move || guests::bystander(&built.bystander, stop));
    }

    fn goes_on(self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Calls functions: now one here and one there, now the same few over and over.
    fn caller(self, number: u64) {
        let _listener = Listener::new();
        let mut random = Random::new(number + 100);
        let world = self.stage.world;
        while self.goes_on() {
            let few = disturb::any_function(world, &mut random);
            for turn in 0..1000 {
                let function = if turn < 500 {
                    disturb::any_function(world, &mut random)
                } else {
                    (few + turn % 8) % world.targets.len() as u32
                };
                world.call(function, random.next() | 1, random.next());
            }
        }
    }

    /// Changes links, three of its own.
    fn operator(self, number: usize) {
        let _listener = Listener::new();
        let mut random = Random::new(number as u64 + 200);
        let own = (1..WATCHES).filter(|watch| watch % OPERATORS == number);
        let mut posts: Vec<_> = own.map(|watch| Post::new(self.stage, watch)).collect();
        while self.goes_on() {
            let turn = random.below(posts.len());
            posts[turn].step(&mut random);
        }
        posts.iter_mut().for_each(|post| post.detach(&mut random));
    }

    /// Keeps one link on for seconds, so that much is changed around it.
    fn warden(self) {
        let _listener = Listener::new();
        let mut random = Random::new(300);
        let mut post = Post::new(self.stage, 0);
        while self.goes_on() {
            post.attach(self.all, &mut random);
            for _ in 0..30 {
                if self.goes_on() {
                    sleep(Duration::from_millis(100));
                }
            }
            post.detach(&mut random);
            sleep(Duration::from_millis(500));
        }
    }

    /// Frees what was detached.
    fn janitor(self) {
        let _listener = Listener::new();
        while self.goes_on() {
            guests::synchronize(self.stage);
            sleep(Duration::from_millis(100));
        }
    }
}

/// Tells how it gets on, until the time is over.
fn watch_over(length: Duration, started: Instant, memory: &mut Memory) {
    let (mut described, mut shown) = (0, Instant::now());
    let (mut done, mut last) = ((0, 0), Instant::now());
    loop {
        let left = length.saturating_sub(started.elapsed());
        sleep(left.min(Duration::from_millis(100)));
        let resident = memory.sample();
        let now = (TALLY.operations(), TALLY.calls.get());
        if now.0 != done.0 && now.1 != done.1 {
            (done, last) = (now, Instant::now());
        } else if last.elapsed() > HUNG {
            eprintln!("torture: nothing happens any more: {TALLY}");
            std::process::exit(1);
        }
        if shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            described = tally::describe(described);
            eprintln!("torture: {:>4} s, {resident} KiB: {TALLY}", started.elapsed().as_secs());
        }
        if left.is_zero() {
            break;
        }
    }
}

/// Now that this is the only thread again: everything must be gone, and text as it was.
fn finish(stage: &Stage, text: &Text) {
    if !(0..10).any(|_| guests::synchronize(stage)) {
        refused("synchronize", &"a thread is inside, and there is only one");
    }
    if programs::living() != 0 {
        refused("closures", &format!("{} were never dropped", programs::living()));
    }
    if text.differences() != 0 {
        refused("text", &format!("{} bytes are not as they were", text.differences()));
    }
}

/// A folder of its own for what is compiled, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("fentry-torture-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
