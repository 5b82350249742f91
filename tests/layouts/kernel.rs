//! The functions of a distribution's kernel, by their bytes and by its configuration, against
//! its own symbols and its own record of patch sites.
//!
//! `KERNEL_IMAGE` names a folder with `vmlinuz` and `config`, as `fetch-kernel.sh` beside this
//! file makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use fentry::addr::Entry;
use fentry::layout::{Arch, Around, Config, Kernel, LandingPad, detect};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::image::Image;
use crate::kallsyms::symbols;
use crate::support::skipped;

/// What Linux writes over every call of `__fentry__` when it boots (arch/x86/kernel/ftrace.c).
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// The code and the names of a kernel.
struct Subject {
    image: Image,
    /// Names by address, of code only, without those of padding.
    functions: BTreeMap<u64, Vec<String>>,
    /// Where padding begins, by the name of its function.
    padding: BTreeMap<String, u64>,
    /// The patch sites.
    sites: BTreeSet<u64>,
    /// `__stack_chk_fail`, a call of which ends many a function.
    never_returns: u64,
}

impl Subject {
    /// Takes an image and does to it what the kernel does to itself at boot.
    fn new(mut image: Image) -> Self {
        let symbols = symbols(&image);
        let at = |name: &str| symbols.iter().find(|one| one.name == name).expect(name).address;
        let record = image.bytes(at("__start_mcount_loc"), at("__stop_mcount_loc"));
        let sites: BTreeSet<u64> = record
            .chunks_exact(8)
            .map(|site| u64::from_le_bytes(site.try_into().unwrap()))
            .filter(|&site| image.is_code(site))
            .collect();
        let never_returns = at("__stack_chk_fail");
        let fentry = at("__fentry__");
        for &site in &sites {
            let call = Decoder::with_ip(64, image.around(site, 5).1, site, 0).decode();
            assert_eq!(call.code(), Code::Call_rel32_64, "{site:#x}");
            assert_eq!(call.near_branch_target(), fentry, "{site:#x}");
            image.write(site, &NOP);
        }
        let mut functions = BTreeMap::<_, Vec<String>>::new();
        let mut padding = BTreeMap::new();
        for symbol in symbols {
            if !"tTwW".contains(symbol.kind) || !image.is_code(symbol.address) {
                continue;
            }
            let prefix = ["__pfx_", "__cfi_"].iter().find_map(|p| symbol.name.strip_prefix(p));
            match prefix {
                Some(function) => {
                    // A local name may be there twice; both lead to their function.
                    padding.insert(format!("{function}@{:x}", symbol.address), symbol.address);
                }
                None => functions.entry(symbol.address).or_default().push(symbol.name),
            }
        }
        Self { image, functions, padding, sites, never_returns }
    }

    /// Whether the symbols say that `before` bytes of padding are before the function at `entry`.
    fn is_padded(&self, entry: u64, before: u64) -> bool {
        let start = entry - before;
        self.functions[&entry]
            .iter()
            .any(|name| self.padding.get(&format!("{name}@{start:x}")) == Some(&start))
    }

    /// Whether the `before` bytes before `entry` are instructions of their own that nothing before
    /// them runs into, by a decoder that begins at the first symbol before that has code.
    fn is_left_alone(&self, entry: u64, before: u64) -> bool {
        let start = entry - before;
        let symbols = self.functions.range(..start).rev().map(|(&symbol, _)| symbol);
        symbols.map_while(|from| self.last(from, start)).find_map(|last| last).is_some_and(|last| {
            match last.flow_control() {
                FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Return
                | FlowControl::Interrupt
                | FlowControl::Exception => true,
                FlowControl::Call => last.near_branch_target() == self.never_returns,
                _ => false,
            }
        })
    }

    /// The last instruction from `from` to before `end` that is no nop; `None` where `end` is
    /// inside of one.
    fn last(&self, from: u64, end: u64) -> Option<Option<Instruction>> {
        let bytes = self.image.bytes(from, end);
        let mut last = None;
        let mut next = from;
        for instruction in &mut Decoder::with_ip(64, bytes, from, DecoderOptions::NONE) {
            next = instruction.next_ip();
            // Nops that align change nothing.
            if instruction.mnemonic() != Mnemonic::Nop {
                last = Some(instruction);
            }
        }
        let whole = last.is_none_or(|last| !last.is_invalid());
        (next == end && whole).then_some(last)
    }
}

fn landing_pad(at: &[u8]) -> LandingPad {
    match Decoder::new(64, at, DecoderOptions::NONE).decode().code() {
        Code::Endbr64 => LandingPad::Endbr64,
        _ => LandingPad::None,
    }
}

#[test]
fn every_function_of_a_stock_kernel() {
    let Some(folder) = std::env::var_os("KERNEL_IMAGE").map(PathBuf::from) else {
        return skipped(
            "the functions of a stock kernel",
            "KERNEL_IMAGE is not set; run tests/layouts/fetch-kernel.sh FOLDER, and set it to FOLDER",
        );
    };
    let text = fs::read_to_string(folder.join("config")).expect("the folder has config");
    let kernel = Kernel::parse(&text).expect("the configuration of an x86-64 kernel");
    let compiled = kernel.compiled();
    let layout = kernel.layout().expect("a kernel with ftrace");
    let before_entry = u64::from(compiled.before_entry());
    let subject = Subject::new(Image::read(&folder.join("vmlinuz")));

    let (mut sites, mut plain, mut silent, mut unknown) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    for (&entry, names) in &subject.functions {
        let (before, at) = subject.image.around(entry, 96);
        let pad = landing_pad(at);
        let config = |site| -> Config {
            let config = if pad == LandingPad::None { kernel.called_directly() } else { compiled };
            config.with_site(site)
        };
        let site = subject.sites.contains(&(entry + u64::from(pad.size())));
        let padded = subject.is_padded(entry, before_entry);
        // By the bytes alone.
        let around = Around { entry: Entry::new(entry), before, at, recorded: false };
        let found = detect(Arch::X86_64, &around);
        let right = match (padded, site) {
            // Traced: its bytes must say all of it, and agree with the configuration.
            (true, true) => {
                sites += 1;
                let slot = layout.slot(Entry::new(entry)).map_or(entry, |slot| slot.get());
                found == Some(config(5).as_seen())
                    && config(5).stands(&around)
                    && subject.image.bytes(slot, entry).starts_with(&[0x90; 5])
            }
            // Not traced, and padded all the same.
            (true, false) => {
                plain += usize::from(found.is_some());
                unknown += usize::from(found.is_none());
                found.is_none() && before.ends_with(&[0x90; 19])
                    || found == Some(config(0).as_seen())
            }
            (false, true) => false,
            // The symbols say nothing: assembly, or the cold part of a function. What is found must
            // be bytes that nobody runs into.
            (false, false) => match found {
                Some(found) => {
                    silent += 1;
                    let padding = u64::from(found.before_entry());
                    found == config(0).as_seen() && subject.is_left_alone(entry, padding)
                }
                None => true,
            },
        };
        if !right {
            wrong.push(format!("{entry:#x} {names:?}: {found:?}, {before:02x?} | {at:02x?}"));
        }
    }
    println!(
        "kernel: functions={} traced={sites} padded={plain} assembly={silent} unknown={unknown} \
         wrong={}",
        subject.functions.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{} are wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    assert!(sites >= 10_000, "{sites} functions were compared");
    let in_text = subject.sites.len();
    assert_eq!(sites, in_text, "every patch site is at a function that has a name");
}
