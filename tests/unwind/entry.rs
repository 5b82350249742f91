//! Functions with entry programs only, through the host.
