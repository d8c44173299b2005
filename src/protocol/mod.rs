//! Bytes to requests, replies to bytes: a file for each protocol. Nothing here touches a socket.

pub mod http;
pub mod line;
pub mod proxy;
