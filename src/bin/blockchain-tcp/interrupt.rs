//! ^C, SIGTERM, and the end of the terminal: what is running ends in order.

use std::io;

use crate::failure::Failure;

/// Calls this in a thread of its own whenever the user wants an end.
pub fn on_interrupt(end: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    ctrlc::set_handler(end).map_err(|error| Failure::System {
        action: "handle ^C",
        source: io::Error::other(error),
    })
}
