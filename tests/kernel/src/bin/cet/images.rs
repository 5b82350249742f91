use crate::lab::Failure; use crate::report::Report;
pub fn all(_: &mut Report) -> Result<(), Failure> { Ok(()) }
