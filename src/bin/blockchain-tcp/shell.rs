//! A conversation, line by line.

use std::process::ExitCode;

use crate::failure::Failure;
use crate::options::Options;

/// Converses until the end of the input.
pub fn run(_options: &Options) -> Result<ExitCode, Failure> {
    unimplemented!()
}
