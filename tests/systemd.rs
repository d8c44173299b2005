//! Socket activation, readiness and watchdog messages, and the file descriptor store of systemd, with its own test tool and
//! with a socket in its place. The units and the package are tried in a booted Debian, by `tests/package`.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blockchain_tcpd::handover::state;
use shared::command::sets::server;
use shared::command::{CommandClass, CommandSet, CommandSpec, Value, ValueType};

use crate::support::kernel::{local_server, own_address, shell, through};
use crate::support::manager::{Fate, Manager, close_late};
use crate::support::watch::repeat;
use crate::support::{Client, Daemon, PATIENCE, Scratch, clean, program, run_to_end, wait_until};

/// The daemon behind systemd's test tool, which waits for a client before it starts the daemon.
fn activated(tool: &[&str], arguments: &[&str]) -> Command {
    let mut command = clean("systemd-socket-activate");
    command.args(tool).arg(program().get_program());
    command.args(arguments);
    command
}

#[test]
fn sockets_that_systemd_passes_are_served() {
    needs!("systemd-socket-activate");
    for name in [Some("--fdname=tcp:line"), None] {
        let (first, second) = (own_address(), own_address());
        let (one, two) = (first.to_string(), second.to_string());
        let mut tool = vec!["--listen", &*one, "--listen", &*two];
        tool.extend(name);
        let knocking = repeat((), move |()| drop(TcpStream::connect(first)));
        let daemon = Daemon::run(activated(&tool, &[]));
        drop(knocking);
        let ready = daemon.log().wait_for("ready listen=");
        assert!(ready.contains(&format!("listen={one},{two} ")), "{ready}");
        assert!(ready.contains("sockets=passed "), "{ready}");
        for address in [first, second] {
            assert_eq!(Client::connect(address).unwrap().ask("WHY"), "42");
        }
        let log = daemon.stop();
        assert!(log.contains("stopping reason=SIGTERM"), "{log}");
    }
}

/// In a process of its own, which is this test again: the variables that it must not leave say so.
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
fn sockets_that_the_daemon_can_not_serve_are_refused() {
    needs!("systemd-socket-activate");
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let path = path.to_str().unwrap();
    let tcp = own_address().to_string();
    let no_tcp = "is not a listening TCP socket";
    for (socket, tool, arguments, why) in [
        (
            &*tcp,
            "--fdname=metrics",
            &[][..],
            "\"metrics\" that systemd passes as descriptor 3 has an unknown name",
        ),
        (
            &tcp,
            "--fdname=line",
            &["--listen", "127.0.0.1:0"],
            "systemd passes 1 sockets, but --listen (BLOCKCHAIN_TCPD_LISTEN) is set too",
        ),
        (path, "--fdname=line", &[], no_tcp),
        (&tcp, "--datagram", &[], no_tcp),
    ] {
        // Until the tool listens, and then until it has started the daemon.
        let _knocking = repeat(socket.to_string(), |socket| {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            let _ = sender.send_to(b"WHY\n", &**socket);
            let _ = TcpStream::connect(&**socket);
            let _ = UnixStream::connect(&**socket);
            thread::park_timeout(Duration::from_millis(10));
        });
        let (status, said) = run_to_end(activated(&["--listen", socket, tool], arguments));
        assert_eq!(status, 78, "{said}");
        assert!(said.contains(why), "{said}");
    }
}

impl Manager {
    fn start(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Daemon {
        Daemon::start_with(arguments, |command| {
            command.env("NOTIFY_SOCKET", self.path());
            command.envs(variables.iter().copied());
        })
    }
}

#[test]
fn systemd_learns_of_readiness_reloads_and_stops() {
    let manager = Manager::new();
    let mut daemon = manager.start(&["--max-clients", "7", "--drain-timeout", "8s"], &[]);
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
    let microseconds: u64 = time.parse().unwrap();
    assert!((9_000_000..=10_000_000).contains(&microseconds), "{time}");
    assert!(daemon.wait().success());
    drop(clients);
}

/// The drain takes its whole time for a client that doesn't read, counted from the signal.
#[test]
fn a_service_manager_that_reads_no_more_delays_no_signal() {
    let arguments = ["--write-timeout", "1h", "--drain-timeout", "1s"];
    for first in [
        None,
        Some(("HUP", "SIGHUP changes nothing")),
        Some(("USR2", "took over the clients")),
    ] {
        let manager = Manager::new();
        let mut daemon = manager.start(&arguments, &[]);
        manager.wait_for("READY=1");
        let mut stuck = Client::connect_narrow(daemon.address);
        stuck.flood(&daemon, 1);
        manager.fill();
        if let Some((signal, said)) = first {
            daemon.signal(signal);
            daemon.log().wait_for(said);
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
fn messages_that_must_not_be_lost_come_when_the_service_manager_reads_again() {
    let manager = Manager::new();
    manager.fill();
    let daemon = manager.start(&["--drain-timeout", "1h", "--write-timeout", "1h"], &[]);
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
        Daemon::start_with([""; 0], |command| {
            command.env("NOTIFY_SOCKET", address);
        })
    };
    let daemon = start(&format!("@{name}"));
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).unwrap();
    assert!(message[..length].ends_with(b"READY=1\n"));
    daemon.stop();
    // Nothing listens there, if there are such addresses here at all.
    for kind in ["vsock", "vsock-stream", "vsock-dgram", "vsock-seqpacket"] {
        let daemon = start(&format!("{kind}:1:4242"));
        daemon.log().wait_for("can't notify the service manager");
        let log = daemon.stop();
        assert!(!log.contains("counts as unset"), "{log}");
    }
}

/// How often the log of a daemon with these variables, and LISTEN_PID for its process, says that one counts as unset.
fn unset(variables: &str) -> usize {
    let mut command = through(&shell("export LISTEN_PID=${LISTEN_PID-$$}"));
    command.args(["--listen", "127.0.0.1:0"]);
    let variables = variables.split_whitespace();
    command.envs(variables.map(|variable| variable.split_once('=').unwrap()));
    let daemon = Daemon::run(command);
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    // The next program starts again what is sent regularly.
    daemon.signal("USR2");
    daemon.log().wait_for("took over the clients");
    let log = daemon.stop();
    assert!(!log.contains("the watchdog is on"), "{log}");
    assert!(!log.contains("can't notify"), "{log}");
    assert!(log.contains("sockets=bound"), "{log}");
    log.matches("counts as unset").count()
}

#[test]
fn a_variable_that_makes_no_sense_counts_as_unset() {
    let (manager, long) = (Manager::new(), "/".repeat(200));
    let notify = format!("NOTIFY_SOCKET={} ", manager.path().display());
    let forever = u64::MAX.to_string();
    // The program that takes over reads them anew, but for those of passed sockets.
    for (variables, values, times) in [
        ("NOTIFY_SOCKET=", "", 0),
        ("NOTIFY_SOCKET=", "notify @ vsock:1 LONG", 2),
        ("LISTEN_FDS=", " 0", 0),
        ("LISTEN_FDS=", "-1 two 9 4294967295", 1),
        ("LISTEN_FDS=1 LISTEN_PID=", " 1", 0),
        ("LISTEN_FDS=1 LISTEN_PID=", "-1 0 me", 1),
        ("LISTEN_FDS=0 LISTEN_FDNAMES=", "line:admin", 0),
        ("NOTIFY WATCHDOG_USEC=", "", 0),
        ("NOTIFY WATCHDOG_USEC=", "0 1 -1 soon FOREVER", 2),
        ("NOTIFY WATCHDOG_USEC=1000000 WATCHDOG_PID=", "1", 0),
    ] {
        for value in values.split(' ') {
            let value = value.replace("LONG", &long).replace("FOREVER", &forever);
            let variables = variables.replace("NOTIFY ", &notify) + &value;
            assert_eq!(unset(&variables), times, "{variables}");
            if variables.starts_with(&notify) {
                manager.wait_for("STOPPING=1");
            }
        }
    }
}

/// A watchdog for no process in particular is for this one.
#[test]
fn a_process_of_the_watchdog_that_makes_no_sense_counts_as_unset() {
    for (process, times) in [("", 0), ("me", 1), ("-1", 1), ("0", 1)] {
        let manager = Manager::new();
        let watchdog = [("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", process)];
        let daemon = manager.start(&[], &watchdog);
        manager.wait_for("WATCHDOG=1");
        let log = daemon.stop();
        let unset = log.matches("WATCHDOG_PID counts as unset").count();
        assert_eq!(unset, times, "{log}");
    }
}

/// A daemon that a socket is passed to, with these names, this address of a service manager and this time to drain.
fn passed(names: &str, notify: Option<&str>, drain: &str) -> Daemon {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let pass = shell("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1");
    let mut command = through(&pass);
    command.args(["--drain-timeout", drain, "--max-clients", "2"]);
    command.env("LISTEN_FDNAMES", names);
    command.envs(notify.map(|notify| ("NOTIFY_SOCKET", notify)));
    command.stdin(OwnedFd::from(socket));
    Daemon::run(command)
}

/// The replies to this are more than the kernel keeps for a client that doesn't read.
const REQUESTS: usize = 20_000;

#[test]
fn clients_that_no_service_manager_would_keep_are_drained() {
    let (nowhere, relay, late, deaf) = (
        Scratch::new(),
        Manager::new(),
        Manager::new(),
        Manager::new(),
    );
    let reader = relay.socket.try_clone().unwrap();
    // It takes no descriptors, so that the kernel closes them.
    thread::spawn(move || while reader.recv(&mut [0; 4096]).is_ok() {});
    let reader = late.socket.try_clone().unwrap();
    thread::spawn(move || close_late(&reader));
    let keeps_none = "keeps no descriptors (FileDescriptorStoreMax=)";
    for (notify, why) in [
        (None, "there is no NOTIFY_SOCKET"),
        (Some("".into()), "there is no NOTIFY_SOCKET"),
        (Some("vsock:1:1".into()), "NOTIFY_SOCKET is vsock"),
        (
            Some(nowhere.path().join("notify")),
            "No such file or directory",
        ),
        (Some(relay.path()), keeps_none),
        (Some(late.path()), keeps_none),
        (Some(deaf.path()), "does not answer in time"),
    ] {
        let notify = notify.as_deref().and_then(|path| path.to_str());
        let mut daemon = passed("line", notify, "10s");
        let mut client = daemon.connect();
        client.send("a\n".repeat(REQUESTS));
        wait_until("it can write no more", || {
            daemon.blocked_in(libc::SYS_sendto) == 1
        });
        deaf.fill();
        daemon.signal("TERM");
        let said = daemon
            .log()
            .wait_for("drains the clients: the service manager");
        assert!(said.contains(why), "{said}");
        assert_eq!(client.rest().lines().count(), REQUESTS, "{why}");
        let status = daemon.wait();
        let log = daemon.log().whole();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("hands over its clients"), "{log}");
    }
}

#[test]
fn names_for_more_sockets_than_there_are_count_as_none() {
    let daemon = passed("line:admin", None, "10s");
    assert_eq!(daemon.ask("WHY\n"), "42\n");
    let log = daemon.stop();
    let unset = log.matches("LISTEN_FDNAMES counts as unset").count();
    assert_eq!(unset, 1, "{log}");
}

/// With a service manager that keeps the clients; and with one that does so only when the daemon has ended.
#[test]
fn clients_that_are_or_may_yet_be_kept_stay_connected() {
    for (fate, said) in [
        (Fate::Kept, "the service manager keeps the clients"),
        (
            Fate::Unread,
            "ERROR clients are closed unless the service manager still takes them",
        ),
    ] {
        let manager = Manager::new();
        let daemon = passed("line", manager.path().to_str(), "0s");
        let mut client = daemon.connect();
        assert_eq!(client.ask("WHY"), "42");
        let store = manager.store(fate);
        let log = daemon.stop();
        assert!(log.contains(said), "{log}");
        assert!(!log.contains("does not keep them"), "{log}");
        let keeps = log.contains("keeps the clients");
        assert_eq!(keeps, fate == Fate::Kept, "{log}");
        let state = store.join().unwrap();
        assert_eq!(state.is_some(), keeps);
        let late = || manager.store(Fate::Kept).join().unwrap().unwrap();
        let kept = state::receive(&state.unwrap_or_else(late)).unwrap();
        assert_eq!(kept.state.unwrap().clients.len(), 1);
        client.socket().set_nonblocking(true).unwrap();
        assert!(client.socket().peek(&mut [0]).is_err(), "it is connected");
        drop(kept.descriptors);
    }
}

#[test]
fn clients_that_are_not_kept_after_all_are_closed_in_order() {
    for fate in [Fate::Closed, Fate::NoRoom] {
        let manager = Manager::new();
        let mut daemon = passed("line", manager.path().to_str(), "6s");
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
fn the_watchdog_is_fed_also_while_the_server_is_full() {
    let manager = Manager::new();
    let watchdog = [("WATCHDOG_USEC", "600000")];
    let daemon = manager.start(&["--max-clients", "2", "--queue", "2"], &watchdog);
    let mut clients = Vec::new();
    for _ in 0..4 {
        for _ in 0..3 {
            manager.wait_for("WATCHDOG=1");
        }
        if clients.len() < 2 {
            let mut client = daemon.connect();
            assert_eq!(client.ask("WHY"), "42");
            clients.push(client);
        }
    }
    // No client was sent away for it.
    for client in &mut clients {
        assert_eq!(client.ask("WHY"), "42");
    }
    let log = daemon.stop();
    assert!(!log.contains("unhealthy"), "{log}");
    assert!(!log.contains("make room"), "{log}");
}

static HELD: AtomicUsize = AtomicUsize::new(0);
static GO_ON: AtomicBool = AtomicBool::new(false);

/// STUCK keeps its worker from anything else.
const STUCK: CommandSet = &[CommandSpec {
    name: "STUCK",
    parameters: &[],
    result: ValueType::Text,
    summary: "waits to be told to go on",
    class: CommandClass::Compute,
    rpc: None,
    execute: |_, _| {
        HELD.fetch_add(1, Ordering::SeqCst);
        wait_until("it may go on", || GO_ON.load(Ordering::Relaxed));
        Ok(Value::from("WENT ON"))
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
