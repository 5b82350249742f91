//! Every function of the encoder with what an assembler makes the same instruction from.

use fentry::encode::aarch64::{self as a, Base, Bti, Condition, Index, Reg, Vector};
use fentry::encode::{CodeBuffer, EncodeError};

/// Where every instruction stands.
pub const AT: u64 = 0x4000_0000;

/// One instruction: its text, in which a branch's operand is the distance, and its bytes.
pub struct Case {
    pub text: String,
    pub bytes: [u8; 4],
}

/// What `emit` makes of a buffer with room for one instruction.
pub fn one(
    emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
) -> Result<[u8; 4], EncodeError> {
    let mut bytes = [0; 4];
    let mut code = CodeBuffer::new(&mut bytes, AT);
    emit(&mut code)?;
    assert_eq!(code.position(), 4);
    Ok(bytes)
}

struct Cases(Vec<Case>);

impl Cases {
    fn add(
        &mut self,
        text: String,
        emit: impl FnOnce(&mut CodeBuffer<'_>) -> Result<(), EncodeError>,
    ) {
        let bytes = one(emit).unwrap_or_else(|error| panic!("{text}: {error}"));
        self.0.push(Case { text, bytes });
    }
}

const BASES: [Base; 4] = [Base::Sp, Base::Reg(Reg::X0), Base::Reg(Reg::X17), Base::Reg(Reg::X30)];
/// Registers that are neither the first nor all of one kind.
const SOME: [Reg; 4] = [Reg::X0, Reg::X9, Reg::X16, Reg::X30];

fn base_name(base: Base) -> String {
    match base {
        Base::Sp => "sp".to_owned(),
        Base::Reg(reg) => format!("x{}", reg.number()),
    }
}

fn vector(number: u8) -> Vector {
    Vector::new(number).expect("tests stay below 32")
}

/// An address as assemblers write it.
fn address(base: Base, offset: i64, index: Index) -> String {
    let base = base_name(base);
    match index {
        Index::Offset if offset == 0 => format!("[{base}]"),
        Index::Offset => format!("[{base}, #{offset}]"),
        Index::Pre => format!("[{base}, #{offset}]!"),
        Index::Post => format!("[{base}], #{offset}"),
    }
}

const INDEXES: [Index; 3] = [Index::Offset, Index::Pre, Index::Post];

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    branches(&mut cases);
    constants(&mut cases);
    sums(&mut cases);
    loads_and_stores(&mut cases);
    pairs(&mut cases);
    system(&mut cases);
    cases.0
}

const CONDITIONS: [&str; 14] =
    ["eq", "ne", "hs", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le"];

fn branches(cases: &mut Cases) {
    let to = |distance: i64| AT.wrapping_add_signed(distance);
    for distance in [0, 4, -4, 0x1000, 0x7ff_fffc, -0x800_0000] {
        cases.add(format!("b #{distance}"), |code| a::b(code, to(distance)));
        cases.add(format!("bl #{distance}"), |code| a::bl(code, to(distance)));
    }
    for distance in [0, 4, -4, 0x1000, 0xf_fffc, -0x10_0000] {
        for (condition, name) in Condition::ALL.into_iter().zip(CONDITIONS) {
            cases.add(format!("b.{name} #{distance}"), |code| {
                a::b_cond(code, condition, to(distance))
            });
        }
        for reg in SOME {
            let number = reg.number();
            cases
                .add(format!("cbz x{number}, #{distance}"), |code| a::cbz(code, reg, to(distance)));
            cases.add(format!("cbnz x{number}, #{distance}"), |code| {
                a::cbnz(code, reg, to(distance))
            });
            cases.add(format!("ldr x{number}, #{distance}"), |code| {
                a::ldr_literal(code, reg, to(distance))
            });
        }
    }
    for reg in Reg::ALL {
        let number = reg.number();
        cases.add(format!("br x{number}"), |code| a::br(code, reg));
        cases.add(format!("blr x{number}"), |code| a::blr(code, reg));
        let text = if reg == Reg::LR { "ret".to_owned() } else { format!("ret x{number}") };
        cases.add(text, |code| a::ret(code, reg));
        for distance in [0, 1, 2, 3, 4, -1, 0xf_ffff, -0x10_0000] {
            cases
                .add(format!("adr x{number}, #{distance}"), |code| a::adr(code, reg, to(distance)));
        }
        for distance in [0, 0x1000, -0x1000, 0xffff_f000, -0x1_0000_0000] {
            cases.add(format!("adrp x{number}, #{distance}"), |code| {
                // Where in its page the target is does not matter.
                a::adrp(code, reg, to(distance) + 0x123)
            });
        }
    }
}

fn constants(cases: &mut Cases) {
    for reg in Reg::ALL {
        let number = reg.number();
        for value in [0_u16, 1, 0x1234, 0xffff] {
            for part in 0..4 {
                let shift = if part == 0 { String::new() } else { format!(", lsl #{}", 16 * part) };
                cases.add(format!("movz x{number}, #{value}{shift}"), |code| {
                    a::movz(code, reg, value, part)
                });
                cases.add(format!("movk x{number}, #{value}{shift}"), |code| {
                    a::movk(code, reg, value, part)
                });
                if part < 2 {
                    cases.add(format!("movk w{number}, #{value}{shift}"), |code| {
                        a::movk32(code, reg, value, part)
                    });
                }
            }
        }
    }
}

fn sums(cases: &mut Cases) {
    for dst in BASES {
        for src in BASES {
            let (d, s) = (base_name(dst), base_name(src));
            for value in [0, 1, 8, 0xfff, 0x1000, 0x2000, 0xfff000] {
                cases.add(format!("add {d}, {s}, #{value}"), |code| {
                    a::add_imm(code, dst, src, value)
                });
                cases.add(format!("sub {d}, {s}, #{value}"), |code| {
                    a::sub_imm(code, dst, src, value)
                });
                cases.add(format!("cmp {s}, #{value}"), |code| a::cmp_imm(code, src, value));
            }
            if dst == Base::Sp || src == Base::Sp {
                cases.add(format!("mov {d}, {s}"), |code| a::mov_sp(code, dst, src));
            }
        }
    }
    for left in Reg::ALL {
        for right in Reg::ALL {
            let (l, r) = (left.number(), right.number());
            cases.add(format!("mov x{l}, x{r}"), |code| a::mov_reg(code, left, right));
            cases.add(format!("cmp x{l}, x{r}"), |code| a::cmp_reg(code, left, right));
            cases.add(format!("cmp w{l}, w{r}"), |code| a::cmp_reg32(code, left, right));
        }
        for (dst, right) in SOME.into_iter().zip(SOME.into_iter().rev()) {
            let (d, l, r) = (dst.number(), left.number(), right.number());
            for shift in [0, 1, 3, 63] {
                let by = if shift == 0 { String::new() } else { format!(", lsl #{shift}") };
                cases.add(format!("add x{d}, x{l}, x{r}{by}"), |code| {
                    a::add_reg(code, dst, left, right, shift)
                });
                cases.add(format!("sub x{d}, x{l}, x{r}{by}"), |code| {
                    a::sub_reg(code, dst, left, right, shift)
                });
            }
        }
    }
}

fn loads_and_stores(cases: &mut Cases) {
    for (reg, base) in Reg::ALL.into_iter().flat_map(|reg| BASES.map(|base| (reg, base))) {
        let n = reg.number();
        for offset in [0, 8, 0x100, 32760] {
            let at = address(base, i64::from(offset), Index::Offset);
            cases.add(format!("ldr x{n}, {at}"), |code| a::ldr(code, reg, base, offset));
            cases.add(format!("str x{n}, {at}"), |code| a::str(code, reg, base, offset));
        }
        for offset in [0, 4, 0x100, 16380] {
            let at = address(base, i64::from(offset), Index::Offset);
            cases.add(format!("ldr w{n}, {at}"), |code| a::ldr32(code, reg, base, offset));
            cases.add(format!("str w{n}, {at}"), |code| a::str32(code, reg, base, offset));
        }
        for offset in [0, 1, -1, -4, 255, -256] {
            let at = address(base, i64::from(offset), Index::Offset);
            cases.add(format!("ldur x{n}, {at}"), |code| a::ldur(code, reg, base, offset));
            cases.add(format!("stur x{n}, {at}"), |code| a::stur(code, reg, base, offset));
            cases.add(format!("ldur w{n}, {at}"), |code| a::ldur32(code, reg, base, offset));
            cases.add(format!("stur w{n}, {at}"), |code| a::stur32(code, reg, base, offset));
            if base.number() == n {
                continue;
            }
            for index in INDEXES {
                let at = address(base, i64::from(offset), index);
                let [load, store] =
                    if index == Index::Offset { ["ldur", "stur"] } else { ["ldr", "str"] };
                cases.add(format!("{load} x{n}, {at}"), |code| {
                    a::ldr_index(code, reg, base, offset, index)
                });
                cases.add(format!("{store} x{n}, {at}"), |code| {
                    a::str_index(code, reg, base, offset, index)
                });
            }
        }
        for index in SOME {
            let (base_name, i) = (base_name(base), index.number());
            cases.add(format!("ldr x{n}, [{base_name}, x{i}, lsl #3]"), |code| {
                a::ldr_indexed(code, reg, base, index)
            });
        }
    }
}

fn pairs(cases: &mut Cases) {
    for (base, index) in BASES.into_iter().flat_map(|base| INDEXES.map(|index| (base, index))) {
        for (first, second) in [(Reg::X1, Reg::X2), (Reg::X29, Reg::X28), (Reg::X7, Reg::X19)] {
            let names = format!("x{}, x{}", first.number(), second.number());
            for offset in [0, 8, -16, 504, -512] {
                let at = address(base, i64::from(offset), index);
                cases.add(format!("ldp {names}, {at}"), |code| {
                    a::ldp(code, (first, second), base, offset, index)
                });
                cases.add(format!("stp {names}, {at}"), |code| {
                    a::stp(code, (first, second), base, offset, index)
                });
            }
        }
        for (first, second) in [(0, 1), (7, 6), (31, 16)] {
            let names = format!("q{first}, q{second}");
            for offset in [0, 16, -32, 1008, -1024] {
                let at = address(base, i64::from(offset), index);
                let registers = (vector(first), vector(second));
                cases.add(format!("ldp {names}, {at}"), |code| {
                    a::ldp_vectors(code, registers, base, offset, index)
                });
                cases.add(format!("stp {names}, {at}"), |code| {
                    a::stp_vectors(code, registers, base, offset, index)
                });
            }
        }
    }
}

fn system(cases: &mut Cases) {
    cases.add("nop".to_owned(), a::nop);
    cases.add("bti c".to_owned(), |code| a::bti(code, Bti::Call));
    cases.add("bti j".to_owned(), |code| a::bti(code, Bti::Jump));
    cases.add("bti jc".to_owned(), |code| a::bti(code, Bti::Both));
    cases.add("paciasp".to_owned(), a::paciasp);
    cases.add("autiasp".to_owned(), a::autiasp);
    cases.add("isb".to_owned(), a::isb);
    cases.add("dsb sy".to_owned(), a::dsb_sy);
    cases.add("hint #127".to_owned(), |code| a::hint(code, 127));
    cases.add("nop".to_owned(), |code| code.bytes(&a::NOP));
    cases.add("bti c".to_owned(), |code| code.bytes(&a::BTI_C));
    for number in [0, 1, 0x8000, 0xffff] {
        cases.add(format!("brk #{number}"), |code| a::brk(code, number));
        cases.add(format!("udf #{number}"), |code| a::udf(code, number));
    }
    for reg in Reg::ALL {
        cases.add(format!("mrs x{}, tpidr_el0", reg.number()), |code| a::mrs_tpidr_el0(code, reg));
    }
}
