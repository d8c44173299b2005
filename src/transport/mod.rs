//! Connections: their sockets, their limits, and how they are closed.

pub mod clients;
pub mod connection;
pub mod lingering_close;
