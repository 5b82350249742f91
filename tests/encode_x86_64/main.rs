//! The x86-64 encoder against two decoders that know nothing of it, over the operand space:
//! every register in every place, every base with every index and scale, displacements and
//! immediates at every boundary where an encoding changes.

mod branches;
mod buffer;
mod check;
mod forms;
mod guards;
mod memory;
mod nops;
mod objdump;
mod registers;
mod sequences;
