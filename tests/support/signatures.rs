//! Generates C functions of every kind of signature that the x86-64 psABI passes
//! differently (System V ABI, section 3.2.3: INTEGER, SSE, X87 and MEMORY classes).
//!
//! Each case is three functions: `fN`, which is padded and so can be hooked; `tN`, its twin
//! with the same body and no patch site; and a driver for each of the two, not hooked
//! either, that passes the same known values. The body folds every argument into a checksum
//! in order, so that an argument that is lost, changed or swapped changes the result. What is
//! returned, of whatever type, is made of the checksum, and folded by the driver.

use core::fmt::Write;

use super::Random;

/// A C type and how to make and to fold a value of it.
struct Kind {
    /// As it is written in a parameter list.
    name: &'static str,
    /// The parts that are folded, each an expression with `@` for the argument.
    folds: &'static [&'static str],
    /// The parts of an initialiser: `i` an integer, `w` one of 128 bits, `f` a floating-point
    /// number.
    parts: &'static str,
}

const fn kind(name: &'static str, folds: &'static [&'static str], parts: &'static str) -> Kind {
    Kind { name, folds, parts }
}

/// Integers of 8 to 64 bits, both signs, and a pointer.
const INTEGERS: &[Kind] = &[
    kind("signed char", &["i(@)"], "i"),
    kind("unsigned char", &["i(@)"], "i"),
    kind("short", &["i(@)"], "i"),
    kind("unsigned short", &["i(@)"], "i"),
    kind("int", &["i(@)"], "i"),
    kind("unsigned", &["i(@)"], "i"),
    kind("long", &["i(@)"], "i"),
    kind("unsigned long long", &["i(@)"], "i"),
    kind("void *", &["i(@)"], "i"),
];

/// In SSE registers, and on the stack (`long double` is of class X87).
const FLOATS: &[Kind] = &[
    kind("float", &["d(@)"], "f"),
    kind("double", &["d(@)"], "f"),
    kind("long double", &["l(@)"], "f"),
];

/// Of two halves: in `rax` and `rdx`, packed in `xmm0`, in `xmm0` and `xmm1`, in `st0` and `st1`.
const HALVES: &[Kind] = &[
    kind("__int128", &["i(@)", "i(@ >> 64)"], "w"),
    kind("_Complex float", &["d(__real__ @)", "d(__imag__ @)"], "ff"),
    kind("_Complex double", &["d(__real__ @)", "d(__imag__ @)"], "ff"),
    kind("_Complex long double", &["l(__real__ @)", "l(__imag__ @)"], "ff"),
];

/// What a checksum is returned as where the type does not matter.
const CHECKSUM: Kind = kind("u64", &["i(@)"], "i");

/// Structures by value, 2 to 64 bytes; the name says the classes of the eightbytes.
const STRUCTURES: &[(Kind, &str)] = &[
    (kind("struct int2", &["i(@.a)", "i(@.b)"], "ii"), "char a, b;"),
    (kind("struct int6", &["i(@.a)", "i(@.b)", "i(@.c)"], "iii"), "short a, b, c;"),
    (kind("struct int8", &["i(@.a)", "i(@.b)"], "ii"), "int a, b;"),
    (kind("struct int12", &["i(@.a)", "i(@.b)", "i(@.c)"], "iii"), "int a, b, c;"),
    (kind("struct int16", &["i(@.a)", "i(@.b)"], "ii"), "long a, b;"),
    (kind("struct sse4", &["d(@.a)"], "f"), "float a;"),
    (kind("struct sse8", &["d(@.a)", "d(@.b)"], "ff"), "float a, b;"),
    (kind("struct sse12", &["d(@.a)", "d(@.b)", "d(@.c)"], "fff"), "float a, b, c;"),
    (kind("struct sse16", &["d(@.a)", "d(@.b)"], "ff"), "double a, b;"),
    (kind("struct int_sse16", &["i(@.a)", "d(@.b)"], "if"), "long a; double b;"),
    (kind("struct sse_int16", &["d(@.a)", "i(@.b)"], "fi"), "double a; int b;"),
    (kind("struct mixed16", &["d(@.a)", "i(@.b)", "d(@.c)"], "fif"), "float a; int b; double c;"),
    (kind("struct memory17", &["b(&@, 17)"], "iiiiiiiiiiiiiiiii"), "char a[17];"),
    (kind("struct x87_16", &["l(@.a)"], "f"), "long double a;"),
    (kind("struct memory24", &["b(&@, 24)"], "iii"), "long a[3];"),
    (kind("struct memory32", &["b(&@, 32)"], "ffff"), "double a[4];"),
    (kind("struct x87_32", &["l(@.a)", "i(@.b)"], "fi"), "long double a; long b;"),
    (
        kind("struct complex32", &["l(__real__ @.a)", "l(__imag__ @.a)"], "f"),
        "_Complex long double a;",
    ),
    (kind("struct memory40", &["b(&@, 40)"], "iiiii"), "long a[5];"),
    (kind("struct memory48", &["b(&@, 48)"], "ififif"), "struct { long a; double b; } a[3];"),
    (kind("struct memory56", &["b(&@, 56)"], "fffffff"), "double a[7];"),
    (kind("struct memory64", &["b(&@, 64)"], "iiiiiiii"), "long a[8];"),
];

/// Vectors by value: whole `ymm` and `zmm` argument registers, more of them than there are.
const YMM: Kind = kind("v32", &["b(&@, 32)"], "ffff");
const ZMM: Kind = kind("v64", &["b(&@, 64)"], "ffffffff");
const YMM_STRUCTURE: Kind = kind("struct ymm", &["b(&@.a, 32)"], "ffff");
const ZMM_STRUCTURE: Kind = kind("struct zmm", &["b(&@.a, 64)"], "ffffffff");

/// What every generated file begins with. `base` keeps functions without arguments from being
/// constants, which need not be called. `b` reads bytes through `volatile`, so that a
/// checksum can only be right if all bytes of the argument arrived; it is a call, because
/// unrolled it would take most of the compile time.
const PRELUDE: &str = "\
typedef unsigned long u64;
typedef double v32 __attribute__((vector_size(32)));
typedef double v64 __attribute__((vector_size(64)));
struct ymm { v32 a; };
struct zmm { v64 a; };
#define BARE __attribute__((noinline, patchable_function_entry(0, 0)))
#define PLAIN __attribute__((noinline))
static inline __attribute__((always_inline)) u64 mix(u64 h, u64 v) {
  h = (h ^ v) * 0x9e3779b97f4a7c15ul;
  return h ^ (h >> 29);
}
BARE static u64 b(const void *at, int size) {
  const volatile unsigned char *p = at;
  u64 h = 7;
  for (int k = 0; k < size; k++) h = mix(h, p[k]);
  return h;
}
static volatile u64 base = 1;
#define i(v) ((u64)(v))
#define d(v) ({ double d_ = (v); u64 u_; __builtin_memcpy(&u_, &d_, 8); u_; })
#define l(v) ({ long double l_ = (v); b(&l_, 10); })
";

/// C source and what is in it.
pub struct Generated {
    /// One file for the compiler. It exports `hooked`, an array of drivers that call the
    /// hooked functions, and `twins`, the same for the twins.
    pub source: String,
    /// What each case's function looks like, for messages.
    pub signatures: Vec<String>,
}

/// A driver: calls one function with its known values and returns the checksum.
pub type Driver = unsafe extern "C" fn() -> u64;

#[derive(Default)]
struct Writer {
    source: String,
    signatures: Vec<String>,
}

impl Writer {
    /// Declares a global that holds the value of argument `index` of case `case`. It is
    /// neither constant nor local: a compiler cannot fold it into the function.
    fn value(&mut self, random: &mut Random, case: usize, index: usize, kind: &Kind) {
        let mut parts = Vec::new();
        for part in kind.parts.chars() {
            let bits = random.next();
            parts.push(match part {
                'f' => format!(
                    "{}.{}",
                    (bits >> 40) as i32 - 8_000_000,
                    ["25", "5"][bits as usize & 1]
                ),
                'w' => format!("(__int128){}ul << 64 | {bits}ul", random.next()),
                _ if kind.name == "void *" => format!("(void *){bits}ul"),
                // Small enough for every integer type, but with its sign and high bits.
                _ => format!("{}", bits as i8),
            });
        }
        if kind.parts == "i" && kind.name.contains("long") {
            parts = vec![format!("(long){}ul", random.next())];
        }
        let value = initialiser(kind, &parts);
        let _ = writeln!(self.source, "{} v{case}_{index} = {value};", kind.name);
    }

    /// Writes one case. `returned` is what it returns, `fixed` are the named parameters, `more`
    /// those after `...`; `target` is an attribute for all four functions.
    fn case(
        &mut self,
        random: &mut Random,
        returned: &Kind,
        fixed: &[&Kind],
        more: &[&Kind],
        target: &str,
    ) {
        let case = self.signatures.len();
        for (index, kind) in fixed.iter().chain(more).enumerate() {
            self.value(random, case, index, kind);
        }
        let mut parameters: Vec<String> =
            fixed.iter().enumerate().map(|(n, kind)| format!("{} a{n}", kind.name)).collect();
        let mut body = format!("u64 h = base + {case};");
        for (n, kind) in fixed.iter().enumerate() {
            fold(&mut body, kind, &format!("a{n}"));
        }
        if !more.is_empty() {
            parameters.push("...".to_owned());
            let _ = write!(
                body,
                " __builtin_va_list list; __builtin_va_start(list, a{});",
                fixed.len() - 1
            );
            for (n, kind) in more.iter().enumerate() {
                let _ =
                    write!(body, " {} m{n} = __builtin_va_arg(list, {});", kind.name, kind.name);
                fold(&mut body, kind, &format!("m{n}"));
            }
            body.push_str(" __builtin_va_end(list);");
        }
        let _ = write!(body, " {} r = {}; return r;", returned.name, made_of_checksum(returned));
        let mut folded = String::from("u64 h = 0;");
        fold(&mut folded, returned, "r");
        let parameters =
            if parameters.is_empty() { "void".to_owned() } else { parameters.join(", ") };
        let values: Vec<String> =
            (0..fixed.len() + more.len()).map(|n| format!("v{case}_{n}")).collect();
        let values = values.join(", ");
        // Every third function is local to the file: compilers may know more about those.
        let local = if case % 3 == 2 { "static " } else { "" };
        let name = returned.name;
        let _ = writeln!(
            self.source,
            "{target} PLAIN {local}{name} f{case}({parameters}) {{ {body} }}\n\
             {target} BARE {local}{name} t{case}({parameters}) {{ {body} }}\n\
             {target} BARE static u64 df{case}(void) {{ {name} r = f{case}({values}); {folded} return h; }}\n\
             {target} BARE static u64 dt{case}(void) {{ {name} r = t{case}({values}); {folded} return h; }}"
        );
        let kinds: Vec<&str> = more.iter().map(|kind| kind.name).collect();
        self.signatures.push(format!("{name} f{case}({parameters}) passed also {kinds:?}"));
    }

    /// A nested function of gcc's, which finds its enclosing frame through `r10`.
    fn nested(&mut self, random: &mut Random, arguments: usize) {
        let case = self.signatures.len();
        let kind = &INTEGERS[7];
        for index in 0..=arguments {
            self.value(random, case, index, kind);
        }
        let parameters: Vec<String> = (0..arguments).map(|n| format!("u64 a{n}")).collect();
        let mut body = String::from("u64 h = local;");
        for n in 0..arguments {
            fold(&mut body, kind, &format!("a{n}"));
        }
        let parameters = parameters.join(", ");
        let values: Vec<String> = (1..=arguments).map(|n| format!("v{case}_{n}")).collect();
        let values = values.join(", ");
        for (letter, attribute) in [("f", "PLAIN"), ("t", "BARE")] {
            let _ = writeln!(
                self.source,
                "BARE static u64 d{letter}{case}(void) {{\n\
                   volatile u64 local = v{case}_0;\n\
                   {attribute} __attribute__((noipa)) u64 {letter}{case}({parameters}) {{ {body} local += h; return h; }}\n\
                   u64 r = {letter}{case}({values});\n\
                   return mix(r, local);\n}}"
            );
        }
        self.signatures.push(format!("nested f{case}({parameters})"));
    }

    fn finish(mut self) -> Generated {
        for (table, letter) in [("hooked", "f"), ("twins", "t")] {
            let names: Vec<String> =
                (0..self.signatures.len()).map(|n| format!("d{letter}{n}")).collect();
            let _ = writeln!(self.source, "u64 (*{table}[])(void) = {{ {} }};", names.join(", "));
        }
        Generated { source: self.source, signatures: self.signatures }
    }
}

fn fold(body: &mut String, kind: &Kind, argument: &str) {
    for part in kind.folds {
        let _ = write!(body, " h = mix(h, {});", part.replace('@', argument));
    }
}

/// How a variable of this kind is given these parts.
fn initialiser(kind: &Kind, parts: &[String]) -> String {
    if let Some(half) = kind.name.strip_prefix("_Complex ") {
        let halves: Vec<String> = parts.iter().map(|part| format!("({half})({part})")).collect();
        format!("__builtin_complex({})", halves.join(", "))
    } else if kind.parts.len() == 1 && !kind.name.starts_with("struct") {
        parts.concat()
    } else {
        format!("{{{}}}", parts.join(", "))
    }
}

/// An initialiser of which every part depends on the checksum `h`.
fn made_of_checksum(kind: &Kind) -> String {
    let part = |(number, part)| match part {
        // As many bits as a `float` can have.
        'f' => format!("(int)(mix(h, {number}) >> 40) * 0.5"),
        'w' => format!("(__int128)mix(h, {number}) << 64 | mix(~h, {number})"),
        _ if kind.name == "void *" => "(void *)h".to_owned(),
        _ => format!("(long)mix(h, {number})"),
    };
    let parts: Vec<String> = kind.parts.chars().enumerate().map(part).collect();
    initialiser(kind, &parts)
}

fn start() -> Writer {
    let mut writer = Writer { source: PRELUDE.to_owned(), ..Writer::default() };
    for (kind, fields) in STRUCTURES {
        let _ = writeln!(writer.source, "{} {{ {fields} }};", kind.name);
    }
    writer
}

/// Functions of 0 to 16 arguments: all integers, all floating-point, all structures, and
/// mixtures; variadic ones; with `nested`, those that use the static chain; and those that return
/// each of the types.
pub fn ordinary(seed: u64, nested: bool) -> Generated {
    let mut random = Random::new(seed);
    let mut writer = start();
    let structures: Vec<&Kind> = STRUCTURES.iter().map(|(kind, _)| kind).collect();
    let integers: Vec<&Kind> = INTEGERS.iter().collect();
    let floats: Vec<&Kind> = FLOATS.iter().collect();
    let scalars = INTEGERS.iter().chain(FLOATS).chain(HALVES);
    let all: Vec<&Kind> = scalars.chain(structures.iter().copied()).collect();
    for count in 0..=16 {
        for choices in [&integers, &floats, &structures, &all, &all] {
            let fixed: Vec<&Kind> = (0..count).map(|_| *random.pick(choices)).collect();
            writer.case(&mut random, &CHECKSUM, &fixed, &[], "");
        }
    }
    // Only types that default promotion leaves alone may stand after `...`.
    let promoted = [&INTEGERS[4], &INTEGERS[6], &FLOATS[1], &FLOATS[1]];
    for count in 1..=12 {
        for fixed in 1..=2 {
            let named: Vec<&Kind> = (0..fixed).map(|_| *random.pick(&integers)).collect();
            let more: Vec<&Kind> = (0..count).map(|_| *random.pick(&promoted)).collect();
            writer.case(&mut random, &CHECKSUM, &named, &more, "");
        }
    }
    // One of each, so that no class depends on the generator's luck: taken, returned, and
    // returned by functions with arguments on the stack, of which some are variadic.
    for kind in &all {
        writer.case(&mut random, &CHECKSUM, &[kind], &[], "");
        writer.case(&mut random, kind, &[], &[], "");
        let fixed: Vec<&Kind> = (0..8).map(|_| *random.pick(&all)).collect();
        let more: Vec<&Kind> = (0..4).map(|_| *random.pick(&promoted)).collect();
        let variadic = random.below(2) == 0;
        writer.case(&mut random, kind, &fixed, if variadic { &more } else { &[] }, "");
    }
    if nested {
        for arguments in 0..=7 {
            writer.nested(&mut random, arguments);
        }
    }
    writer.finish()
}

/// Functions that take 1 to 9 whole vectors among integers and doubles, 32 bytes each or 64
/// where `wide`, and return one, alone or in a structure, or a checksum.
pub fn vectors(seed: u64, wide: bool) -> Generated {
    let mut random = Random::new(seed);
    let mut writer = start();
    let (vector, structure, target) = if wide {
        (&ZMM, &ZMM_STRUCTURE, "__attribute__((target(\"avx512f\")))")
    } else {
        (&YMM, &YMM_STRUCTURE, "__attribute__((target(\"avx\")))")
    };
    for count in 1..=9 {
        let returned = [&CHECKSUM, vector, structure][count % 3];
        let only: Vec<&Kind> = vec![vector; count];
        writer.case(&mut random, &CHECKSUM, &only, &[], target);
        let mixed: Vec<&Kind> =
            (0..count * 2).map(|n| [vector, &INTEGERS[6], &FLOATS[1]][n % 3]).collect();
        writer.case(&mut random, returned, &mixed, &[], target);
    }
    writer.finish()
}
