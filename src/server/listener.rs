//! Listening sockets: bound by this process, passed by systemd, or inherited in a handover.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use log::debug;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::error::Error;
use crate::handover::state;
use crate::protocol::PROTOCOLS;
use shared::sys;
use shared::text::without_errno;

/// Backlog: connections that the kernel queues until they are accepted, if net.core.somaxconn
/// allows as many. std requests 128; with a larger burst, clients wait seconds for the
/// retransmission of their SYNs.
const BACKLOG: i32 = 4096;

/// Send buffer in bytes for a client that doesn't read; the kernel uses twice as much memory for it
/// (socket(7)). Its own limit would be up to 4 MiB (tcp_wmem in tcp(7)).
const SEND_BUFFER: usize = 64 * 1024;

/// Former name of a socket for the default protocol in its unit (`FileDescriptorName=`).
const LINE: &str = "line";

/// Name of the sockets of the operators' HTTP, in their unit and in the list of sockets: no scheme
/// of clients.
pub const ADMIN: &str = "admin";

/// Listening socket.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Scheme of the protocol that is spoken on it.
    pub scheme: Cow<'static, str>,
    /// Bound address, with the actual port if the system chose it.
    pub address: SocketAddr,
    /// Whether systemd passed the socket. systemd keeps it, too, so it must never be shut down.
    pub passed: bool,
}

impl fmt::Display for Listener {
    /// Writes its address, as a URL unless it speaks the default protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &*self.scheme {
            scheme if scheme == PROTOCOLS.default().scheme() => address.fmt(f),
            scheme => write!(f, "{scheme}://{address}"),
        }
    }
}

/// Binds `address`, one of `all`, and listens for clients of the protocol with this scheme. `[::]`
/// is restricted to IPv6 if `all` contains an IPv4 address with the same port; otherwise it
/// includes IPv4, unless net.ipv6.bindv6only says otherwise (ipv6(7)).
pub fn bind_beside(
    address: SocketAddr,
    scheme: &'static str,
    all: &[SocketAddr],
) -> Result<Listener, Error> {
    let port = address.port();
    let has_ipv4 = |other: &SocketAddr| other.is_ipv4() && other.port() == port;
    let is_all_of_ipv6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let bound = || {
        let socket = match is_all_of_ipv6 && port != 0 && all.iter().any(has_ipv4) {
            true => sys::bind_ipv6_only(port)?,
            false => TcpListener::bind(address)?,
        };
        rustix::net::listen(&socket, BACKLOG)?;
        prepare(socket, scheme.into(), false)
    };
    bound().map_err(|error| Error::listen(address, &error))
}

/// Sockets that systemd passes to this process.
pub struct Passed {
    /// Sockets for clients.
    pub listeners: Vec<Listener>,
    /// Sockets of the admin HTTP server.
    pub http: Vec<Listener>,
    /// Handover state from the descriptor store.
    pub handover: Option<OwnedFd>,
}

/// Takes what systemd passes to this process. Call it once, before any thread starts.
pub fn passed() -> Result<Passed, Error> {
    let mut sockets = sys::passed_sockets();
    // A test descriptor that a crash left in the store.
    sockets.retain(|(_, name)| name != state::PROBE);
    // Stored descriptors come after those of .socket units. Of several handover states, which a
    // crash may leave, the last counts.
    let states = sockets.extract_if(.., |(_, name)| name == state::NAME);
    let handover = states.last().map(|(socket, _)| socket);
    let (mut clients, mut http) = (Vec::new(), Vec::new());
    for (index, (socket, name)) in sockets.into_iter().enumerate() {
        let refuse = |problem: &str| {
            let number = index + 3;
            Error::Configuration(format!(
                "the socket {name:?} that systemd passes as descriptor {number} {problem}"
            ))
        };
        // Without FileDescriptorName= the name is that of the unit, or "unknown"
        // (systemd.socket(5)).
        let is_unnamed =
            matches!(name.as_str(), LINE | "unknown" | "") || name.ends_with(".socket");
        let (scheme, listeners) = match PROTOCOLS.find(&name) {
            _ if name == ADMIN => (ADMIN, &mut http),
            Some(protocol) => (protocol.scheme(), &mut clients),
            None if is_unnamed => (PROTOCOLS.default().scheme(), &mut clients),
            None => {
                return Err(refuse(&format!(
                    "has an unknown name; FileDescriptorName= is the protocol of clients ({}), or admin for health and metrics",
                    PROTOCOLS.schemes()
                )));
            }
        };
        if !accepts_tcp(&socket) {
            return Err(refuse(
                "is not a listening TCP socket; ListenStream= with a port makes one",
            ));
        }
        let listener = inherit(socket, scheme.into(), true)
            .map_err(|error| refuse(&format!("can't be used: {}", without_errno(&error))))?;
        listeners.push(listener);
    }
    Ok(Passed {
        listeners: clients,
        http,
        handover,
    })
}

/// Continues with a socket that listens already and that systemd may have `passed`.
pub fn inherit(socket: OwnedFd, scheme: Cow<'static, str>, passed: bool) -> io::Result<Listener> {
    prepare(TcpListener::from(socket), scheme, passed)
}

/// Returns whether it is a listening stream socket over IP.
pub fn accepts_tcp(socket: &OwnedFd) -> bool {
    let kind = sockopt::socket_type(socket);
    let family = sockopt::socket_domain(socket);
    kind == Ok(SocketType::STREAM)
        && matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6))
        && sockopt::socket_acceptconn(socket) == Ok(true)
}

fn prepare(socket: TcpListener, scheme: Cow<'static, str>, passed: bool) -> io::Result<Listener> {
    // On Linux, accepted sockets inherit these options, which saves system calls for each. Replies
    // are sent when they are written. A client whose machine has died is detected even without an
    // idle time-out. Urgent data is read in line; otherwise the urgent byte would be missing. Other
    // stream protocols may lack some options: MPTCP has no urgent data.
    let address = socket.local_addr()?;
    for (option, set) in [
        ("TCP_NODELAY", sockopt::set_tcp_nodelay(&socket, true)),
        ("SO_KEEPALIVE", sockopt::set_socket_keepalive(&socket, true)),
        (
            "SO_SNDBUF",
            sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER),
        ),
        ("SO_OOBINLINE", sockopt::set_socket_oobinline(&socket, true)),
    ] {
        if let Err(error) = set {
            debug!(address:%, option, why:% = without_errno(&error.into()); "the socket does without an option");
        }
    }
    // A connection may be reset between epoll_wait(2) and accept(2), which must not block then.
    socket.set_nonblocking(true)?;
    Ok(Listener {
        socket,
        scheme,
        address,
        passed,
    })
}
