//! To come.
#![no_std]
#![no_main]
use machine::traps::Interrupted;
#[unsafe(no_mangle)]
extern "C" fn trap(interrupted: &mut Interrupted) { interrupted.unexpected() }
#[unsafe(no_mangle)]
extern "C" fn other_main(_: usize) -> ! { loop {} }
#[unsafe(no_mangle)]
extern "C" fn main() -> ! { machine::console::power_off() }
