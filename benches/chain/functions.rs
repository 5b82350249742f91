//! The functions that are measured, and the hand-written floor, as assembly.

use core::fmt::Write;

use crate::support::assembly::Driver;
use crate::support::common::compile::{Build, Compiler, shared_object};
use crate::support::common::object::Object;

/// The longest chain.
pub const DEEPEST: usize = 32;
/// Bytes of one chain: padding, the hooked function, and those that call it.
const CHAIN: usize = 32 + 16 * (DEEPEST - 1);

/// One loaded copy of the functions.
pub struct Copy {
    object: Object,
    first: usize,
}

impl Copy {
    /// Loads a copy of `count` chains from a file of its own, because a file is mapped only
    /// once. `drivers` are the depths and the numbers of chains that are driven.
    pub fn load(name: &str, count: usize, drivers: &[(usize, usize)], own: usize) -> Self {
        let source = source(count, drivers, own);
        let made = shared_object(&Build {
            name: "chains",
            source: &source,
            extension: "s",
            compiler: Compiler::Gcc,
            flags: &["-nostdlib"],
        });
        let path = made.with_file_name(format!("libchain-{name}-{}.so", std::process::id()));
        std::fs::copy(made, &path).expect("the target folder is writable");
        let object = Object::load(&path);
        // The mapping stays.
        let _ = std::fs::remove_file(&path);
        let first = object.address("first");
        Self { object, first }
    }

    /// The entry of hooked function `index`, which is also its patch site.
    pub fn entry(&self, index: usize) -> u64 {
        (self.first + index * CHAIN) as u64
    }

    /// The address of a symbol.
    pub fn address(&self, name: &str) -> u64 {
        self.object.address(name) as u64
    }

    /// The driver of `count` chains of `depth` functions.
    pub fn driver(&self, depth: usize, count: usize) -> Driver {
        // SAFETY: `source` writes every `drive_*` as a function of this type.
        unsafe { self.object.function(&format!("drive_{depth}_{count}")) }
    }

    /// What the counting programs have counted since the last time: entries and exits.
    pub fn take_counted(&self) -> [u64; 2] {
        ["take_entries", "take_exits"].map(|name| {
            // SAFETY: `PROGRAMS` has both as functions of this type.
            unsafe { self.object.function::<extern "C" fn() -> u64>(name)() }
        })
    }
}

/// A chain is one piece of text: the hooked function, and then each function that calls the
/// one 16 bytes before it. So every call is direct, and a chain's code is its own.
fn source(count: usize, drivers: &[(usize, usize)], own: usize) -> String {
    let mut text = String::from(PROGRAMS);
    let calling = DEEPEST - 1;
    let _ = writeln!(
        text,
        ".macro chain number\n\
         .skip 16, 0x90\n\
         .byte 0x0f,0x1f,0x44,0,0\nlea \\number(%rdi,%rsi),%eax\nret\n.p2align 4\n\
         .rept {calling}\nsub $8,%rsp\n.byte 0xe8\n.long -25\nadd $8,%rsp\ninc %eax\nret\n.endr\n\
         .endm\n\
         .p2align 4\n.globl first\n.set first, . + 16"
    );
    for index in 0..count {
        let _ = writeln!(text, "chain {}", 1000 + index);
    }
    for &(depth, driven) in drivers {
        let _ = writeln!(
            text,
            ".p2align 6\n.globl drive_{depth}_{driven}\ndrive_{depth}_{driven}:\n\
             push %rbx\nmov %rdi,%rbx\nxor %eax,%eax\n.p2align 5\n1:"
        );
        for index in 0..driven {
            let at = index * CHAIN + 16 * (depth - 1);
            let _ = writeln!(text, "mov %eax,%edi\nmov $1,%esi\ncall .Lfirst + {at}");
        }
        let _ = writeln!(text, "dec %rbx\njnz 1b\npop %rbx\nret");
    }
    let _ = writeln!(text, ".p2align 12\n.globl ground\nground: .skip {own}, 0xcc");
    text.push_str(".section .note.GNU-stack,\"\",@progbits\n");
    text.replace(".set first, . + 16", ".set .Lfirst, . + 16\n.set first, .Lfirst")
}

/// The programs, and the hand-written floor, in the same object as the functions, so that
/// whoever calls them can do so directly.
///
/// The floor is the least that keeps a function's arguments from an entry program, its return
/// value from an exit program, and shows both programs what it kept: arguments, index and
/// return address, on a side stack of the one thread, and their cookie of the function. It does not keep the registers that no
/// function here reads (`rax`, `r10`), looks for no stale frame and no end of the side stack.
const PROGRAMS: &str = "\
.text
.macro floor kind
.p2align 6
.globl floor_enter_\\kind
floor_enter_\\kind:
mov floor_top(%rip),%r10
mov 8(%rsp),%rax
mov %rax,(%r10)
mov %r11,8(%r10)
mov %rdi,16(%r10)
mov %rsi,24(%r10)
mov %rdx,32(%r10)
mov %rcx,40(%r10)
mov %r8,48(%r10)
mov %r9,56(%r10)
lea cookies(%rip),%rsi
mov (%rsi,%r11,8),%rsi
mov %r10,%rdi
add $64,%r10
mov %r10,floor_top(%rip)
call .L\\kind\\()_entry
mov floor_top(%rip),%r10
mov -48(%r10),%rdi
mov -40(%r10),%rsi
mov -32(%r10),%rdx
mov -24(%r10),%rcx
mov -16(%r10),%r8
mov -8(%r10),%r9
ret
.p2align 6
.globl floor_exit_\\kind
floor_exit_\\kind:
mov floor_top(%rip),%rdi
sub $64,%rdi
push (%rdi)
push %rax
push %rdx
sub $8,%rsp
mov 8(%rdi),%rcx
lea cookies(%rip),%rsi
mov (%rsi,%rcx,8),%rsi
call .L\\kind\\()_exit
add $8,%rsp
pop %rdx
pop %rax
subq $64,floor_top(%rip)
ret
.endm
floor empty
floor counting
.p2align 6
.globl empty_entry
empty_entry:
.Lempty_entry: ret
.p2align 4
.globl empty_exit
empty_exit:
.Lempty_exit: ret
.p2align 4
.globl counting_entry
counting_entry:
.Lcounting_entry: incq entries(%rip)
ret
.p2align 4
.globl counting_exit
counting_exit:
.Lcounting_exit: incq exits(%rip)
ret
.globl take_entries
take_entries:
xor %eax,%eax
xchg %rax,entries(%rip)
ret
.globl take_exits
take_exits:
xor %eax,%eax
xchg %rax,exits(%rip)
ret
.local entries
.comm entries,8,8
.local exits
.comm exits,8,8
.local cookies
.comm cookies,80000,64
.local floor_frames
.comm floor_frames,4096,64
.data
.p2align 3
floor_top: .quad floor_frames
.text
";
