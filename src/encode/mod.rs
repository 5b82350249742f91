//! Instruction encoders into a caller's buffer.
