//! Capabilities of the user's terminal.

use std::env;

/// Returns whether the terminal, if there is one, has cursor control.
pub fn can_be_drawn_on() -> bool {
    env::var_os("TERM").is_none_or(|term| term != "dumb")
}
