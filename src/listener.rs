//! Listening sockets.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use log::debug;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::error::{Error, plain};
use crate::{handover_state, sys};

/// How many clients the kernel keeps for us until they are accepted, if net.core.somaxconn allows as many. std asks
/// for 128, and a burst of more than that waits for seconds while the clients' SYNs are sent again.
const BACKLOG: i32 = 4096;

/// The most bytes of replies that the kernel keeps for a client that doesn't read; it takes twice as much memory for them
/// (socket(7)). Left to itself it takes up to 4 MiB (tcp_wmem in tcp(7)).
const SEND_BUFFER: usize = 64 * 1024;

/// The name that a socket for the line protocol has in its unit (`FileDescriptorName=`).
const LINE: &str = "line";

/// The name that a socket for HTTP has.
const HTTP: &str = "http";

/// A socket that listens.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// The address that it is bound to, with the real port if the system chose it.
    pub address: SocketAddr,
    /// Whether systemd passed it, which keeps it, too: it must never be shut down.
    pub passed: bool,
}

/// Listens on `address`.
pub fn bind(address: SocketAddr) -> Result<Listener, Error> {
    bind_beside(address, &[])
}

/// Listens on `address`, one of `all`. If there is an address of IPv4 with the same port among them, `[::]` is those of IPv6
/// alone; by itself it is IPv4's too, unless net.ipv6.bindv6only says otherwise (ipv6(7)).
pub fn bind_beside(address: SocketAddr, all: &[SocketAddr]) -> Result<Listener, Error> {
    let port = address.port();
    let has_ipv4 = |other: &SocketAddr| other.is_ipv4() && other.port() == port;
    let is_all_of_ipv6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let bound = || {
        let socket = match is_all_of_ipv6 && port != 0 && all.iter().any(has_ipv4) {
            true => sys::bind_ipv6_only(port)?,
            false => TcpListener::bind(address)?,
        };
        rustix::net::listen(&socket, BACKLOG)?;
        prepare(socket, false)
    };
    bound().map_err(|source| Error::Listen { address, source })
}

/// What systemd passes to this process.
pub struct Passed {
    /// Sockets for clients.
    pub line: Vec<Listener>,
    /// Sockets for HTTP.
    pub http: Vec<Listener>,
    /// The pack that it has kept.
    pub pack: Option<OwnedFd>,
}

/// Takes what systemd passes to this process. Call it once, before any thread starts.
pub fn passed() -> Result<Passed, Error> {
    let mut sockets = sys::passed_sockets();
    // A probe of the store that a crash left there.
    sockets.retain(|(_, name)| name != handover_state::PROBE);
    // What was stored comes after what belongs to a .socket unit; of several packs, which a crash may leave, the last.
    let packs = sockets.extract_if(.., |(_, name)| name == handover_state::NAME);
    let pack = packs.last().map(|(socket, _)| socket);
    let (mut line, mut http) = (Vec::new(), Vec::new());
    for (index, (socket, name)) in sockets.into_iter().enumerate() {
        let refuse = |problem: &str| {
            let number = index + 3;
            Error::Passed(format!(
                "the socket {name:?} that systemd passes as descriptor {number} {problem}"
            ))
        };
        // Without FileDescriptorName= it is called as its unit is, without any name "unknown" (systemd.socket(5)).
        let listeners = match name.as_str() {
            HTTP => &mut http,
            LINE | "unknown" | "" => &mut line,
            unit if unit.ends_with(".socket") => &mut line,
            _ => {
                return Err(refuse(
                    "has a name that is none of ours; FileDescriptorName=line is for clients, http for health and metrics",
                ));
            }
        };
        if !accepts_tcp(&socket) {
            return Err(refuse(
                "is no listening TCP socket; ListenStream= with a port makes one",
            ));
        }
        let listener = inherit(socket, true)
            .map_err(|error| refuse(&format!("can't be used: {}", plain(&error))))?;
        listeners.push(listener);
    }
    Ok(Passed { line, http, pack })
}

/// Goes on with a socket that listens already; systemd may have `passed` it.
pub fn inherit(socket: OwnedFd, passed: bool) -> io::Result<Listener> {
    prepare(TcpListener::from(socket), passed)
}

/// Whether it is a stream over IP that listens.
pub fn accepts_tcp(socket: &OwnedFd) -> bool {
    let kind = sockopt::socket_type(socket);
    let family = sockopt::socket_domain(socket);
    kind == Ok(SocketType::STREAM)
        && matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6))
        && sockopt::socket_acceptconn(socket) == Ok(true)
}

fn prepare(socket: TcpListener, passed: bool) -> io::Result<Listener> {
    // On Linux the accepted sockets inherit all these, which saves system calls for each. Replies go out when they
    // are written, and a client whose machine has died is found out even without an idle time-out. A byte that is sent as
    // urgent is a byte like any other; otherwise it would be missing. Other sorts of TCP may lack some: MPTCP has no urgent
    // bytes at all.
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
            debug!(address:%, option, why:% = plain(&error.into()); "the socket does without an option");
        }
    }
    // A unit may say otherwise (NonBlocking=).
    socket.set_nonblocking(false)?;
    Ok(Listener {
        socket,
        address,
        passed,
    })
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
