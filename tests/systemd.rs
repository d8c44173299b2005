//! What systemd passes and is told, with its own test tool and with a socket in its place. The units and the package are
//! tried in a booted Debian, by `tests/package`.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use blockchain_tcpd::command::sets::server;
use blockchain_tcpd::command::{Entry, Kind, Reply, Set};

use crate::support::kernel::{local_server, own_address};
use crate::support::{
    Client, Daemon, PATIENCE, Scratch, clean, installed, program, run_to_end, wait_until,
};

/// The daemon behind systemd's test tool, with these words for the tool and these for the daemon. The tool waits for a
/// client before it starts the daemon.
fn activated(tool: &[&str], arguments: &[&str]) -> Command {
    let mut command = clean("systemd-socket-activate");
    command
        .args(tool)
        .arg(program().get_program())
        .args(arguments);
    command
}

/// Connects as soon as somebody listens.
fn come(address: SocketAddr) -> thread::JoinHandle<Client> {
    thread::spawn(move || {
        wait_until("it listens", || TcpStream::connect(address).is_ok());
        Client::connect(address).expect("it listens")
    })
}

/// What its program says that started with these words and one client.
fn refused(tool: &[&str], arguments: &[&str], address: SocketAddr) -> (i32, String) {
    let client = come(address);
    let said = run_to_end(activated(tool, arguments));
    client.join().expect("it connected");
    said
}

#[test]
fn sockets_that_systemd_passes_are_served() {
    if !installed("systemd-socket-activate") {
        return;
    }
    for name in [Some("line"), None] {
        let (first, second) = (own_address(), own_address());
        let (one, two) = (first.to_string(), second.to_string());
        let names = ["--fdname=line:line"];
        let mut tool = vec!["--listen", &*one, "--listen", &*two];
        tool.extend(name.map(|_| names[0]));
        let client = come(first);
        let daemon = Daemon::run(activated(&tool, &[]));
        let ready = daemon.log().wait_for("ready listen=");
        assert!(ready.contains(&format!("listen={one},{two} ")), "{ready}");
        assert!(ready.contains("sockets=passed "), "{ready}");
        assert_eq!(client.join().unwrap().ask("WHY"), "42");
        assert_eq!(Client::connect(second).unwrap().ask("WHY"), "42");
        let log = daemon.stop();
        assert!(log.contains("stopping reason=SIGTERM"), "{log}");
    }
}

/// In a process of its own, which is this test again: it is told so by the variables that it must not leave.
#[test]
fn no_variable_of_passed_sockets_is_left() {
    let variables = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    if std::env::var_os("LISTEN_PID").is_some() {
        // More names than sockets make no sense; the variables go all the same.
        assert!(blockchain_tcpd::listener::passed().is_err());
        for variable in variables {
            assert_eq!(std::env::var_os(variable), None, "{variable}");
        }
        return;
    }
    let output = Command::new("sh")
        .args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "systemd::no_variable_of_passed_sockets_is_left"])
        .envs([("LISTEN_FDS", "0"), ("LISTEN_FDNAMES", "line")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_in_clear_words() {
    if !installed("systemd-socket-activate") {
        return;
    }
    let listen = |address: SocketAddr| address.to_string();
    let address = own_address();
    let (status, said) = refused(
        &["--listen", &listen(address), "--fdname=metrics"],
        &[],
        address,
    );
    assert_eq!(status, 78, "{said}");
    assert!(
        said.contains(
            "\"metrics\" that systemd passes as descriptor 3 has a name that is none of ours"
        ),
        "{said}"
    );

    let address = own_address();
    let both = ["--listen", "127.0.0.1:0"];
    let (status, said) = refused(&["--listen", &listen(address)], &both, address);
    assert_eq!(status, 78, "{said}");
    assert!(
        said.contains(
            "systemd passes 1 sockets, and --listen (BLOCKCHAIN_TCPD_LISTEN) names others"
        ),
        "{said}"
    );

    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let knock = path.clone();
    let client = thread::spawn(move || {
        wait_until("it listens", || {
            std::os::unix::net::UnixStream::connect(&knock).is_ok()
        });
    });
    let tool = ["--listen", path.to_str().unwrap()];
    let (status, said) = run_to_end(activated(&tool, &[]));
    client.join().unwrap();
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("is no listening TCP socket"), "{said}");

    let address = own_address();
    let tool = ["--datagram", "--listen", &listen(address)];
    let knocking = thread::spawn(move || {
        let socket = std::net::UdpSocket::bind((address.ip(), 0)).unwrap();
        for _ in 0..50 {
            // Nobody may be there yet, or any more.
            let _ = socket.send_to(b"WHY\n", address);
            thread::park_timeout(Duration::from_millis(20));
        }
    });
    let (status, said) = run_to_end(activated(&tool, &[]));
    knocking.join().unwrap();
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("is no listening TCP socket"), "{said}");
}

/// A socket in the place of systemd's.
struct Manager {
    socket: UnixDatagram,
    scratch: Scratch,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, scratch }
    }

    fn start(&self, arguments: &[&str], watchdog: Option<Duration>) -> Daemon {
        let mut command = program();
        command.env("NOTIFY_SOCKET", self.scratch.path().join("notify"));
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        if let Some(time) = watchdog {
            command.env("WATCHDOG_USEC", time.as_micros().to_string());
        }
        Daemon::run(command)
    }

    /// The lines of the next message.
    fn next(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message in time");
        let text = std::str::from_utf8(&message[..length]).unwrap();
        text.lines().map(str::to_string).collect()
    }

    /// Waits for a message with this line and returns it.
    fn wait_for(&self, line: &str) -> Vec<String> {
        loop {
            let message = self.next();
            if message.iter().any(|told| told.starts_with(line)) {
                return message;
            }
        }
    }
}

#[test]
fn systemd_is_told_of_every_step() {
    let manager = Manager::new();
    let mut daemon = manager.start(&["--max-clients", "7", "--drain-timeout", "8s"], None);
    assert_eq!(manager.next(), ["STATUS=0 clients, 7 workers", "READY=1"]);
    let clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    manager.wait_for("STATUS=3 clients, 7 workers");
    daemon.signal("HUP");
    let reloading = manager.wait_for("RELOADING=1");
    assert!(reloading[1].starts_with("MONOTONIC_USEC="), "{reloading:?}");
    manager.wait_for("READY=1");
    daemon.signal("TERM");
    let stopping = manager.wait_for("STOPPING=1");
    assert_eq!(
        stopping[1..],
        ["STATUS=draining 3 clients", "EXTEND_TIMEOUT_USEC=10000000"]
    );
    assert!(daemon.wait().success());
    drop(clients);
}

#[test]
fn the_watchdog_is_fed_while_clients_are_served_and_through_a_full_house() {
    let manager = Manager::new();
    let time = Duration::from_millis(600);
    let daemon = manager.start(&["--max-clients", "2", "--queue", "2"], Some(time));
    let mut clients = Vec::new();
    for full in [0, 1, 2, 3] {
        for _ in 0..3 {
            manager.wait_for("WATCHDOG=1");
        }
        if full < 2 {
            let mut client = daemon.connect();
            assert_eq!(client.ask("WHY"), "42");
            clients.push(client);
        }
    }
    // Nobody was sent away for it.
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    let log = daemon.stop();
    assert!(!log.contains("not well"), "{log}");
    assert!(!log.contains("make room"), "{log}");
}

static HELD: AtomicUsize = AtomicUsize::new(0);
static GO_ON: AtomicBool = AtomicBool::new(false);

/// STUCK keeps its worker from anything else.
const STUCK: Set = &[Entry {
    name: "STUCK",
    arguments: "",
    summary: "waits to be told to go on",
    kind: Kind::Asks,
    execute: |_, _| {
        HELD.fetch_add(1, Ordering::SeqCst);
        wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
        Ok(Reply::Text("WENT ON"))
    },
}];

#[test]
fn a_worker_that_hangs_is_no_proof_of_health() {
    let server = local_server(&["--max-clients", "2"], &[server::SET, STUCK]);
    let health = server.health();
    assert_eq!(health.check(PATIENCE), Ok(()));
    let mut client = Client::connect(server.addresses()[0]).unwrap();
    assert_eq!(client.ask("WHY"), "42");
    assert_eq!(health.check(PATIENCE), Ok(()));
    client.send("STUCK\n");
    wait_until("it is stuck", || HELD.load(Ordering::SeqCst) == 1);
    let short = Duration::from_millis(300);
    assert_eq!(health.check(short), Err("a worker does not answer"));
    GO_ON.store(true, Ordering::Relaxed);
    assert_eq!(client.line().as_deref(), Some("WENT ON"));
    assert_eq!(health.check(PATIENCE), Ok(()));
    let load = health.load();
    assert_eq!((load.clients, load.workers), (1, 2));
    server.stop(PATIENCE);
    assert_eq!(health.check(PATIENCE), Ok(()));
}
