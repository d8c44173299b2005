//! Configuration: options, limits of the system, the id of the server, files with what is secret.

pub mod credentials;
pub mod identity;
pub mod limits;
pub mod network;
pub mod options;
pub mod store;
