//! The functions that are hooked: generated C, compiled into shared objects.

use core::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a function takes its arguments and gives its result. Seven functions, one of each form,
/// make a group; the fifth and sixth call the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Two integers.
    Plain,
    /// An integer and two floating-point numbers.
    Floats,
    /// Eight integers, two of them on the stack.
    Eight,
    /// Two integers, and a result in memory that the caller provides.
    Memory,
    /// Calls the group's first function in its middle.
    Nested,
    /// Jumps to the group's first function at its end.
    Tail,
    /// Three pairs of an integer and a floating-point number, as variadic arguments.
    Variadic,
}

/// The forms, in the order of a group.
pub const FORMS: [Form; 7] = [
    Form::Plain,
    Form::Floats,
    Form::Eight,
    Form::Memory,
    Form::Nested,
    Form::Tail,
    Form::Variadic,
];

impl Form {
    /// Which of the six argument registers has the first argument.
    pub const fn first_argument(self) -> usize {
        if matches!(self, Self::Memory) { 1 } else { 0 }
    }

    /// Whether a call of such a function is one of its group's first function, too.
    pub const fn calls_first(self) -> bool {
        matches!(self, Self::Nested | Self::Tail)
    }
}

/// What tells function `index` of the object with this `seed` from every other.
pub const fn constant(seed: u32, index: usize) -> u64 {
    (seed as u64) << 32 | index as u64
}

/// One shared object.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    /// Names the file.
    pub name: &'a str,
    pub functions: usize,
    pub seed: u32,
    /// The compiler's options for patch sites and landing pads.
    pub flags: &'a [&'a str],
}

impl Object<'_> {
    /// Compiles it into `folder`.
    pub fn compile(&self, folder: &Path) -> Result<PathBuf, Box<dyn core::error::Error>> {
        let source = folder.join(format!("{}.c", self.name));
        let object = folder.join(format!("lib{}.so", self.name));
        fs::write(&source, self.text())?;
        let output = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O2", "-Wl,-z,now"])
            .args(self.flags)
            .arg("-o")
            .args([&object, &source])
            .output()
            .map_err(|error| format!("gcc cannot be run ({error}): install it"))?;
        if output.status.success() {
            Ok(object)
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("gcc {:?} failed:\n{said}", self.flags).into())
        }
    }

    /// The C source. `table` has the functions in order; `thread` is a thread's start, ends the
    /// thread inside of `leave`, and counts in its argument what was wrong.
    fn text(&self) -> String {
        let mut text = String::from(
            "#include <pthread.h>\n\
             #include <stdarg.h>\n\
             typedef unsigned long u64;\n\
             struct four { u64 v[4]; };\n\
             #define SOLE __attribute__((noipa))\n",
        );
        for index in 0..self.functions {
            let (k, group) = (constant(self.seed, index), index / FORMS.len() * FORMS.len());
            let _ = match FORMS[index % FORMS.len()] {
                Form::Plain => writeln!(
                    text,
                    "SOLE u64 f{index}(u64 a, u64 b) {{ return (a ^ {k}u) + b * 3; }}"
                ),
                Form::Floats => writeln!(
                    text,
                    "SOLE u64 f{index}(u64 a, double x, double y) \
                     {{ return a + (u64)(x * y) + {k}u; }}"
                ),
                Form::Eight => writeln!(
                    text,
                    "SOLE u64 f{index}(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h) \
                     {{ return a + 3*b + 5*c + 7*d + 11*e + 13*f + 17*g + 19*h + {k}u; }}"
                ),
                Form::Memory => writeln!(
                    text,
                    "SOLE struct four f{index}(u64 a, u64 b) \
                     {{ return (struct four){{{{a ^ {k}u, b + {k}u, a + b, {k}u}}}}; }}"
                ),
                Form::Nested => writeln!(
                    text,
                    "SOLE u64 f{index}(u64 a, u64 b) {{ return f{group}(a, b) * 5 + {k}u; }}"
                ),
                Form::Tail => writeln!(
                    text,
                    "SOLE u64 f{index}(u64 a, u64 b) {{ return f{group}(a, b ^ {k}u); }}"
                ),
                Form::Variadic => writeln!(
                    text,
                    "SOLE u64 f{index}(u64 a, int n, ...) {{\n\
                       va_list rest; va_start(rest, n);\n\
                       while (n-- > 0) {{\n\
                         a += va_arg(rest, u64);\n\
                         a += (u64)va_arg(rest, double);\n\
                       }}\n\
                       va_end(rest); return a + {k}u;\n\
                     }}"
                ),
            };
        }
        text.push_str("void *const table[] = {");
        for index in 0..self.functions {
            let _ = write!(text, "f{index},");
        }
        let first = constant(self.seed, 0);
        let _ = writeln!(
            text,
            "}};\n\
             SOLE void leave(void *wrong) {{ pthread_exit(wrong); }}\n\
             SOLE void *thread(void *wrong) {{\n\
               for (u64 i = 0; i < 200; i++)\n\
                 if (f0(i, 7) != (i ^ {first}u) + 21) ++*(u64 *)wrong;\n\
               leave(wrong);\n\
               return 0;\n\
             }}"
        );
        text
    }
}
