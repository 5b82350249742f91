//! What happens when emitted code runs on this machine.

mod dispatch;
mod machine;
mod preambles;
