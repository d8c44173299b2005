//! Packs that can't be read, or not as a whole.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use blockchain_tcpd::handover::state::{self, HandoverState};
use shared::clock::Millis;

use crate::support::kernel::{shell, through};
use crate::support::{Client, Daemon, Log, PATIENCE, program};

/// A listening socket, a client of it, and the other end of that client, who has sent a question that nobody has read yet; and
/// the state of a pack that lists two such clients.
fn one_client() -> (TcpListener, TcpStream, Client, HandoverState) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    client.send("WHY\n");
    let (accepted, peer) = listener.accept().unwrap();
    let one = state::ConnectionState::new(1, "tcp", peer);
    let contents = HandoverState {
        listeners: vec!["tcp".into()],
        http: 0,
        id: uuid::Uuid::new_v4(),
        accepted: 1,
        handovers: 0,
        begun: Millis(2),
        census: None,
        clients: vec![one; 2],
        leaving: Vec::new(),
    };
    (listener, accepted, client, contents)
}

/// A daemon that takes over a listening socket and one client of a process that listed two; of a pack whose state is `spoilt`.
fn take_over(spoilt: impl Fn(&mut Vec<u8>)) -> (Daemon, Client) {
    let (listener, accepted, client, contents) = one_client();
    let address = listener.local_addr().unwrap();
    let mut state = state::encode(&contents, true);
    spoilt(&mut state);
    let descriptors = [listener.as_fd(), accepted.as_fd()];
    let pack = state::send_encoded(&state, &descriptors).unwrap().socket;
    drop((listener, accepted));
    let daemon = begin_with(pack.into(), &[]);
    assert_eq!(daemon.address, address);
    (daemon, client)
}

/// What can't be opened is found out before the clients that systemd keeps are taken: it keeps them until that is mended.
#[test]
fn a_port_for_http_that_is_taken_costs_no_client_that_systemd_keeps() {
    let (listener, accepted, mut client, mut contents) = one_client();
    (contents.listeners, contents.clients) = (Vec::new(), contents.clients[..1].to_vec());
    let pack = state::send(&contents, false, &[accepted.as_fd()])
        .unwrap()
        .socket;
    drop(accepted);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = |http: &str| {
        let script = shell(
            "exec 3<&0 4<&1 </dev/null >/dev/null
            export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=line:pack",
        );
        let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
        let mut command = through(&wrapper);
        command.args(["--max-clients", "4", "--http", http]);
        let sockets: [OwnedFd; 2] = [
            listener.try_clone().unwrap().into(),
            pack.try_clone().unwrap(),
        ];
        let [line, pack] = sockets.map(Stdio::from);
        command.stdin(line).stdout(pack);
        command
    };
    // `run_to_end` would take its stdout, which is the pack.
    let mut failing = start(&taken.local_addr().unwrap().to_string());
    let mut failing = failing.stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::follow(failing.stderr.take().unwrap());
    let mut status = None;
    let deadline = Instant::now() + PATIENCE;
    while status.is_none() && Instant::now() < deadline {
        status = failing.try_wait().unwrap();
        std::thread::park_timeout(Duration::from_millis(2));
    }
    // It may have ended.
    let _ = failing.kill();
    let _ = failing.wait();
    let said = log.whole();
    assert_eq!(status.and_then(|status| status.code()), Some(71), "{said}");
    assert!(!said.contains("goes on with the clients"), "{said}");
    let daemon = Daemon::run(start("127.0.0.1:0"));
    assert_eq!(client.line().as_deref(), Some("42"));
    daemon.stop();
}

/// A daemon that is given this for a pack.
fn begin_with(pack: Stdio, arguments: &[&str]) -> Daemon {
    let script = shell("exec 9<&0 </dev/null; export BLOCKCHAIN_TCPD_PACK=9");
    let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
    let mut command = through(&wrapper);
    command.args(arguments).stdin(pack);
    Daemon::run(command)
}

/// As over a restart, which may change the setting: who must say whose connection it is depends on the settings that are.
#[test]
fn a_header_that_is_half_there_goes_on_or_is_a_bad_request() {
    let known = "ERR UNKNOWN no such command: \"PROXY\" (try HELP)";
    for (arguments, first) in [
        (&["--proxy-from", "127.0.0.0/8"][..], "42"),
        (&[], known),
        (&["--proxy-from", "192.0.2.1"], known),
    ] {
        let (listener, accepted, mut client, mut contents) = one_client();
        contents.clients.truncate(1);
        contents.clients[0].awaits_proxy_header = true;
        contents.clients[0].read_buffer = b"PROXY TCP4 192.0.2.7 192".to_vec();
        // Its question has been read already.
        rustix::net::recv(&accepted, &mut [0; 4], rustix::net::RecvFlags::empty()).unwrap();
        let descriptors = [listener.as_fd(), accepted.as_fd()];
        let pack = state::send(&contents, false, &descriptors).unwrap().socket;
        drop((listener, accepted));
        let daemon = begin_with(pack.into(), &[arguments, &["--log", "debug"]].concat());
        client.send(".0.2.1 1 2\r\nWHY\n");
        assert_eq!(client.line().as_deref(), Some(first));
        let log = daemon.stop();
        let is_known = log.contains(" accepted connection=1 peer=192.0.2.7:1");
        assert_eq!(is_known, first == "42", "{log}");
    }
}

/// A pack of a later version, an earlier one, or a damaged one: its clients are closed in order, its sockets served.
#[test]
fn a_pack_that_cannot_be_read_costs_its_clients_and_nothing_else() {
    const VERSION: usize = state::MAGIC.len() + 1;
    type Spoil = fn(&mut Vec<u8>);
    let spoilt: [(Spoil, &str); 3] = [
        (
            |state| state[VERSION] = 6,
            "its format has version 6, and this program knows version 5",
        ),
        (|state| state[VERSION] = 0, "its format has version 0"),
        (
            |state| state.truncate(state.len() - 3),
            "it is damaged: its checksum is wrong",
        ),
    ];
    for (spoil, why) in spoilt {
        let (daemon, mut client) = take_over(spoil);
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
    let (daemon, mut client) = take_over(|_| {});
    assert_eq!(client.line().as_deref(), Some("42"));
    assert_eq!(daemon.ask("WHO\n"), "2\n");
    let log = daemon.stop();
    assert!(
        log.contains("sockets of the last process are lost"),
        "{log}"
    );
    assert!(log.contains(" missing=1"), "{log}");
}

#[test]
fn a_pack_that_makes_no_sense_is_said_and_the_daemon_serves() {
    for number in ["0", "99", "word"] {
        let mut command = program();
        command
            .args(["--listen", "127.0.0.1:0"])
            .env("BLOCKCHAIN_TCPD_PACK", number);
        let daemon = Daemon::run(command);
        assert_eq!(daemon.ask("WHY\n"), "42\n");
        assert!(TcpStream::connect(daemon.address).is_ok());
        daemon.stop();
    }
    let file = std::fs::File::open(program().get_program()).unwrap();
    let daemon = begin_with(file.into(), &["--listen", "127.0.0.1:0"]);
    assert_ne!(daemon.ask("WHERE\n"), format!("{}\n", uuid::Uuid::nil()));
    let log = daemon.stop();
    assert!(
        log.contains("can't take their pack: Socket operation on non-socket"),
        "{log}"
    );
}

/// The trial has looked at the settings of the cluster. What has become of them since ends nobody's connection and makes nobody wait
/// for a name server, and who can't know how many clients there are says no number where it would have to be right.
#[test]
fn a_cluster_that_can_not_work_any_more_costs_no_client_and_brings_no_wrong_number() {
    let http = ["--http", "127.0.0.1:0"];
    let advertise = ["--advertise", "127.0.0.1:1"];
    let gone = ["--cluster-password-file", "/nonexistent/password"];
    let etcd = |url| [&["--cluster", url], &http[..], &advertise[..]].concat();
    let redis = |url| vec!["--cluster", url];
    for (arguments, knows) in [
        ([etcd("etcd://127.0.0.1:1"), gone.to_vec()].concat(), false),
        (etcd("etcd://nowhere.invalid"), false),
        (etcd("etcd://127.0.0.1:1/x"), false),
        (["--cluster", "etcd://127.0.0.1:1"].to_vec(), false),
        ([redis("redis://127.0.0.1:1"), gone.to_vec()].concat(), true),
        (redis("redis://nowhere.invalid"), true),
        (redis("redis://127.0.0.1:1/x"), true),
    ] {
        let (listener, accepted, mut client, mut contents) = one_client();
        contents.clients.truncate(1);
        let descriptors = [listener.as_fd(), accepted.as_fd()];
        let pack = state::send(&contents, true, &descriptors).unwrap().socket;
        drop((listener, accepted));
        let daemon = begin_with(pack.into(), &arguments);
        assert_eq!(client.line().as_deref(), Some("42"), "{arguments:?}");
        let who = client.ask("WHO");
        match knows {
            true => assert_eq!(who, "1", "{arguments:?}"),
            false => assert!(who.starts_with("ERR UNAVAILABLE "), "{arguments:?}: {who}"),
        }
        daemon.stop();
    }
}
