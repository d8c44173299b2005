//! Wire protocols, one file each: they decode requests and encode replies. Nothing here touches a
//! socket.

pub mod http;
pub mod line;
pub mod proxy;
