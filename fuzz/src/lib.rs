//! What the fuzz targets check. `tests/fuzz_corpus.rs` of the library runs the same checks
//! on the committed seeds, with the stable compiler.

#[path = "../../tests/encode_x86_64/check.rs"]
pub mod check;
pub mod checks;
#[path = "../../tests/encode_x86_64/forms.rs"]
pub mod forms;
