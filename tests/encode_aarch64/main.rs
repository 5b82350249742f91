//! The arm64 encoder against assemblers that are given the same instructions as text, and
//! against a decoder that knows nothing of it.

mod assemblers;
mod cases;
mod decoder;
mod refusals;
