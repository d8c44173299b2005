//! The command sets, one file each: its `mod` line and its row here offer it.

use super::{CommandSet, CommandSpec, Rpc};

pub mod calc;
pub mod server;
pub mod users;

/// All sets, with the names that `--commands` knows them by.
pub const SETS: &[(&str, CommandSet)] = &[
    ("calc", calc::SET),
    ("server", server::SET),
    ("users", users::SET),
];

/// Returns the commands of all sets.
pub fn all() -> impl Iterator<Item = &'static CommandSpec> {
    SETS.iter().flat_map(|(_, set)| set.iter())
}

/// Returns those that protobuf and gRPC know.
pub fn with_rpc() -> impl Iterator<Item = (&'static CommandSpec, &'static Rpc)> {
    all().filter_map(|spec| Some((spec, spec.rpc.as_ref()?)))
}
