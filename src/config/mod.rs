//! Settings, and what a process begins with: options, limits of the system, the id of the server.

pub mod identity;
pub mod limits;
pub mod network;
pub mod options;
