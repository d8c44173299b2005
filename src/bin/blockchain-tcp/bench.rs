//! How fast a server answers.

use std::process::ExitCode;

use crate::failure::Failure;
use crate::options::{Bench, Options};

/// Measures it.
pub fn run(_options: &Options, _bench: &Bench) -> Result<ExitCode, Failure> {
    unimplemented!()
}
