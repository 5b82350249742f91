//! The functions that are measured, as assembly: what a compiler makes of
//! `int fN(int a, int b) { return a + b + 1000 + N; }`, in any number, in a second.

use core::fmt::Write;
use std::path::{Path, PathBuf};

use super::common::Random;
use super::common::compile::{Build, Compiler, shared_object};
use super::common::object::Object;

/// What stands before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// `-fpatchable-function-entry=21,16`.
    Sixteen,
    /// `-fpatchable-function-entry=5`.
    None,
}

/// Bytes of a patch site.
pub const SITE_LEN: usize = 5;

/// One loaded copy of the functions.
pub struct Copy {
    object: Object,
    padding: Padding,
    count: usize,
    first: usize,
}

/// Calls its functions one after the other, each call's result the next one's argument;
/// the argument is how many times all of them are called.
pub type Driver = unsafe extern "C" fn(u64) -> u64;

impl Copy {
    /// The loaded object.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// How many functions it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The entry of function `index`, which is also its patch site.
    pub fn entry(&self, index: usize) -> usize {
        self.first + index * self.stride()
    }

    /// All entries.
    pub fn entries(&self) -> Vec<usize> {
        (0..self.count).map(|index| self.entry(index)).collect()
    }

    fn stride(&self) -> usize {
        match self.padding {
            Padding::Sixteen => 32,
            Padding::None => 16,
        }
    }

    /// The driver over the first `functions` functions, one of the numbers that the copies
    /// were made with.
    pub fn driver(&self, functions: usize) -> Driver {
        // SAFETY: `source` writes every `drive_*` as a function of this type.
        unsafe { self.object.function(&format!("drive_{functions}")) }
    }
}

/// Loads `names.len()` copies of `count` functions, each from a file of its own, because a
/// file is mapped only once. `drivers` are the numbers of functions that are driven; above
/// 10,000 they are called in a shuffled order, so that nothing prefetches the next one.
pub fn copies(count: usize, padding: Padding, drivers: &[usize], names: &[&str]) -> Vec<Copy> {
    let source = source(count, padding, drivers);
    let made = shared_object(&Build {
        name: match padding {
            Padding::Sixteen => "padded",
            Padding::None => "unpadded",
        },
        source: &source,
        extension: "s",
        compiler: Compiler::Gcc,
        flags: &["-nostdlib"],
    });
    names
        .iter()
        .map(|name| {
            let object = Object::load(&named(&made, name));
            let first = object.address("first");
            Copy { object, padding, count, first }
        })
        .collect()
}

fn named(made: &Path, name: &str) -> PathBuf {
    let path = made.with_file_name(format!("lib{name}-{}.so", std::process::id()));
    std::fs::copy(made, &path).expect("the target folder is writable");
    path
}

/// Removes the files of `copies`; their mappings stay.
pub fn remove_files(copies: &[&Copy]) {
    for copy in copies {
        let _ = std::fs::remove_file(copy.object.path());
    }
}

fn source(count: usize, padding: Padding, drivers: &[usize]) -> String {
    let mut text = String::from(HEADER);
    let nops = if padding == Padding::Sixteen { ".skip 16, 0x90" } else { "" };
    for index in 0..count {
        if index == 0 {
            text.push_str(".p2align 4\n.globl first\n.set first, f0\n");
        }
        let _ = writeln!(
            text,
            ".p2align 4\n.Lp{index}: {nops}\n.type f{index},@function\nf{index}:\n\
             .byte 0x0f,0x1f,0x44,0,0\nlea {}(%rdi,%rsi),%eax\nret\n.size f{index},.-f{index}",
            1000 + index
        );
    }
    for &driven in drivers {
        let _ = writeln!(
            text,
            ".p2align 6\n.globl drive_{driven}\n.type drive_{driven},@function\ndrive_{driven}:\n\
             push %rbx\nmov %rdi,%rbx\nxor %eax,%eax\n.p2align 5\n1:"
        );
        for index in order(driven) {
            let _ = writeln!(text, "mov %eax,%edi\nmov $1,%esi\ncall f{index}");
        }
        let _ = writeln!(
            text,
            "dec %rbx\njnz 1b\npop %rbx\nret\n.size drive_{driven},.-drive_{driven}"
        );
    }
    text.push_str(".section __patchable_function_entries,\"awo\",@progbits,.text\n.p2align 3\n");
    for index in 0..count {
        let _ = writeln!(text, ".quad .Lp{index}");
    }
    text.push_str(".section .note.GNU-stack,\"\",@progbits\n");
    text
}

fn order(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if count > 10_000 {
        let mut random = Random::new(count as u64);
        for last in (1..count).rev() {
            order.swap(last, random.below(last + 1));
        }
    }
    order
}

/// The hand-written floor, and the programs: in the same object as the functions, so that
/// whoever calls them can do so directly.
///
/// `floor_body` is called from a patch site. It saves the six integer argument registers,
/// calls an empty program, restores them and returns into the function: nothing less keeps
/// a program in C or Rust from changing the arguments. The stack is aligned for the call:
/// two return addresses and six registers are 64 bytes. It calls local labels: a call of an
/// exported symbol would go through the linkage table.
const HEADER: &str = "\
.text
.macro body program
push %rdi
push %rsi
push %rdx
push %rcx
push %r8
push %r9
call \\program
pop %r9
pop %r8
pop %rcx
pop %rdx
pop %rsi
pop %rdi
ret
.endm
.p2align 6
.globl floor_body
floor_body: body .Lempty
.p2align 6
.globl floor_counting_body
floor_counting_body: body .Lcounting
.p2align 6
.globl empty_program
.type empty_program,@function
empty_program:
.Lempty: ret
.p2align 4
.globl counting_program
.type counting_program,@function
counting_program:
.Lcounting: incq counted(%rip)
ret
.local counted
.comm counted,8,8
.globl take_counted
.type take_counted,@function
take_counted:
xor %eax,%eax
xchg %rax,counted(%rip)
ret
";
