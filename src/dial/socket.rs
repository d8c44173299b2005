//! TCP connections as they are made: by all who connect, and never to themselves.
//!
//! A port of this machine at which nobody listens may be given to the very socket that connects to it. Then the socket is
//! connected to itself (RFC 9293, section 3.5, simultaneous open), and hears what it says. That is no server: the connection is
//! refused.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, getpeername, getsockname, socket_with, sockopt,
};

/// No wait is shorter, because none at all is refused by the system.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// A connection to the first of these addresses that lets us in, and which it is. Each has an equal share of the time that those
/// before it have left. `failed` hears of each that does not let us in.
pub fn connect_first(
    addresses: &[SocketAddr],
    by: Instant,
    mut failed: impl FnMut(SocketAddr, io::Error),
) -> Option<(TcpStream, SocketAddr)> {
    for (number, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - number).unwrap_or(u32::MAX);
        let left = by.saturating_duration_since(Instant::now());
        match connect_to(*address, (left / others).max(SHORTEST_WAIT)) {
            Ok(stream) => return Some((stream, *address)),
            Err(error) => failed(*address, error),
        }
    }
    None
}

fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    is_connected(&stream)?;
    // A question must not wait for the acknowledgement of the one before it. That it can't be asked for is no reason not
    // to ask.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Begins to connect, without waiting: the socket never blocks. [`is_connected`] says what came of it.
pub fn begin_to_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = TcpStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    let _ = stream.set_nodelay(true);
    match connect(&stream, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// Whether this socket is connected by now. It is an error if it never will be, or if it is connected to itself.
pub fn is_connected(socket: impl AsFd) -> io::Result<bool> {
    sockopt::socket_error(&socket)??;
    let peer = match getpeername(&socket) {
        Ok(peer) => peer,
        Err(Errno::NOTCONN) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match Some(getsockname(&socket)?) == peer {
        true => Err(Errno::CONNREFUSED.into()),
        false => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bound to a port and connected to it, as the system does it with an ephemeral port.
    #[test]
    fn a_connection_to_itself_is_refused() {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        assert!(!is_connected(&socket).unwrap());
        let own = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        connect(&socket, &own).unwrap();
        let error = is_connected(&socket).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
