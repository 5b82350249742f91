//! Finding functions of a module by address.

use super::super::glob::Glob;
use super::{Function, Module};
use crate::addr::Entry;

impl Module {
    /// Whether `glob` covers its file name or its path.
    #[must_use]
    pub fn matches(&self, glob: &Glob) -> bool {
        glob.matches(&self.name) || glob.matches(&self.identity.path.to_string_lossy())
    }

    /// The function whose entry is `entry`.
    #[must_use]
    pub fn at(&self, entry: Entry) -> Option<&Function> {
        let i = self.functions.binary_search_by_key(&entry, |function| function.entry).ok()?;
        self.functions.get(i)
    }

    /// The function whose code `address` is in.
    #[must_use]
    pub fn containing(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|f| f.entry.get() <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        function.contains(address).then_some(function)
    }
}
