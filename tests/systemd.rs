//! What systemd passes and is told, with its own test tool and with a socket in its place. The units and the package are
//! tried in a booted Debian, by `tests/package`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::handover::state;
use shared::command::sets::server;
use shared::command::{CommandClass, CommandSet, CommandSpec, Reply};

use crate::support::kernel::{local_server, own_address, shell, through};
use crate::support::manager::{Fate, Manager, close_late};
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
        let names = ["--fdname=tcp:line"];
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
        // More names than sockets make no sense.
        let passed = blockchain_tcpd::server::listener::passed().unwrap();
        assert_eq!(passed.listeners.len() + passed.http.len(), 0);
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
        said.contains("\"metrics\" that systemd passes as descriptor 3 has an unknown name"),
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
    assert!(said.contains("is not a listening TCP socket"), "{said}");

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
    assert!(said.contains("is not a listening TCP socket"), "{said}");
}

impl Manager {
    fn start(&self, arguments: &[&str], watchdog: Option<Duration>) -> Daemon {
        let mut command = program();
        command.env("NOTIFY_SOCKET", self.path());
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        if let Some(time) = watchdog {
            command.env("WATCHDOG_USEC", time.as_micros().to_string());
        }
        Daemon::run(command)
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
    assert_eq!(stopping[1], "STATUS=draining 3 clients");
    // From the signal on.
    let time = stopping[2].strip_prefix("EXTEND_TIMEOUT_USEC=").unwrap();
    let time = Duration::from_micros(time.parse().unwrap());
    let range = Duration::from_secs(9)..=Duration::from_secs(10);
    assert!(range.contains(&time), "{time:?}");
    assert!(daemon.wait().success());
    drop(clients);
}

/// The drain takes its whole time for a client that doesn't read, counted from the signal.
#[test]
fn a_service_manager_that_reads_no_more_keeps_no_signal_waiting() {
    let arguments = ["--write-timeout", "1h", "--drain-timeout", "1s"];
    for first in [None, Some("HUP"), Some("USR2")] {
        let manager = Manager::new();
        let mut daemon = manager.start(&arguments, None);
        manager.wait_for("READY=1");
        let mut stuck = Client::connect_narrow(daemon.address);
        stuck.flood(&daemon, 1);
        manager.fill();
        if let Some(first) = first {
            daemon.signal(first);
            daemon.log().wait_for(match first {
                "HUP" => "SIGHUP changes nothing",
                _ => "goes on with the clients",
            });
        }
        let begun = Instant::now();
        daemon.signal("TERM");
        let status = daemon.wait();
        let log = daemon.log().whole();
        assert!(status.success(), "{status}: {log}");
        assert!(log.contains("cut off"), "{log}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{log}");
    }
}

#[test]
fn what_must_not_be_lost_comes_when_the_service_manager_reads_again() {
    let manager = Manager::new();
    manager.fill();
    let daemon = manager.start(&["--drain-timeout", "1h", "--write-timeout", "1h"], None);
    manager.wait_for("READY=1");
    let mut stuck = Client::connect_narrow(daemon.address);
    stuck.flood(&daemon, 1);
    manager.fill();
    daemon.signal("HUP");
    daemon.log().wait_for("SIGHUP changes nothing");
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    manager.fill();
    daemon.signal("TERM");
    daemon.log().wait_for("stopping reason=SIGTERM");
    manager.wait_for("STOPPING=1");
}

#[test]
fn every_form_of_its_address_is_understood() {
    let name = format!("blockchain-tcpd-{}", uuid::Uuid::new_v4());
    let address = UnixAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let start = |address: &str| {
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0"]);
        Daemon::run({
            command.env("NOTIFY_SOCKET", address);
            command
        })
    };
    let daemon = start(&format!("@{name}"));
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).unwrap();
    assert!(message[..length].ends_with(b"READY=1\n"));
    daemon.stop();
    // Nobody listens there, if there are such addresses here at all.
    for kind in ["vsock", "vsock-stream", "vsock-dgram", "vsock-seqpacket"] {
        let daemon = start(&format!("{kind}:1:4242"));
        daemon.log().wait_for("can't tell the service manager");
        let log = daemon.stop();
        assert!(!log.contains("counts as unset"), "{log}");
    }
}

/// How often the log of a daemon with these variables, and this one for a process of its own, says that one counts as unset.
fn unset(variables: &[(&str, &str)]) -> usize {
    let script = shell("export LISTEN_PID=${LISTEN_PID-$$}");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(["--listen", "127.0.0.1:0"]);
    command.envs(variables.iter().copied());
    let daemon = Daemon::run(command);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    // Which starts again what is told regularly.
    daemon.signal("USR2");
    daemon.log().wait_for("goes on with the clients");
    let log = daemon.stop();
    assert!(!log.contains("the watchdog is on"), "{log}");
    assert!(!log.contains("can't tell"), "{log}");
    assert!(log.contains("sockets=bound"), "{log}");
    log.matches("counts as unset").count()
}

#[test]
fn a_variable_that_makes_no_sense_counts_as_unset() {
    let long = format!("/{}", "x".repeat(200));
    // The program that takes over reads them anew, but for those of passed sockets.
    for (value, times) in [("", 0), ("notify", 2), ("@", 2), ("vsock:1", 2), (&long, 2)] {
        assert_eq!(unset(&[("NOTIFY_SOCKET", value)]), times, "{value:?}");
    }
    let manager = Manager::new();
    let notify = ("NOTIFY_SOCKET", manager.path());
    let notify = (notify.0, notify.1.to_str().unwrap());
    let forever = u64::MAX.to_string();
    for (value, times) in [
        ("", 0),
        ("0", 2),
        ("1", 2),
        ("-1", 2),
        ("soon", 2),
        (&forever, 2),
    ] {
        let times_here = unset(&[notify, ("WATCHDOG_USEC", value)]);
        assert_eq!(times_here, times, "{value:?}");
        manager.wait_for("STOPPING=1");
    }
    let (watchdog, other) = (("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "1"));
    assert_eq!(unset(&[notify, watchdog, other]), 0);
    manager.wait_for("STOPPING=1");
    for (value, times) in [
        ("", 0),
        ("0", 0),
        ("-1", 1),
        ("two", 1),
        ("9", 1),
        ("4294967295", 1),
    ] {
        assert_eq!(unset(&[("LISTEN_FDS", value)]), times, "{value:?}");
    }
    for (process, times) in [("", 0), ("1", 0), ("-1", 1), ("0", 1), ("me", 1)] {
        let times_here = unset(&[("LISTEN_FDS", "1"), ("LISTEN_PID", process)]);
        assert_eq!(times_here, times, "{process:?}");
    }
    let names = ("LISTEN_FDNAMES", "line:http");
    assert_eq!(unset(&[("LISTEN_FDS", "0"), names]), 0);
}

/// A watchdog for nobody in particular is for this process.
#[test]
fn a_process_of_the_watchdog_that_makes_no_sense_counts_as_unset() {
    for (process, times) in [("", 0), ("me", 1), ("-1", 1), ("0", 1)] {
        let manager = Manager::new();
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0"]);
        command.env("NOTIFY_SOCKET", manager.path());
        command.envs([("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", process)]);
        let daemon = Daemon::run(command);
        manager.wait_for("WATCHDOG=1");
        let log = daemon.stop();
        let unset = log.matches("WATCHDOG_PID counts as unset").count();
        assert_eq!(unset, times, "{log}");
    }
}

/// A daemon that this socket is passed to, with this address of a service manager and this time to drain.
fn passed(socket: TcpListener, names: &str, notify: Option<&str>, drain: &str) -> Daemon {
    let script = shell("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(["--drain-timeout", drain, "--max-clients", "2"]);
    command.env("LISTEN_FDNAMES", names);
    command.envs(notify.map(|notify| ("NOTIFY_SOCKET", notify)));
    Daemon::run({
        command.stdin(OwnedFd::from(socket));
        command
    })
}

/// The replies to this are more than the kernel keeps for a client that doesn't read.
const REQUESTS: usize = 20_000;

#[test]
fn clients_that_nobody_would_keep_are_drained() {
    let nowhere = Scratch::new();
    let nowhere = nowhere.path().join("notify");
    let (relay, late, deaf) = (Manager::new(), Manager::new(), Manager::new());
    let reader = relay.socket.try_clone().unwrap();
    // It takes no descriptors, so that the kernel closes them.
    thread::spawn(move || while reader.recv(&mut [0; 4096]).is_ok() {});
    let reader = late.socket.try_clone().unwrap();
    thread::spawn(move || close_late(&reader));
    for (notify, why) in [
        (None, "there is no NOTIFY_SOCKET"),
        (Some("".into()), "there is no NOTIFY_SOCKET"),
        (Some("vsock:1:1".into()), "NOTIFY_SOCKET is vsock"),
        (Some(nowhere), "No such file or directory"),
        (
            Some(relay.path()),
            "keeps no descriptors (FileDescriptorStoreMax=)",
        ),
        (
            Some(late.path()),
            "keeps no descriptors (FileDescriptorStoreMax=)",
        ),
        (Some(deaf.path()), "does not answer in time"),
    ] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let notify = notify.as_deref().map(|path| path.to_str().unwrap());
        let mut daemon = passed(socket, "line", notify, "10s");
        let mut client = daemon.connect();
        client.send("a\n".repeat(REQUESTS));
        wait_until("it can write no more", || {
            daemon.blocked_in(libc::SYS_sendto) == 1
        });
        deaf.fill();
        daemon.signal("TERM");
        let said = daemon.log().wait_for("drains: nobody keeps the clients");
        assert!(said.contains(why), "{said}");
        assert_eq!(client.rest().lines().count(), REQUESTS, "{why}");
        let status = daemon.wait();
        let log = daemon.log().whole();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("hands its clients over"), "{log}");
    }
}

#[test]
fn names_for_more_sockets_than_there_are_count_as_none() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = passed(socket, "line:http", None, "10s");
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    let log = daemon.stop();
    let unset = log.matches("LISTEN_FDNAMES counts as unset").count();
    assert_eq!(unset, 1, "{log}");
}

#[test]
fn clients_that_can_be_kept_are_kept() {
    let manager = Manager::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = passed(socket, "line", manager.path().to_str(), "0s");
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    let kept = manager.store(Fate::Kept);
    let log = daemon.stop();
    assert!(
        log.contains("the service manager keeps the clients"),
        "{log}"
    );
    assert!(!log.contains("nobody keeps"), "{log}");
    let pack = kept.join().unwrap().unwrap();
    let arrived = state::receive(&pack).unwrap();
    assert_eq!(arrived.contents.unwrap().clients.len(), 1);
    client.socket().set_nonblocking(true).unwrap();
    assert!(client.socket().peek(&mut [0]).is_err(), "it is connected");
    drop(arrived.descriptors);
}

#[test]
fn clients_that_are_not_kept_after_all_are_closed_in_order() {
    for fate in [Fate::Closed, Fate::NoRoom] {
        let manager = Manager::new();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut daemon = passed(socket, "line", manager.path().to_str(), "6s");
        let mut half = daemon.connect();
        half.send("WHY\nWH");
        assert_eq!(half.line().as_deref(), Some("42"));
        let mut slow = Client::connect_narrow(daemon.address);
        slow.flood(&daemon, 1);
        let lost = manager.store(fate);
        daemon.signal("TERM");
        let said = daemon.log().wait_for("the service manager");
        assert!(said.contains("ERROR clients are closed, can't"), "{said}");
        // An end and no reset, behind whole replies.
        assert_eq!(half.rest(), "");
        assert!(slow.rest().ends_with(" (try HELP)\n"));
        let status = daemon.wait();
        let log = daemon.log().whole();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("keeps the clients"), "{log}");
        assert!(!log.contains("cut off"), "{log}");
        assert!(lost.join().unwrap().is_none());
    }
}

#[test]
fn clients_that_may_yet_be_kept_are_left_alone() {
    let manager = Manager::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = passed(socket, "line", manager.path().to_str(), "0s");
    let mut client = daemon.connect();
    assert_eq!(client.ask("WHY"), "42");
    let unread = manager.store(Fate::Unread);
    let log = daemon.stop();
    let said = "ERROR clients are closed unless the service manager still takes them";
    assert!(log.contains(said), "{log}");
    assert!(!log.contains("keeps the clients"), "{log}");
    assert!(unread.join().unwrap().is_none());
    let pack = manager.store(Fate::Kept).join().unwrap().unwrap();
    let arrived = state::receive(&pack).unwrap();
    assert_eq!(arrived.contents.unwrap().clients.len(), 1);
    client.socket().set_nonblocking(true).unwrap();
    assert!(client.socket().peek(&mut [0]).is_err(), "it is connected");
    drop(arrived.descriptors);
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
const STUCK: CommandSet = &[CommandSpec {
    name: "STUCK",
    arguments: "",
    summary: "waits to be told to go on",
    kind: CommandClass::Query,
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
