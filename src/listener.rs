//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::net::sockopt;

use crate::error::Error;

/// How many clients the kernel keeps for us until they are accepted, if net.core.somaxconn allows as many. std asks
/// for 128, and a burst of more than that waits for seconds while the clients' SYNs are sent again.
const BACKLOG: i32 = 4096;

/// The most bytes of replies that the kernel keeps for a client that doesn't read; it takes twice as much memory for them
/// (socket(7)). Left to itself it takes up to 4 MiB (tcp_wmem in tcp(7)).
const SEND_BUFFER: usize = 64 * 1024;

/// A socket that listens for clients.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// The address that it is bound to, with the real port if the system chose it.
    pub address: SocketAddr,
}

/// Listens on `address`.
pub fn bind(address: SocketAddr) -> Result<Listener, Error> {
    let prepare = || {
        let socket = TcpListener::bind(address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        // On Linux the accepted sockets inherit all these, which saves system calls for each. Replies go out when they
        // are written, and a client whose machine has died is found out even without an idle time-out.
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
        // A byte that is sent as urgent is a byte like any other; otherwise it would be missing.
        sockopt::set_socket_oobinline(&socket, true)?;
        let address = socket.local_addr()?;
        Ok(Listener { socket, address })
    };
    prepare().map_err(|source| Error::Listen { address, source })
}

/// Whether `error` says that this machine has no such address at all, as one without IPv6 says of `[::1]`.
pub fn is_no_such_address(error: &Error) -> bool {
    match error {
        Error::Listen { source, .. } => {
            source.kind() == io::ErrorKind::AddrNotAvailable
                || source.raw_os_error() == Some(libc::EAFNOSUPPORT)
        }
        _ => false,
    }
}
