//! The command sets, one file each: its `mod` line and its row here offer it.

use super::CommandSet;

pub mod calc;
pub mod server;

/// All sets, with the names that `--commands` knows them by.
pub const SETS: &[(&str, CommandSet)] = &[("calc", calc::SET), ("server", server::SET)];
