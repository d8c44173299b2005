//! Handover states that can't be read, or not as a whole.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;

use blockchain_tcpd::handover::state::{self, ConnectionState, HandoverState, Run};
use shared::clock::Millis;

use crate::support::kernel::{shell, through};
use crate::support::{Client, Daemon, Process, unknown};

/// A listening socket and the state of one client of it, which has sent a question that no process has read yet.
struct LastProcess {
    listener: TcpListener,
    accepted: TcpStream,
    client: Client,
    state: HandoverState,
}

impl LastProcess {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
        client.send("WHY\n");
        let (accepted, peer) = listener.accept().unwrap();
        let state = HandoverState {
            passed: true,
            listeners: vec!["tcp".into()],
            http: 0,
            run: Run {
                id: uuid::Uuid::new_v4(),
                accepted: 1,
                handovers: 0,
                started: Millis(2),
                census: None,
            },
            clients: vec![ConnectionState::new(1, "tcp", peer)],
            lingering: Vec::new(),
        };
        LastProcess {
            listener,
            accepted,
            client,
            state,
        }
    }

    /// A daemon that takes over from it, with these arguments, after this change to the state's bytes; and the client.
    fn replace(self, arguments: &[&str], spoil: impl Fn(&mut Vec<u8>)) -> (Daemon, Client) {
        let mut bytes = state::encode(&self.state).unwrap();
        spoil(&mut bytes);
        let descriptors = [self.listener.as_fd(), self.accepted.as_fd()];
        let sent = state::send(&bytes, &descriptors).unwrap();
        let address = self.listener.local_addr().unwrap();
        drop((self.listener, self.accepted));
        let daemon = begin_with(sent.socket.into(), arguments);
        assert_eq!(daemon.address, address);
        (daemon, self.client)
    }
}

/// A daemon that is given this for a handover state.
fn begin_with(state: Stdio, arguments: &[&str]) -> Daemon {
    let give = shell("exec 9<&0 </dev/null; export BLOCKCHAIN_TCPD_HANDOVER=9");
    let mut command = through(&give);
    command.args(arguments).stdin(state);
    Daemon::run(command)
}

/// What can't be opened is found out before the clients that systemd keeps are taken: it keeps them until that is mended.
#[test]
fn a_port_for_http_that_is_taken_costs_no_client_that_systemd_keeps() {
    let mut last = LastProcess::new();
    (last.state.listeners, last.state.passed) = (Vec::new(), false);
    let bytes = state::encode(&last.state).unwrap();
    let kept = state::send(&bytes, &[last.accepted.as_fd()]).unwrap();
    drop(last.accepted);
    let start = |http: &str| {
        let mut command = through(&shell(
            "exec 3<&0 4<&1 </dev/null >/dev/null
            export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=line:handover",
        ));
        command.args(["--max-clients", "4", "--http", http]);
        command.stdin(OwnedFd::from(last.listener.try_clone().unwrap()));
        command.stdout(kept.socket.try_clone().unwrap());
        command
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = taken.local_addr().unwrap().to_string();
    let (status, said) = Process::start(start(&http)).wait();
    assert_eq!(status, 71, "{said}");
    assert!(!said.contains("took over the clients"), "{said}");
    let daemon = Daemon::run(start("127.0.0.1:0"));
    assert_eq!(last.client.line().as_deref(), Some("42"));
    daemon.stop();
}

/// As over a restart, which may change the setting: which clients need a header depends on the settings that are.
#[test]
fn a_header_that_is_half_there_goes_on_or_is_a_bad_request() {
    for (arguments, is_trusted) in [
        (&["--proxy-from", "127.0.0.0/8"][..], true),
        (&[], false),
        (&["--proxy-from", "192.0.2.1"], false),
    ] {
        let mut last = LastProcess::new();
        last.state.clients[0].awaits_proxy_header = true;
        last.state.clients[0].read_buffer = b"PROXY TCP4 192.0.2.7 192".to_vec();
        // Its question has been read already.
        rustix::net::recv(&last.accepted, &mut [0; 4], rustix::net::RecvFlags::empty()).unwrap();
        let arguments = [arguments, &["--log", "debug"]].concat();
        let (daemon, mut client) = last.replace(&arguments, |_| ());
        client.send(".0.2.1 1 2\r\nWHY\n");
        let first = if is_trusted { "42" } else { &unknown("PROXY") };
        assert_eq!(client.line().as_deref(), Some(first));
        let log = daemon.stop();
        let is_known = log.contains(" accepted connection=1 peer=192.0.2.7:1");
        assert_eq!(is_known, is_trusted, "{log}");
    }
}

/// Of a later version, an earlier one, or damaged: its clients are closed in order, its sockets served.
#[test]
fn a_state_that_cannot_be_read_costs_its_clients_and_nothing_else() {
    const VERSION: usize = state::MAGIC.len();
    type Spoil = fn(&mut Vec<u8>);
    let spoilt: [(Spoil, &str); 3] = [
        (
            |state| state[VERSION] = 7,
            "its format has version 7, and this program knows version 6",
        ),
        (|state| state[VERSION] = 0, "its format has version 0"),
        (
            |state| state.truncate(state.len() - 3),
            "it is damaged: its checksum is wrong",
        ),
    ];
    for (spoil, why) in spoilt {
        let (daemon, mut client) = LastProcess::new().replace(&[], spoil);
        assert_eq!(client.rest(), "", "an end, not a reset");
        assert_eq!(daemon.ask("WHO\n"), "1\n");
        let log = daemon.stop();
        assert!(log.contains(why), "{log}");
        assert!(log.contains(" sockets=passed "), "{log}");
    }
}

/// As when the next process may open fewer files.
#[test]
fn clients_whose_descriptors_are_missing_cost_the_others_nothing() {
    let mut last = LastProcess::new();
    last.state.clients.push(last.state.clients[0].clone());
    let (daemon, mut client) = last.replace(&[], |_| ());
    assert_eq!(client.line().as_deref(), Some("42"));
    assert_eq!(daemon.ask("WHO\n"), "2\n");
    let log = daemon.stop();
    assert!(
        log.contains("sockets of the previous process are lost"),
        "{log}"
    );
    assert!(log.contains(" missing=1"), "{log}");
}

#[test]
fn a_descriptor_that_is_no_state_is_reported_and_the_daemon_serves() {
    for number in ["0", "99", "word"] {
        let daemon = Daemon::start_with([""; 0], |command| {
            command.env("BLOCKCHAIN_TCPD_HANDOVER", number);
        });
        assert_eq!(daemon.ask("WHY\n"), "42\n");
        daemon.stop();
    }
    let file = std::fs::File::open("/dev/null").unwrap();
    let daemon = begin_with(file.into(), &["--listen", "127.0.0.1:0"]);
    assert_ne!(daemon.ask("WHERE\n"), format!("{}\n", uuid::Uuid::nil()));
    let log = daemon.stop();
    let why = "can't receive the handover state: Socket operation on non-socket";
    assert!(log.contains(why), "{log}");
}

/// The trial has looked at the settings of the cluster. What has become of them since closes no connection and keeps no client
/// waiting for a name server; a server of etcd's cluster, whose count is always right, answers with an error instead.
#[test]
fn a_cluster_that_can_not_work_any_more_costs_no_client_and_brings_no_wrong_number() {
    let advertised = "--http 127.0.0.1:0 --advertise 127.0.0.1:1";
    let gone = "--cluster-password-file /nonexistent/password";
    for (cluster, more) in [
        ("etcd://127.0.0.1:1", &*format!("{advertised} {gone}")),
        ("etcd://nowhere.invalid", advertised),
        ("etcd://127.0.0.1:1/x", advertised),
        ("etcd://127.0.0.1:1", ""),
        ("redis://127.0.0.1:1", gone),
        ("redis://nowhere.invalid", ""),
        ("redis://127.0.0.1:1/x", ""),
    ] {
        let arguments = ["--cluster", cluster].into_iter();
        let arguments: Vec<&str> = arguments.chain(more.split_whitespace()).collect();
        let (daemon, mut client) = LastProcess::new().replace(&arguments, |_| ());
        assert_eq!(client.line().as_deref(), Some("42"), "{arguments:?}");
        let who = client.ask("WHO");
        match cluster.starts_with("etcd") {
            true => assert!(who.starts_with("ERR UNAVAILABLE "), "{arguments:?}: {who}"),
            false => assert_eq!(who, "1", "{arguments:?}"),
        }
        daemon.stop();
    }
}
