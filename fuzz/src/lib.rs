//! What the fuzz targets check. `tests/fuzz_corpus.rs` of the library runs the same checks
//! on the committed seeds, with the stable compiler.

#[path = "../../tests/discover/answer.rs"]
pub mod answer;
#[path = "../../tests/images/branches.rs"]
pub mod branches;
#[path = "../../tests/images/case.rs"]
pub mod case;
#[path = "../../tests/encode_x86_64/check.rs"]
pub mod check;
pub mod checks;
#[path = "../../tests/encode_x86_64/forms.rs"]
pub mod forms;
#[path = "../../tests/images/jumps.rs"]
pub mod jumps;
#[path = "../../tests/images/paths.rs"]
pub mod paths;
