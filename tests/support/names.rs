//! Names and addresses as a test wants them: another `/etc/hosts`, another name server, a port that doesn't pick up.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use super::free_port;
use super::{Daemon, Scratch, clean, field, skipped};

/// A port at which connections are neither taken nor refused: it listens with a backlog that is full.
pub struct Deaf {
    pub address: SocketAddr,
    _listener: OwnedFd,
    _waiting: Vec<TcpStream>,
}

impl Deaf {
    pub fn at(address: SocketAddr) -> Self {
        let listener =
            rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        // Another server may have been there.
        rustix::net::sockopt::set_socket_reuseaddr(&listener, true).expect("a socket");
        rustix::net::bind(&listener, &address).expect("a free port");
        rustix::net::listen(&listener, 0).expect("it is bound");
        let address = rustix::net::getsockname(&listener).expect("it is bound");
        let address = SocketAddr::try_from(address).expect("an IP address");
        let one_more = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let waiting = std::iter::from_fn(one_more).collect();
        Deaf {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }
}

/// A port at which connections are taken and nothing is ever said, as by a process that is stopped.
pub struct Silent(TcpListener);

impl Silent {
    pub fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("it is a socket");
        Silent(listener)
    }

    /// Whether anybody has come.
    pub fn was_tried(&self) -> bool {
        self.0.accept().is_ok()
    }
}

fn bind_name_server(address: &str) -> Option<UdpSocket> {
    let socket = UdpSocket::bind(address).ok();
    if socket.is_none() {
        skipped(&format!("no name server can be at {address}"));
    }
    socket
}

/// A name server that never answers, for `/etc/resolv.conf`. Nothing where this may not be.
pub struct DeafNameServer(UdpSocket);

impl DeafNameServer {
    pub fn start() -> Option<Self> {
        bind_name_server("127.66.0.53:53").map(DeafNameServer)
    }

    /// It is waited for, for longer than any test.
    pub fn conf(&self) -> String {
        let ip = self.0.local_addr().expect("it is bound").ip();
        format!("nameserver {ip}\noptions timeout:30 attempts:3\n")
    }
}

/// A name server that knows no name and counts the queries. Nothing where this may not be.
pub struct EmptyNameServer(Arc<AtomicUsize>);

impl EmptyNameServer {
    /// The content of `/etc/resolv.conf`.
    pub const CONF: &'static str = "nameserver 127.66.0.54\n";

    pub fn start() -> Option<Self> {
        let socket = bind_name_server("127.66.0.54:53")?;
        let queries = Arc::new(AtomicUsize::new(0));
        let counted = queries.clone();
        std::thread::spawn(move || {
            let mut message = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut message) {
                counted.fetch_add(1, Ordering::SeqCst);
                // The header becomes that of a response with the code NXDOMAIN.
                message[2..4].copy_from_slice(&[0x81, 0x83]);
                // The client may have gone.
                let _ = socket.send_to(&message[..length], client);
            }
        });
        Some(EmptyNameServer(queries))
    }

    /// The number of queries so far.
    pub fn queries(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Runs a program where the only ephemeral port is 50002: a client that connects to it is connected to itself.
pub fn alone_with_a_port<T>(program: &str, run: impl FnOnce(Command) -> T) -> T {
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    let prepare = format!("ip link set lo up && echo 50002 50002 >{range} &&");
    let hosts = "127.0.0.1 localhost\n";
    shown("/etc/hosts", hosts, "-mn", &prepare, program, run)
}

/// How a program is shown other files than this machine's, for `needs!`.
pub const UNSHARE_MOUNTS: [&str; 3] = ["unshare", "-m", "--"];

/// Runs a program where the file at `path` holds this, in the namespaces of these flags, prepared by a shell.
pub fn shown<T>(
    path: &str,
    content: &str,
    flags: &str,
    prepare: &str,
    program: &str,
    run: impl FnOnce(Command) -> T,
) -> T {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    std::fs::write(&file, content).expect("a scratch file");
    let mount = format!("mount --bind {} {path}", file.display());
    let script = format!("{mount} && {prepare} exec \"$0\" \"$@\"");
    let mut command = clean("unshare");
    command.args([flags, "--", "sh", "-c", &script, program]);
    run(command)
}

/// A server of this cluster, where the file at `path` holds this.
pub fn server_where(path: &str, content: &str, cluster: &str) -> Daemon {
    let http = format!("127.0.0.1:{}", free_port());
    let daemon = env!("CARGO_BIN_EXE_blockchain-tcpd");
    shown(path, content, "-m", "", daemon, |mut command| {
        command.args(["--listen", "127.0.0.1:0", "--http", &http]);
        command.args(["--advertise", &http, "--cluster", cluster]);
        Daemon::run(command)
    })
}

/// A daemon on a free port of this address, and the port.
pub fn daemon_at(ip: [u8; 4]) -> (Daemon, u16) {
    let address = SocketAddr::from((ip, 0));
    let daemon = Daemon::start(["--listen", &address.to_string(), "--max-clients", "2"]);
    let listening = field(&daemon.log().wait_for("ready listen="), "listen");
    let addresses = listening
        .split(',')
        .map(|listen| listen.parse::<SocketAddr>());
    let mut addresses = addresses.map(|listen| listen.expect("an address"));
    let own = addresses.find(|listen| listen.ip() == address.ip());
    (daemon, own.expect("its own").port())
}
