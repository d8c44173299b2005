//! The number of clients, live.

use std::process::ExitCode;

use crate::failure::Failure;
use crate::options::{Options, Watch};

/// Shows it until ^C.
pub fn run(_options: &Options, _watch: &Watch) -> Result<ExitCode, Failure> {
    unimplemented!()
}
