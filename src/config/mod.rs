//! Configuration: options, limits of the system, the id of the server.

pub mod identity;
pub mod limits;
pub mod network;
pub mod options;
