//! The functions that are hooked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fentry::host::{AttachError, Functions, Link, Process, Programs};

use crate::support;
use crate::support::compile::{Build, Compiler, shared_object};
use crate::support::object::Object;

/// One test at a time: they attach to the same functions, and gcc's patch sites are prepared
/// while nobody runs them.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The functions of `functions.c`, with and without room for a slot, in both forms.
pub struct Loaded {
    pub object: Object,
    pub process: &'static Process,
    pub functions: Functions,
    /// What is said of the functions' arguments on the stack.
    pub stack_arguments: Option<u8>,
}

pub const LAYOUTS: [(&str, &str); 2] = [("padded", "21,16"), ("unpadded", "5")];
/// No function here has more words of arguments on the stack.
pub const STACK_ARGUMENTS: u8 = 2;

impl Loaded {
    pub fn each(mut test: impl FnMut(&Self)) {
        let _alone = alone();
        for (name, layout) in LAYOUTS {
            for stack_arguments in [None, Some(STACK_ARGUMENTS)] {
                test(&Self::new(name, layout, stack_arguments));
            }
        }
    }

    pub fn new(name: &str, layout: &str, stack_arguments: Option<u8>) -> Self {
        let object = Object::load(&shared_object(&Build {
            name: &format!("exits-{name}"),
            source: include_str!("functions.c"),
            extension: "c",
            compiler: Compiler::Gcc,
            flags: &["-O2", &format!("-fpatchable-function-entry={layout}")],
        }));
        let process = support::process();
        process.refresh().expect("the object was loaded a moment ago");
        let functions = process.functions().module(&object.module()).expect("a pattern");
        // SAFETY: none has more, and what is above the arguments of the others is readable.
        unsafe { process.set_stack_arguments(&functions, stack_arguments) }.unwrap();
        Self { object, process, functions, stack_arguments }
    }

    pub fn attach(&self, name: &str, programs: impl Programs) -> Result<Link, AttachError> {
        let functions = self.functions.named(name);
        assert_eq!(functions.len(), 1, "{name}");
        // SAFETY: the programs of this file keep to the psABI, and change what is made for it.
        unsafe { self.process.attach(&functions, programs) }
    }

    pub fn int(&self, name: &str) -> impl Fn(i32) -> i32 + use<> {
        // SAFETY: the functions that are asked for here have this type.
        let function = unsafe { self.object.function::<extern "C" fn(i32) -> i32>(name) };
        move |value| function(value)
    }

    pub fn long(&self, name: &str) -> impl Fn(i64) -> i64 + use<> {
        // SAFETY: the functions that are asked for here have this type.
        let function = unsafe { self.object.function::<extern "C" fn(i64) -> i64>(name) };
        move |value| function(value)
    }
}
