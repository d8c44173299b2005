//! Outgoing TCP connections, with protection against self-connection.
//!
//! If nothing listens on a local port, the kernel may choose that very port as the ephemeral port
//! of a socket that connects to it. The socket is then connected to itself (RFC 9293, section 3.5,
//! simultaneous open) and receives what it sends. Such a connection is refused.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getpeername, getsockname, socket_with,
    sockopt,
};

/// The shortest timeout: the system rejects a timeout of zero.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Connects to the first of these addresses that accepts. Returns the connection and the address.
/// Each attempt may take an equal share of the time that is left; `failed` is called for each
/// address that does not accept.
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

/// Returns whether a write failed because the peer has closed the connection. The peer may have
/// sent the reason, as a TLS alert for example: the next read finds it.
pub fn is_closed_by_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    is_connected(&stream)?;
    // A request must not wait for the acknowledgement of the one before it (Nagle's algorithm). A
    // failure of the option is not a reason to give up.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Starts to connect without waiting, with a non-blocking socket. [`is_connected`] returns the
/// result.
pub fn begin_to_connect(address: SocketAddr) -> io::Result<TcpStream> {
    begin_to_connect_from(None, address)
}

/// Starts to connect as [`begin_to_connect`] does, from this address if one is given.
pub fn begin_to_connect_from(
    source: Option<SocketAddr>,
    address: SocketAddr,
) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = TcpStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    let _ = stream.set_nodelay(true);
    if let Some(source) = source {
        bind(&stream, &source)?;
    }
    match connect(&stream, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether this socket is connected by now. It is an error if connecting failed, or if the
/// socket is connected to itself.
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

    /// The socket connects to the port that it is bound to, as can happen with an ephemeral port.
    #[test]
    fn a_connection_to_itself_is_refused() {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        assert!(!is_connected(&socket).unwrap());
        let own = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        connect(&socket, &own).unwrap();
        let error = is_connected(&socket).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
