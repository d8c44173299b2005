//! Handler of ^C (SIGINT), SIGTERM and SIGHUP, for an orderly end.

use std::io;

use crate::failure::Failure;

/// Calls `end` in a thread of its own at each of these signals.
pub fn on_interrupt(end: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    let set = ctrlc::set_handler(end);
    set.map_err(|error| Failure::system("handle ^C", &io::Error::other(error)))
}
