//! Discovery against what real compilers make: every address is checked with what the
//! dynamic loader, or the program itself, says.

#![cfg(feature = "std")]

#[path = "discover/answer.rs"]
mod answer;
#[path = "discover/build.rs"]
mod build;
#[path = "discover/changes.rs"]
mod changes;
#[path = "discover/damage.rs"]
mod damage;
#[path = "discover/layouts.rs"]
mod layouts;
#[path = "discover/lookup.rs"]
mod lookup;
#[path = "discover/programs.rs"]
mod programs;
