//! The engine on a made-up machine, where every byte can be looked at and every step can fail.
//!
//! * [`fake`] is the embedder, [`bench`] an engine with its functions.
//! * [`decode`] reads from text what a call would run; the engine's own encoders and tables
//!   are not asked.

mod bench;
mod bytes;
mod cost;
mod decode;
mod fake;
mod faults;
mod hardened;
mod lists;
mod model;
mod refusals;
mod retire;
