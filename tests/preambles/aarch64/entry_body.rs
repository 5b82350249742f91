//! Entry bodies in the emulator: a hand-made function is called with every register full, and
//! programs leave nothing as it was.

use fentry::emit::aarch64::{
    Check, EntryBody, Hardening, SITE_KEEP, THUNK_JUMP, THUNK_SIZE, Vectors, entry_thunk,
};
use fentry::emit::{CookiePlace, IndexFrom, Mitigations, ProgramCall, Stride};
use fentry::encode::CodeBuffer;
use fentry::encode::aarch64::{
    Base, Bti, Index, Reg, Vector, b_bytes, bl, bl_bytes, bti, ldp_vectors, ldr, mov_imm64, mov_sp,
    nop, ret, stp_vectors, str,
};

use super::emulator::{DATA, End, emulator, exit, run_and_read, track_branches, write_data};

const INDEX: u32 = 0x12;
/// Where things are in the page of data, by their offsets.
const BEFORE: u32 = 0;
const AFTER: u32 = 0x200;
const SEEN: u32 = 0x400;
const SEEN_SIZE: u32 = 0x100;
const COOKIES: u32 = 0xc00;
const VECTOR_VALUES: u32 = 0xf00;
/// What is written at the end.
const WRITTEN: u64 = 0xc00;
/// Words of a state: `x0` to `x30` but `x9`, `x16` and `x17` are zero, then `sp`.
const STATE: u32 = 32 * 8;
const PROGRAMS: u32 = 3;

/// Registers that a state has: all but those that nothing says anything about at an entry, and
/// `x16` and `x17`, which the state is made with.
fn registers() -> impl Iterator<Item = Reg> {
    let free = 9..=14;
    Reg::ALL
        .into_iter()
        .filter(move |reg| !free.contains(&reg.number()) && !(16..=17).contains(&reg.number()))
}

fn vectors() -> impl Iterator<Item = (u32, (Vector, Vector))> {
    [0, 2, 4, 6].into_iter().map(|number: u8| {
        let pair = [number, number + 1].map(|number| Vector::new(number).unwrap());
        (u32::from(number) * 16, (pair[0], pair[1]))
    })
}

/// Stores the state at an offset of the data. Changes `x16` and `x17`.
fn store_state(code: &mut CodeBuffer<'_>, offset: u32) {
    mov_imm64(code, Reg::X16, DATA + u64::from(offset)).unwrap();
    for reg in registers() {
        str(code, reg, Base::Reg(Reg::X16), 8 * u32::from(reg.number())).unwrap();
    }
    mov_sp(code, Base::Reg(Reg::X17), Base::Sp).unwrap();
    str(code, Reg::X17, Base::Reg(Reg::X16), 8 * 31).unwrap();
    for (at, pair) in vectors() {
        let at = (STATE + at).cast_signed();
        stp_vectors(code, pair, Base::Reg(Reg::X16), at, Index::Offset).unwrap();
    }
}

/// Fills the cookies, the vector registers and all others.
fn fill(code: &mut CodeBuffer<'_>) {
    mov_imm64(code, Reg::X16, DATA + u64::from(COOKIES)).unwrap();
    for word in 0..64 {
        mov_imm64(code, Reg::X17, 0xc00c_1e00_0000_0000 | u64::from(word)).unwrap();
        str(code, Reg::X17, Base::Reg(Reg::X16), 8 * word).unwrap();
    }
    mov_imm64(code, Reg::X16, DATA + u64::from(VECTOR_VALUES)).unwrap();
    for word in 0..16 {
        mov_imm64(code, Reg::X17, 0xfec7_0000_0000_0000 | u64::from(word)).unwrap();
        str(code, Reg::X17, Base::Reg(Reg::X16), 8 * word).unwrap();
    }
    for (at, pair) in vectors() {
        ldp_vectors(code, pair, Base::Reg(Reg::X16), at.cast_signed(), Index::Offset).unwrap();
    }
    for reg in registers().filter(|&reg| reg != Reg::LR) {
        mov_imm64(code, reg, 0xf111_0000_0000_0000 | u64::from(reg.number())).unwrap();
    }
}

/// A program: keeps what it was given, copies its context, and changes what it may.
fn program(code: &mut CodeBuffer<'_>, number: u32, vectors_too: bool) {
    bti(code, Bti::Call).unwrap();
    mov_imm64(code, Reg::X16, DATA + u64::from(SEEN + number * SEEN_SIZE)).unwrap();
    for (at, reg) in [(0, Reg::X0), (8, Reg::X1), (16, Reg::X2), (24, Reg::FP)] {
        str(code, reg, Base::Reg(Reg::X16), at).unwrap();
    }
    mov_sp(code, Base::Reg(Reg::X17), Base::Sp).unwrap();
    str(code, Reg::X17, Base::Reg(Reg::X16), 32).unwrap();
    for word in 0..18 {
        ldr(code, Reg::X17, Base::Reg(Reg::X0), 8 * word).unwrap();
        str(code, Reg::X17, Base::Reg(Reg::X16), 40 + 8 * word).unwrap();
    }
    // The first one changes an argument of the function.
    if number == 0 {
        mov_imm64(code, Reg::X17, 0xa46).unwrap();
        str(code, Reg::X17, Base::Reg(Reg::X0), 8).unwrap();
    }
    if vectors_too {
        for (_, pair) in vectors() {
            ldp_vectors(code, pair, Base::Reg(Reg::X16), 0, Index::Offset).unwrap();
        }
    }
    for reg in Reg::ALL.into_iter().take(19) {
        mov_imm64(code, reg, 0xdead_0000 | u64::from(reg.number())).unwrap();
    }
    ret(code, Reg::LR).unwrap();
}

struct Case {
    hardening: Hardening,
    vectors: Vectors,
    thunk: bool,
    attached: bool,
}

/// Where the pieces are, from the start.
struct Places {
    entry: u64,
    origin: u64,
    caller: u64,
}

impl Case {
    fn run(&self, emulator: &str) -> (Places, Vec<u8>) {
        let mut places = Places { entry: 0, origin: 0, caller: 0 };
        let (end, data) = run_and_read(emulator, "entry", |code| {
            places = self.emit(code);
        });
        assert_eq!(end, End::Exit(7));
        assert_eq!(data.len() as u64, WRITTEN);
        (places, data)
    }

    fn emit(&self, code: &mut CodeBuffer<'_>) -> Places {
        let start = code.here();
        let [function, thunk, programs, image] =
            [0x1000, 0x1200, 0x1400, 0x2000].map(|at| start + at);
        // The slot is the word before the entry.
        let entry = function + 4;
        track_branches(code);
        fill(code);
        // With `x30` as the call makes it.
        let before = code.here();
        let caller = before + 4 * (registers().count() as u64 + 40);
        mov_imm64(code, Reg::LR, caller).unwrap();
        store_state(code, BEFORE);
        while code.here() < caller - 4 {
            nop(code).unwrap();
        }
        bl(code, entry).unwrap();
        assert_eq!(code.here(), caller);
        write_data(code, WRITTEN);
        mov_imm64(code, Reg::X0, 7).unwrap();
        exit(code);

        let fill_up = |code: &mut CodeBuffer<'_>, to: u64| {
            assert!(code.here() <= to, "{:#x} is past {to:#x}", code.here());
            while code.here() < to {
                nop(code).unwrap();
            }
        };
        fill_up(code, function);
        code.bytes(&INDEX.to_le_bytes()).unwrap();
        bti(code, Bti::Call).unwrap();
        let site = code.here() + 4;
        let target = if self.thunk { thunk } else { image };
        if self.thunk || self.attached {
            code.bytes(&SITE_KEEP).unwrap();
            code.bytes(&bl_bytes(site, target).unwrap()).unwrap();
        } else {
            nop(code).unwrap();
            nop(code).unwrap();
        }
        let origin = code.here();
        store_state(code, AFTER);
        ret(code, Reg::LR).unwrap();

        fill_up(code, thunk);
        let mut bytes = [0; THUNK_SIZE];
        entry_thunk(&mut CodeBuffer::new(&mut bytes, thunk), INDEX).unwrap();
        if self.attached {
            let jump = b_bytes(thunk + THUNK_JUMP as u64, image).unwrap();
            bytes[THUNK_JUMP..THUNK_JUMP + 4].copy_from_slice(&jump);
        }
        code.bytes(&bytes).unwrap();
        fill_up(code, programs);
        let mut calls = Vec::new();
        for number in 0..PROGRAMS {
            let stride = if number == 1 { Stride::Sixteen } else { Stride::Eight };
            let column = DATA + u64::from(COOKIES + 8 * number);
            calls.push(ProgramCall {
                target: code.here(),
                data: (number > 0).then_some(0xdada_0000_0000 | u64::from(number)),
                cookie: CookiePlace { column, stride },
                session: None,
            });
            program(code, number, self.vectors == Vectors::Arguments);
        }
        fill_up(code, image);
        let index =
            if self.thunk { IndexFrom::Thunk } else { IndexFrom::Slot { return_to_index: 16 } };
        let body = EntryBody {
            index,
            return_to_entry: 12,
            vectors: self.vectors,
            calls: &calls,
            hardening: self.hardening,
        };
        let at = code.position();
        body.emit(code).unwrap();
        assert!(code.position() - at <= EntryBody::max_size(calls.len()));
        Places { entry, origin, caller }
    }
}

fn word(data: &[u8], offset: u32) -> u64 {
    let at = offset as usize;
    u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

/// Compares what the function found with what its caller gave it.
fn kept(data: &[u8], caller: u64, changed: bool) {
    for reg in registers() {
        let at = 8 * u32::from(reg.number());
        let (before, after) = (word(data, BEFORE + at), word(data, AFTER + at));
        match reg {
            Reg::X1 if changed => assert_eq!(after, 0xa46),
            Reg::LR => assert_eq!(after, caller),
            _ => assert_eq!(after, before, "{reg:?}"),
        }
    }
    // The stack pointer and the vectors behind it.
    for offset in (8 * 31..STATE + 128).step_by(8) {
        assert_eq!(word(data, AFTER + offset), word(data, BEFORE + offset), "{offset}");
    }
}

#[test]
fn programs_run_and_everything_is_kept() {
    let Some(emulator) = emulator("aarch64 programs_run_and_everything_is_kept") else { return };
    for hardening in super::hardenings(Check::None) {
        for vectors in [Vectors::Untouched, Vectors::Arguments] {
            let case = Case { hardening, vectors, thunk: false, attached: true };
            let (places, data) = case.run(emulator);
            kept(&data, places.caller, true);
            let signed = hardening.mitigations().contains(Mitigations::SIGNED_RETURNS);
            for number in 0..PROGRAMS {
                seen(&data, number, &places, signed);
            }
        }
    }
}

/// What the program was given.
fn seen(data: &[u8], number: u32, places: &Places, signed: bool) {
    let at = |offset: u32| word(data, SEEN + number * SEEN_SIZE + offset);
    let context = |offset: u32| at(40 + offset);
    let before = |reg: Reg| word(data, BEFORE + 8 * u32::from(reg.number()));
    let stride = if number == 1 { 2 } else { 1 };
    assert_eq!(at(8), 0xc00c_1e00_0000_0000 | u64::from(number + INDEX * stride), "the cookie");
    if number > 0 {
        assert_eq!(at(16), 0xdada_0000_0000 | u64::from(number));
    }
    assert_eq!(at(32) % 16, 0, "the stack pointer is aligned at a call");
    assert_eq!(at(24), at(0) + 112, "x29 is the function's frame record");
    for number_of in 0..8 {
        let expected = match (number_of, number) {
            (1, 1..) => 0xa46,
            _ => before(Reg::ALL[number_of as usize]),
        };
        assert_eq!(context(8 * number_of), expected);
    }
    assert_eq!(context(64), before(Reg::X8));
    assert_eq!(context(72), before(Reg::X15));
    assert_eq!(context(80), before(Reg::X18));
    assert_eq!(context(88), u64::from(INDEX));
    assert_eq!(context(96), places.entry);
    assert_eq!(context(104), word(data, BEFORE + 8 * 31), "the first stack argument");
    assert_eq!(context(112), at(0) + 128, "the next frame record");
    assert_eq!(context(128), before(Reg::FP));
    // A signature is in the bits above an address.
    const ADDRESS: u64 = (1 << 47) - 1;
    for (found, plain) in [(context(120), places.origin), (context(136), places.caller)] {
        assert_eq!(found & ADDRESS, plain);
        assert!(signed || found == plain);
    }
    if signed {
        let unsigned = [(context(120), places.origin), (context(136), places.caller)];
        assert!(unsigned.iter().any(|(found, plain)| found != plain), "nothing is signed");
    }
}

#[test]
fn a_thunk_brings_the_index() {
    let Some(emulator) = emulator("aarch64 a_thunk_brings_the_index") else { return };
    let case = |attached| Case {
        hardening: Hardening::NONE,
        vectors: Vectors::Arguments,
        thunk: true,
        attached,
    };
    let (places, data) = case(true).run(emulator);
    kept(&data, places.caller, true);
    for number in 0..PROGRAMS {
        seen(&data, number, &places, false);
    }
    // Nothing is attached: the thunk alone.
    let (places, data) = case(false).run(emulator);
    kept(&data, places.caller, false);
    assert_eq!(word(&data, SEEN), 0, "no program ran");
}

#[test]
fn a_patch_site_that_is_not_patched_does_nothing() {
    let Some(emulator) = emulator("aarch64 a_patch_site_that_is_not_patched") else { return };
    let case = Case {
        hardening: Hardening::NONE,
        vectors: Vectors::Untouched,
        thunk: false,
        attached: false,
    };
    let (places, data) = case.run(emulator);
    kept(&data, places.caller, false);
    assert_eq!(word(&data, SEEN), 0, "no program ran");
}
