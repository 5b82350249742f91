//! What holds of any answer about a module, however damaged its file or memory is.

use fentry::host::discover::{Memory, Module};

/// Asserts that what was found is where it is said to be, and that everything can be named.
pub fn check(module: &Module, memory: &dyn Memory) {
    for function in &module.functions {
        let site = function.site().get();
        assert!(module.text.iter().any(|text| text.contains(&site) && text.contains(&(site + 4))));
        let mut bytes = [0; 5];
        assert!(memory.read(site, &mut bytes));
        assert_eq!(bytes, function.nop.bytes(), "at {site:#x}");
        assert!(!module.name_of(function).to_string().is_empty());
    }
    for rejected in &module.rejected {
        assert!(!rejected.reason.to_string().is_empty());
    }
}
